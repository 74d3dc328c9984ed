"""What can go wrong between a client and the Hub of the tests (`hub_server.py`), scripted.

    hub.fault(503, path="/preupload/", times=2)                       # the third is answered
    hub.fault("reset", method="PUT", at=1000)                         # after 1,000 bytes of the body
    hub.fault("lost answer", path="/commit/")                         # the commit stands, and nobody hears of it
    hub.fault(lambda: repository.commit(...), path="/commit/")        # what somebody else does just before

Each gives back the `Fault`, whose `fired` a test compares with what it expects.
"""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


# A status is answered instead of what was asked for: (error, headers).
STATUSES = {
    400: ("Bad request", {}),
    401: ("Invalid credentials in Authorization header", {}),
    403: ("Forbidden: you must use a write token to upload to a repository.", {}),
    404: ("Sorry, we can't find the page you are looking for.", {}),
    409: ("Conflict: another conflicting operation has happened", {}),
    412: ("The branch was updated since you opened this page. Please refresh and try again.", {}),
    413: ("Payload too large", {}),
    429: ("We had to rate limit you.", {"Retry-After": "0"}),
    500: ("Internal Error - We're working hard to fix this as soon as possible!", {}),
    502: ("Bad Gateway", {}),
    503: ("Service Unavailable", {}),
    504: ("Gateway Timeout", {}),
}

KINDS = {
    "reset": "the connection breaks after `at` bytes of the request's body; if it has none, of the answer's",
    "stall": "after `at` bytes of the answer nothing comes for `seconds`, then the connection ends",
    "truncate": "the connection ends after `at` bytes (none: half) of an answer that promises more",
    "wrong_hash": "a byte of the answer is another one",
    "lost answer": "what was asked is done, and the connection breaks before an answer",
}


@dataclass
class Fault:
    """`method` and `path` (a regular expression, found anywhere) say which requests; of those the first `after` pass,
    then `times` of them meet the fault, all of them if None. Without `at`, a reset or a stall comes before the first
    line of an answer, and nothing is done."""

    kind: int | str | Callable[[], object]
    method: str | None = None
    path: str = ""
    times: int | None = 1
    after: int = 0
    at: int | None = None
    seconds: float = 60.0
    fired: int = 0
    seen: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self):
        if not callable(self.kind) and self.kind not in STATUSES and self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is no fault: {[*STATUSES, *KINDS]}, or a function")

    def meets(self, method: str, path: str) -> bool:
        """Whether this request meets the fault; counts it."""
        if self.method not in (None, method) or not re.search(self.path, path):
            return False
        with self.lock:
            self.seen += 1
            due = self.seen > self.after and (self.times is None or self.fired < self.times)
            self.fired += due
        return due

    def body_limit(self, length: int) -> int | None:
        """How much of a request's body arrives; all of it if None."""
        return (self.at or 0) if self.kind == "reset" and length else None

    @property
    def silent(self) -> bool:
        return self.kind in ("reset", "stall") and self.at is None

    def cut(self, content: bytes) -> int | None:
        """How much of an answer is sent; all of it if None. The connection does not outlive a cut."""
        if self.kind == "truncate" and self.at is None:
            return len(content) // 2
        return self.at if self.kind in ("truncate", "reset", "stall") else None

    def spoil(self, content: bytes) -> bytes:
        """The content, wrong by a byte in the middle if that is the fault."""
        if self.kind != "wrong_hash" or not content:
            return content
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


NO_FAULT = Fault(lambda: None)
