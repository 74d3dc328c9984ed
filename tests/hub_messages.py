"""How the Hub of the tests (`hub_server.py`) reads the bodies of requests and writes those of answers."""

import base64
import binascii
import hashlib
import json
import re
from typing import Any

from hub_repository import Commit, illegal, pointer, sha256


Answer = tuple[int, dict[str, str], bytes]  # status, headers, body


class Refused(Exception):
    """An answer that is no success. `code` is what clients tell errors apart by."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.headers |= {name.replace("_", "-"): value for name, value in headers.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Bodies

KINDS = {str: "a string", bool: "a boolean", list: "an array", dict: "of type object", int: "a number"}


def field(body: Any, name: str, kind: type, default: Any = ...) -> Any:
    """One field of a JSON body."""
    if not isinstance(body, dict):
        raise Refused(400, '"body" must be of type object')
    if body.get(name) is None and default is not ...:
        return default
    if name not in body:
        raise Refused(400, f'"{name}" is required')
    if not isinstance(body[name], kind) or (kind is int and isinstance(body[name], bool)):
        raise Refused(400, f'"{name}" must be {KINDS[kind]}')
    return body[name]


def parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Refused(400, f"Invalid JSON: {error}") from error


def decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise Refused(400, f"Invalid base64: {error}") from error


def visibility(body: dict) -> bool | None:
    """Whether a repository is to be private; None: nothing is said of it."""
    said = field(body, "visibility", str, None)
    if said not in (None, "private", "public"):
        raise Refused(400, '"visibility" must be one of [private, public]')
    return field(body, "private", bool, None) if said is None else said == "private"


def checked(path: str) -> str:
    """A path at which a commit may put something."""
    if illegal(path):
        raise Refused(422, f"Invalid path: {path!r}")
    return path


def check_reference(name: str, kind: str) -> str:
    if not re.fullmatch(r"(?!refs/)[\w][\w./+-]*", name) or ".." in name:
        raise Refused(400, f"Invalid reference for a {kind}: {name}")
    return name


# ---------------------------------------------------------------------------------------------------------------------
# Answers


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    content = json.dumps(value, default=str).encode()
    return status, {"Content-Type": "application/json; charset=utf-8", **headers}, content


def ranged(content: bytes, headers: dict[str, str], wanted: str | None) -> Answer:
    """The content, or the one range of it that was asked for."""
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (wanted or "").replace(" ", ""))
    if not match or not any(match.groups()):
        return 200, headers, content
    first, last = match.groups()
    start = int(first) if first else max(len(content) - int(last), 0)
    end = min(int(last) + 1, len(content)) if first and last else len(content)
    if start >= end:
        return 416, {**headers, "Content-Range": f"bytes */{len(content)}"}, b""
    return 206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}, content[start:end]


def file_entry(commit: Commit, path: str, expand: bool) -> dict:
    """A file as trees and path infos show it."""
    content = commit.files[path]
    entry = {"type": "file", "oid": commit.blob(path), "size": len(content), "path": path}
    if path in commit.large:
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": len(pointer(content))}
    return {**entry, **expanded(commit, path, securityFileStatus=SAFE)} if expand else entry


def folder_entry(commit: Commit, path: str, expand: bool) -> dict:
    inside = sorted((name, commit.blob(name)) for name in commit.files if name.startswith(f"{path}/"))
    entry = {"type": "directory", "oid": hashlib.sha1(repr(inside).encode()).hexdigest(), "size": 0, "path": path}
    return {**entry, **expanded(commit, path)} if expand else entry


SAFE = {"status": "safe", "avScan": None, "pickleImportScan": None}


def expanded(commit: Commit, path: str, **more) -> dict:
    last = commit.last(path)
    return {"lastCommit": {"id": last.oid, "title": last.summary, "date": last.date}, **more}


def sibling(commit: Commit, path: str, blobs: bool) -> dict:
    """A file as the info of a model shows it."""
    if not blobs:
        return {"rfilename": path}
    entry = file_entry(commit, path, False)
    shown = {"rfilename": path, "size": entry["size"], "blobId": entry["oid"]}
    if "lfs" in entry:
        shown["lfs"] = {**entry["lfs"], "sha256": entry["lfs"]["oid"]}
    return shown


def references(kind: str, commits: dict[str, Commit]) -> list[dict]:
    return [
        {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit.oid} for name, commit in commits.items()
    ]
