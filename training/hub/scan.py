"""Secrets: found in what is to be published, and taken out of what is printed.

    secrets(files, token)       # [Finding("recipe.yaml", 3, "GitHub token", "ghp_…(40 characters)"), ...]
    redact(traceback, token)    # the same text, fit to be shown

Notable: the token in use is looked for in every byte, weights included, and also as base64, hexadecimal, UTF-16 or
quoted for a URL. What merely looks like a secret is looked for in text, in pictures, and in the header of weights,
by what its issuer puts in front of it; without such a prefix only in an assignment to a name like `api_key`. Nothing
found is ever shown: only the prefix, which is public, and the length.
"""

import base64
import mmap
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote


THE_TOKEN = "the token in use"
MOST = 20  # findings of a kind in one file: who reads more?
SHORTEST = 8  # a shorter token is none, and would be found everywhere


class Finding(NamedTuple):
    file: str
    line: int
    kind: str
    shown: str  # never the secret


# What is left of a match when it is shown is its group `head`; a group that is there but did not match is empty.
WORD = r"[A-Za-z0-9_-]"
NOT_PLAIN = rf"(?={WORD}{{0,200}}[0-9])(?={WORD}{{0,200}}[A-Z])"  # digits and capitals, as in no name that people give
KINDS: dict[str, str] = {
    "Hugging Face token": r"\b(?P<head>hf_|api_org_)[A-Za-z0-9]{20,}",
    "AWS access key": r"\b(?P<head>AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",
    "GitHub token": r"\b(?P<head>gh[pousr]_|github_pat_)[A-Za-z0-9_]{22,}",
    "GitLab token": rf"\b(?P<head>glpat-){WORD}{{20,}}",
    "OpenAI or Anthropic key": rf"\b(?P<head>sk-(?:ant-|proj-|svcacct-|admin-)?){NOT_PLAIN}{WORD}{{20,}}",
    "Stripe key": r"\b(?P<head>[sr]k_live_)[A-Za-z0-9]{16,}",
    "Slack token": r"\b(?P<head>xox[abeoprs]-|xapp-)[A-Za-z0-9-]{10,}",
    "Slack webhook": r"(?P<head>hooks\.slack\.com/services/)T[A-Za-z0-9]+/B[A-Za-z0-9]+/[A-Za-z0-9]{16,}",
    "Google key": rf"\b(?P<head>AIza){WORD}{{35}}|\bGOCSPX-{WORD}{{28}}|\bya29\.{WORD}{{20,}}",
    "npm token": r"\b(?P<head>npm_)[A-Za-z0-9]{36}",
    "PyPI token": rf"\b(?P<head>pypi-)AgE{WORD}{{50,}}",
    "JSON web token": rf"\b(?P<head>eyJ){WORD}{{10,200}}\.eyJ{WORD}{{10,2000}}\.{WORD}{{10,}}",
    "private key": r"-----BEGIN (?P<head>[A-Z0-9 ]{0,30})PRIVATE KEY(?: BLOCK)?-----"
    r"(?:\\[rn]|[A-Za-z0-9+/=:,\s]|-(?!-)){0,20000}(?:-----END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----)?",
    "password in an address": r"(?P<head>://)[^\s/:@\"'<>(){}\[\]]{1,64}:[^\s/:@\"'<>(){}\[\]$]{6,200}@",
    "authorization header": r"(?i)\b(?P<head>bearer |authorization[\"']?\s{0,4}[:=]\s{0,4}[\"']?basic )\s{0,4}"
    r"(?=[\w.~+/=-]{0,200}[0-9])[\w.~+/=-]{16,}",
    "assigned secret": r"(?i)(?P<head>password|passwd|passphrase|secret(?:[_-]?access)?(?:[_-]?key)?|account[_-]?key"
    r"|(?:api|access|private|auth|secret|wandb)[_-]?key|(?:access|auth|api|bearer|refresh|hub|hf)[_-]?token)"
    r"[\"']?\s{0,4}(?::|=|=>|:=)\s{0,4}[\"']?(?=[\w+/=.~-]{0,200}[0-9])(?=[\w+/=.~-]{0,200}[A-Za-z])[\w+/=.~-]{16,}",
}
PATTERNS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}


def shown(match: re.Match) -> str:
    return f"{match['head'] or ''}…({len(match[0])} characters)"


# ---------------------------------------------------------------------------------------------------------------------
# The token in use


def forms(token: str | None) -> list[bytes]:
    """How the token may stand in a file, the plain one first."""
    if token is None or len(token) < SHORTEST:
        return []
    plain = token.encode()
    percent = [f"%{byte:02X}" for byte in plain]
    some = "".join(code if chr(byte) in "_-." else chr(byte) for byte, code in zip(plain, percent))
    quoted = [quote(token, safe=""), some, "".join(percent)]
    written = {
        *(text.encode() for text in quoted),
        *(re.sub(r"%..", lambda match: match[0].lower(), text).encode() for text in quoted),
        *encoded(plain),
        *(text.encode() for text in (plain.hex(), plain.hex().upper())),
        *(token.encode(name) for name in ("utf-16-le", "utf-16-be")),
    }
    return [plain, *sorted(written - {plain}, key=lambda form: (-len(form), form))]


def length(token: str) -> str:
    return f"{'hf_' if token.startswith('hf_') else ''}…({len(token)} characters)"


def encoded(plain: bytes) -> Iterator[bytes]:
    """In base64 and its alphabet for URLs, wherever in a longer text the token begins: without the first and last
    characters, which it shares with its neighbours."""
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + plain).rstrip(b"=")
        own = whole[-(-before * 8 // 6) : (before + len(plain)) * 8 // 6]
        yield from (own, own.translate(bytes.maketrans(b"+/", b"-_")))


# ---------------------------------------------------------------------------------------------------------------------
# In files


def secrets(files: Mapping[str, Path | bytes], token: str | None) -> list[Finding]:
    """In the order of the files, and of their lines."""
    searched = forms(token)
    found = []
    for name, file in files.items():
        with opened(file) as data:
            found += sorted(set(in_file(name, data, searched)), key=lambda finding: finding.line)
    return found


@contextmanager
def opened(file: Path | bytes) -> Iterator[bytes | mmap.mmap]:
    """The content; of a file without reading it into memory, for there may be gigabytes of weights."""
    if isinstance(file, bytes) or not file.stat().st_size:
        yield file if isinstance(file, bytes) else b""
        return
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def in_file(name: str, data: bytes | mmap.mmap, searched: list[bytes]) -> Iterator[Finding]:
    own = searched[0].decode() if searched else ""
    for form in searched:
        for at in islice(places(form, data), MOST):
            yield Finding(name, line_of(data[:at], b"\n"), THE_TOKEN, length(own))
    text = readable(name, data)
    for kind, pattern in PATTERNS.items():
        for match in islice(pattern.finditer(text), MOST):
            if not own or own not in match[0]:  # else it is told already
                yield Finding(name, line_of(text[: match.start()], "\n"), kind, shown(match))


def places(form: bytes, data: bytes | mmap.mmap) -> Iterator[int]:
    at = data.find(form)
    while at >= 0:
        yield at
        at = data.find(form, at + len(form))


def readable(name: str, data: bytes | mmap.mmap) -> str:
    """What may be text: of safetensors the header, which is JSON, and not the numbers."""
    end = len(data)
    if name.endswith(".safetensors"):
        end = min(end, 8 + int.from_bytes(data[:8], "little"))
    return data[:end].decode("utf-8", errors="replace")


def line_of(before: str | bytes, newline: str | bytes) -> int:
    return before.count(newline) + 1


# ---------------------------------------------------------------------------------------------------------------------
# In what is printed


def redact(text: str, token: str | None) -> str:
    """Before the text is wrapped: a token that is broken in two is not found."""
    for form in forms(token):
        text = text.replace(form.decode("utf-8", errors="replace"), length(token))
    for pattern in PATTERNS.values():
        text = pattern.sub(shown, text)
    return text
