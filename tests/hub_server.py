"""A Hub for tests: the HTTP routes by which `huggingface_hub` looks after, writes and reads model repositories.

Loopback, ephemeral ports, the standard library and PyYAML, everything in memory:

    with HubServer() as hub:
        ...  # another process, with HF_ENDPOINT=hub.endpoint (read at import) and any HF_TOKEN
        hub.repositories["user/name"].branches["main"].files["config.json"]

`mode` says which files travel outside their commit, by LFS: none ("regular"), every one ("lfs"), or those of which the
real Hub asks it ("hub": what .gitattributes names, what is long or no text). There is no Xet: set
HF_HUB_DISABLE_XET=1 where files go by LFS.

Notable: answers, errors and their words follow the real Hub as far as its clients' tests and bug reports show them.
It answers 401 to strangers and 404 to others where they may not look, and 404 where there is no such route. Files in
LFS come from another port, as from a content network: whoever sends a token there is seen in `received`.

Here are the server, admission and transport. `hub_routes.py`: what is asked for and answered. `hub_changes.py`: what
a commit does. `hub_messages.py`: bodies. `hub_repository.py`: accounts and commits. `hub_metadata.py`: what the YAML
of a card may say. `hub_faults.py`: what goes wrong on request.
"""

import hashlib
import os
import re
import secrets
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_faults import NO_FAULT, STATUSES, Fault
from hub_messages import Answer, Refused, as_json, parse
from hub_repository import LIMIT, Account, Commit, Repository, is_text, matches
from hub_routes import ROUTES, Route


MODES = ("regular", "lfs", "hub")


@dataclass
class Received:
    """A request, kept as evidence. `status` is None where nothing was answered."""

    method: str
    path: str  # with the query, still quoted
    headers: dict[str, str]  # names in lower case
    body: bytes = b""
    status: int | None = None


class HubServer:
    """`repositories`, `requests` and `received` are what a test looks at.

    `tokens`: token -> Account. While there is none, every token is a write token of "user"; with one, others are
    unknown. `page_size`: how many entries of a tree or commits of a history an answer holds. `part_size`: what is
    larger goes to LFS in several parts. Pull requests are not served.
    """

    def __init__(self, mode: str = "regular", gitattributes: bool | None = None, part_size: int | None = None):
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} is none of {MODES}")
        self.mode = mode
        self.gitattributes = mode == "hub" if gitattributes is None else gitattributes
        self.part_size = part_size
        self.page_size = 1000
        self.tokens: dict[str, Account] = {}
        self.repositories: dict[str, Repository] = {}
        self.moved: dict[str, str] = {}  # the former name of a repository -> its name
        self.requests: list[tuple[str, str]] = []  # (method, path)
        self.received: list[Received] = []
        self.faults: list[Fault] = []
        self.errors: list[str] = []  # tracebacks of this server's own mistakes
        self.secret = secrets.token_hex(8)  # what signs the addresses of the content network
        self.lock = threading.RLock()  # one request at a time changes something
        self.closing = threading.Event()
        self.servers = [Listener(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self})) for _ in "ab"]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)

    def __enter__(self):
        for server in self.servers:
            server.start()
        return self

    def __exit__(self, kind, *error):
        self.closing.set()
        for server in self.servers:
            server.stop()
        if kind is None and self.errors:
            raise AssertionError("the Hub of the tests failed:\n" + "\n".join(self.errors))

    def fault(self, kind: int | str | Callable[[], object], method: str | None = None, path: str = "", **how) -> Fault:
        """Something goes wrong from now on: see `hub_faults.py`. Takes `times`, `after`, `at` and `seconds`."""
        self.faults.append(Fault(kind, method, path, **how))
        return self.faults[-1]

    def due(self, method: str, path: str) -> Fault:
        return next((fault for fault in list(self.faults) if fault.meets(method, path)), NO_FAULT)

    def account(self, authorization: str | None) -> Account | None:
        """Who asks; None for a stranger."""
        if not authorization:
            return None
        token = authorization.removeprefix("Bearer ")
        if self.tokens and token not in self.tokens:
            raise Refused(401, STATUSES[401][0])
        return self.tokens.get(token, Account())

    def repository(self, name: str) -> Repository | None:
        """By its name, in whatever case."""
        spelled = {known.lower(): known for known in list(self.repositories)}
        return self.repositories.get(spelled.get(name.lower(), name))

    def signature(self, *parts) -> str:
        return hashlib.sha1(repr((self.secret, *parts)).encode()).hexdigest()

    def is_large(self, commit: Commit, path: str, size: int, sample: bytes) -> bool:
        """Whether a file goes to LFS."""
        by_its_kind = matches(path, commit.patterns()) or size > LIMIT or not is_text(sample)
        return self.mode == "lfs" or (self.mode == "hub" and by_its_kind)


class Listener(ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True

    def start(self) -> None:
        # The interval is what stopping takes, and there are many tests.
        self.thread = threading.Thread(target=self.serve_forever, args=(0.005,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that goes away is no news; anything else is a mistake in here."""
        if not isinstance(sys.exception(), OSError):
            self.RequestHandlerClass.hub.errors.append(traceback.format_exc())


# ---------------------------------------------------------------------------------------------------------------------
# Requests


class Handler(BaseHTTPRequestHandler):
    """Who may ask what, what goes wrong, and how it travels."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # the head and the body of an answer are two packets

    # -- admission --------------------------------------------------------------------------------------------------

    def admitted(self, name: str, right: str) -> Repository:
        """The repository that a request names, if whoever asks may "read" or "write" it."""
        if name.lower() in self.hub.moved and not self.hub.repository(name):
            to = self.hub.moved[name.lower()]
            raise Refused(307, f"Moved to {to}", Location=self.path.replace(name, to, 1))
        repository, account = self.hub.repository(name), self.account
        if repository is None or (repository.private and not (account and account.may_read(repository.name))):
            stranger = (401, "Invalid username or password.")
            raise Refused(*((404, "Repository not found") if account else stranger), "RepoNotFound")
        if right == "write":
            self.refuse_writing(repository)
        return repository

    def refuse_writing(self, repository: Repository) -> None:
        account = self.account
        if account is None:
            raise Refused(401, "Invalid username or password.")
        if not account.may_write(repository.name):
            foreign = not account.member(repository.name.split("/")[0])
            wanted = "pass `create_pr=1` as a query parameter to create a Pull Request"
            own = "you must use a write token to upload to a repository."
            raise Refused(403, f"Forbidden: {wanted if foreign else own}")

    def route(self, method: str, path: str) -> Answer:
        self.account = self.hub.account(self.headers.get("Authorization"))
        for route in ROUTES:
            match = re.fullmatch(route.pattern, path)
            if match and method in route.methods.split():
                return self.call(route, {name: unquote(part) for name, part in match.groupdict().items()})
        if not path.startswith("/api/"):
            return 404, {"Content-Type": "text/html"}, b"<!DOCTYPE html><title>404</title><h1>404</h1>"
        raise Refused(404, "Sorry, we can't find the page you are looking for.")

    def call(self, route: Route, parts: dict[str, Any]) -> Answer:
        if route.needs == "account" and self.account is None:
            raise Refused(401, "Invalid username or password.")
        if route.needs in ("read", "write"):
            parts["repo"] = self.admitted(parts["repo"], route.needs)
        return route.handler(self, **parts)

    def json(self) -> Any:
        return parse(self.body)

    # -- plumbing ---------------------------------------------------------------------------------------------------

    def answer(self):
        split = urlsplit(self.path)
        self.query = parse_qs(split.query, keep_blank_values=True)
        fault = self.hub.due(self.command, split.path)
        received = Received(self.command, self.path, {key.lower(): value for key, value in self.headers.items()})
        self.hub.requests.append((self.command, split.path))
        self.hub.received.append(received)
        self.body = received.body = self.read_body(fault)
        if len(self.body) < self.length or fault.silent:
            return self.fail(fault)
        status, headers, content = self.carry_out(fault, split.path)
        if fault.kind == "lost answer":
            return self.fail(fault)
        received.status = status
        self.send(status, headers, content, fault)

    def carry_out(self, fault: Fault, path: str) -> Answer:
        """The answer of a route; of a fault, of a refusal, of a mistake in here."""
        try:
            if isinstance(fault.kind, int):
                message, headers = STATUSES[fault.kind]
                raise Refused(fault.kind, message, **headers)
            if callable(fault.kind):
                fault.kind()
            with self.hub.lock:
                return self.route(self.command, path)
        except Refused as refused:
            return as_json({"error": refused.message}, refused.status, **refused.headers)
        except Exception:
            self.hub.errors.append(traceback.format_exc())
            return as_json({"error": "Internal Error: the Hub of the tests has a mistake"}, 500)

    def send(self, status: int, headers: dict[str, str], content: bytes, fault: Fault) -> None:
        content = fault.spoil(content)
        cut = None if self.command == "HEAD" else fault.cut(content)
        self.send_response(status)
        request_id = f"Root=1-{len(self.hub.received):08x}"
        for key, value in {**headers, "Content-Length": str(len(content)), "X-Request-Id": request_id}.items():
            self.send_header(key, value.encode("latin-1", "replace").decode("latin-1").replace("\n", " "))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
        if cut is not None:
            self.fail(fault)

    def fail(self, fault: Fault) -> None:
        """The connection ends: late, at once, or as if there were nothing more to say."""
        self.close_connection = True
        if fault.kind == "stall":
            self.hub.closing.wait(fault.seconds)
        if fault.kind in ("reset", "lost answer"):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())  # not close(), which would wait for the files made of the socket

    def read_body(self, fault: Fault) -> bytes:
        self.length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b"".join(iter(self.read_chunk, b""))
            self.length = len(body)
            return body[: fault.body_limit(len(body))]
        limit = fault.body_limit(self.length)
        return self.rfile.read(self.length if limit is None else min(limit, self.length))

    def read_chunk(self) -> bytes:
        size = int(self.rfile.readline().split(b";")[0], 16)
        chunk = self.rfile.read(size)
        self.rfile.readline()
        return chunk

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = answer

    def log_message(self, *args):
        """Silent: tests look at `requests`."""
