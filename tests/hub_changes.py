"""What a commit to the Hub of the tests (`hub_server.py`) does, read line by line from the body of its request."""

from typing import Any, ClassVar

import hub_metadata
from hub_messages import Refused, checked, decoded, field
from hub_repository import LIMIT, Commit, Repository, is_text


class Change:
    """What a commit does, read line by line from its body."""

    def __init__(self, hub, repository: Repository, before: Commit):
        self.hub, self.repository, self.before = hub, repository, before
        self.added: dict[str, bytes] = {}
        self.large: set[str] = set()
        self.removed: set[str] = set()

    def apply(self, line: Any) -> None:
        key, value = field(line, "key", str), field(line, "value", dict)
        if key not in self.KEYS:
            raise Refused(400, f'"key" must be one of [header, {", ".join(self.KEYS)}]')
        self.KEYS[key](self, checked(field(value, "path", str).rstrip("/")), value)

    def file(self, path: str, value: dict) -> None:
        text, encoding = field(value, "content", str), field(value, "encoding", str, "utf-8")
        content = decoded(text) if encoding == "base64" else text.encode()
        if self.hub.mode == "hub" and len(content) > LIMIT:
            raise Refused(400, f"Your push was rejected because it contains files larger than 10 MiB: {path}")
        if self.hub.mode == "hub" and not is_text(content):
            raise Refused(400, f"Your push was rejected because it contains binary files: {path}")
        self.add(path, content)

    def large_file(self, path: str, value: dict) -> None:
        content = self.repository.objects.get(field(value, "oid", str))
        if content is None:
            raise Refused(400, f"LFS pointer pointed to a file that does not exist: {path}")
        if field(value, "size", int, len(content)) != len(content):
            raise Refused(400, f"LFS pointer gives a size other than that of the file: {path}")
        self.add(path, content)
        self.large.add(path)

    def add(self, path: str, content: bytes) -> None:
        self.added[path] = content
        self.large.discard(path)
        self.removed.discard(path)

    def remove(self, path: str, value: dict) -> None:
        """A file, or all that is in a folder."""
        there = {*self.before.files, *self.added}
        gone = {name for name in there if f"{name}/".startswith(f"{path}/")}
        if not gone:
            raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        self.removed |= gone & set(self.before.files)
        self.added = {name: content for name, content in self.added.items() if name not in gone}
        self.large -= gone

    KEYS: ClassVar = {"file": file, "lfsFile": large_file, "deletedFile": remove, "deletedFolder": remove}

    def check_card(self) -> None:
        card = self.added.get("README.md")
        errors, _ = hub_metadata.check(card.decode("utf-8", "replace")) if card is not None else ([], [])
        if errors:
            raise Refused(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
