"""What the Hub of the tests (`hub_server.py`) keeps: who may do what, repositories of commits, files small and large.

Notable: a file of a commit is its content, wherever the real Hub stores it; `Commit.large` names those that it would
keep in LFS. A commit's id is a hash of what it holds and follows, so that the same work has the same ids every time.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from typing import NamedTuple


# ---------------------------------------------------------------------------------------------------------------------
# Who asks

WRITERS = ("contributor", "write", "admin")  # roles in an organization that may make repositories there


@dataclass(frozen=True)
class Account:
    """A token and the person it belongs to.

    `role` is that of the token: read, write or fineGrained. `orgs`: organization -> role there (read, contributor,
    write, admin). `scopes`, of a fineGrained token: the name of a user, organization or repository -> permissions
    ("repo.content.read", "repo.write").
    """

    name: str = "user"
    role: str = "write"
    orgs: Mapping[str, str] = field(default_factory=dict)
    scopes: Mapping[str, Iterable[str]] = field(default_factory=dict)

    def member(self, owner: str) -> bool:
        return owner == self.name or owner in self.orgs

    def granted(self, repo: str) -> set[str]:
        """The permissions of a fineGrained token for one repository."""
        owner = repo.split("/")[0]
        return {permission for name in (owner, repo) for permission in self.scopes.get(name, ())}

    def may_read(self, repo: str) -> bool:
        """Of private repositories: the public ones are everybody's."""
        if self.role == "fineGrained":
            return self.member(repo.split("/")[0]) and bool(self.granted(repo) & {"repo.content.read", "repo.write"})
        return self.member(repo.split("/")[0])

    def may_write(self, repo: str) -> bool:
        owner = repo.split("/")[0]
        person = owner == self.name or self.orgs.get(owner) in WRITERS
        token = "repo.write" in self.granted(repo) if self.role == "fineGrained" else self.role == "write"
        return person and token

    def as_json(self) -> dict:
        """What whoami-v2 tells."""
        token = {"displayName": f"{self.role} token", "role": self.role, "createdAt": EPOCH}
        if self.role == "fineGrained":
            scoped = [self.scope_as_json(name, permissions) for name, permissions in self.scopes.items()]
            token["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": scoped}
        orgs = [
            {"type": "org", "id": git_sha1(name.encode())[:24], "name": name, "fullname": name, "roleInOrg": role}
            for name, role in self.orgs.items()
        ]
        person = {"type": "user", "id": git_sha1(self.name.encode())[:24], "name": self.name, "fullname": self.name}
        flags = {"email": f"{self.name}@example.com", "emailVerified": True, "isPro": False, "canPay": False}
        return {**person, **flags, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}}

    def scope_as_json(self, name: str, permissions: Iterable[str]) -> dict:
        kind = "model" if "/" in name else "user" if name == self.name else "org"
        entity = {"_id": git_sha1(name.encode())[:24], "type": kind, "name": name}
        return {"entity": entity, "permissions": list(permissions)}


# ---------------------------------------------------------------------------------------------------------------------
# Files

EPOCH = "2024-01-01T00:00:00.000Z"
SAMPLE = 512  # bytes that preupload sees of a file
LIMIT = 10 * 2**20  # bytes of a file outside LFS

# What the Hub writes into a new model repository.
LARGE = "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz"
LARGE += " *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar"
LARGE += " *.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents*"
ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE.split()).encode()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pointer(content: bytes) -> bytes:
    """What git holds of a file in LFS."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(content)}\nsize {len(content)}\n".encode()


def is_text(sample: bytes) -> bool:
    """Whether a file that begins so is text; a sample may end within a character."""
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data" and len(sample) >= SAMPLE
    return b"\0" not in sample


def matches(path: str, patterns: Iterable[str]) -> bool:
    """As .gitattributes and .gitignore match, near enough: by the path, the name or a folder above."""
    parts = path.split("/")
    above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    tried = [*above, *parts]
    return any(fnmatch(name, pattern.strip("/")) for pattern in patterns for name in tried)


def illegal(path: str) -> bool:
    """Whether no file of a repository may have this path."""
    parts = re.split(r"[/\\]", path)
    return not path or "\0" in path or bool({"", ".", "..", ".git"} & set(parts))


# ---------------------------------------------------------------------------------------------------------------------
# Commits


class Commit(NamedTuple):
    oid: str
    summary: str
    changed: tuple[str, ...]  # the paths that this commit added or replaced
    files: dict[str, bytes]  # the whole tree after it
    removed: tuple[str, ...] = ()
    large: frozenset[str] = frozenset()  # the paths in LFS
    parent: "Commit | None" = None
    description: str = ""
    author: str = ""
    date: str = EPOCH

    def __repr__(self) -> str:
        return f"Commit({self.oid[:10]}, {self.summary!r})"  # without its files and its history

    def etag(self, path: str) -> str:
        """What identifies a file's content: SHA-256 in LFS, git's SHA-1 otherwise."""
        return (sha256 if path in self.large else git_sha1)(self.files[path])

    def blob(self, path: str) -> str:
        return git_sha1(pointer(self.files[path]) if path in self.large else self.files[path])

    def history(self) -> Iterator["Commit"]:
        """This commit and those before it."""
        commit = self
        while commit is not None:
            yield commit
            commit = commit.parent

    def last(self, path: str) -> "Commit":
        """The commit by which a file, or something in a folder, is what it is."""
        touched = (one for one in self.history() if any(f"{name}/".startswith(f"{path}/") for name in one.changed))
        return next(touched, self)

    def folders(self) -> set[str]:
        return {path[: slash.start()] for path in self.files for slash in re.finditer("/", path)}

    def text(self, path: str) -> str:
        return self.files.get(path, b"").decode("utf-8", "replace")

    def patterns(self) -> list[str]:
        """What its .gitattributes says to be large."""
        return [line.split()[0] for line in self.text(".gitattributes").splitlines() if "filter=lfs" in line]


class Repository:
    """Branches of commits. The first commit is empty, or holds the .gitattributes that it has on the real Hub."""

    def __init__(self, name: str, private: bool = False, attributes: bool = False):
        self.name = name
        self.private = private
        self.gated: str | bool = False  # "auto", "manual"
        self.listed: set[str] = set()  # who may read it although it is gated
        self.objects: dict[str, bytes] = {}  # what LFS holds, by SHA-256
        self.parts: dict[str, dict[int, bytes]] = {}  # what has arrived of objects that are sent in parts
        self.tags: dict[str, Commit] = {}
        files = {".gitattributes": ATTRIBUTES} if attributes else {}
        first = Commit(self.oid("initial commit", files), "initial commit", tuple(files), files)
        self.commits: list[Commit] = [first]
        self.branches: dict[str, Commit] = {"main": first}

    def oid(self, *parts) -> str:
        return hashlib.sha1(repr((self.name, *parts)).encode()).hexdigest()

    def commit(
        self,
        branch: str,
        summary: str,
        added: Mapping[str, bytes],
        removed: Iterable[str] = (),
        large: Iterable[str] = (),
        description: str = "",
        author: str = "",
    ) -> Commit:
        """Put a commit on a branch. Of the paths that are added, `large` are in LFS."""
        parent = self.branches[branch]
        gone = set(removed) - set(added)
        files = {path: content for path, content in parent.files.items() if path not in gone} | dict(added)
        in_lfs = (parent.large - set(added) | set(large)) & set(files)
        self.objects |= {sha256(files[path]): files[path] for path in large}
        commit = Commit(
            oid=self.oid(len(self.commits), parent.oid, summary, sorted(files.items())),
            summary=summary,
            changed=tuple(added),
            files=files,
            removed=tuple(sorted(gone)),
            large=frozenset(in_lfs),
            parent=parent,
            description=description,
            author=author,
            date=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}.000Z",
        )
        self.commits.append(commit)
        self.branches[branch] = commit
        return commit

    def find(self, revision: str) -> Commit | None:
        """A commit by branch, tag or id, of which seven digits are enough."""
        named = self.branches.get(revision) or self.tags.get(revision)
        if named or not re.fullmatch(r"[0-9a-f]{7,40}", revision):
            return named
        return next((commit for commit in self.commits if commit.oid.startswith(revision)), None)
