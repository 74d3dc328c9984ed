"""A Hub for tests: the few HTTP routes by which `huggingface_hub` creates a repository, commits to it and reads it.

Loopback, an ephemeral port, the standard library, everything in memory:

    with HubServer() as hub:
        ...  # another process, with HF_ENDPOINT=hub.endpoint (read at import) and any HF_TOKEN
        hub.repositories["user/name"].branches["main"].files["config.json"]

Every file travels inside its commit ("regular"): no LFS, no Xet. Writing needs a token, as on the real one.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote, urlsplit


REPO = r"(?P<repo>[^/]+/[^/]+)"
USER = "user"  # whom every token belongs to


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Commit(NamedTuple):
    oid: str
    summary: str
    changed: tuple[str, ...]  # the paths that this commit added or replaced
    files: dict[str, bytes]  # the whole tree after it


class Repository:
    """Branches of commits. The first commit is empty, as on the Hub."""

    def __init__(self, name: str):
        self.name = name
        self.commits: list[Commit] = []
        self.branches: dict[str, Commit] = {}
        self.branches["main"] = Commit(self.new_oid(), "initial commit", (), {})
        self.commits.append(self.branches["main"])

    def new_oid(self) -> str:
        return hashlib.sha1(f"{self.name} {len(self.commits)}".encode()).hexdigest()

    def commit(self, branch: str, summary: str, added: dict[str, bytes]) -> Commit:
        commit = Commit(self.new_oid(), summary, tuple(added), {**self.branches[branch].files, **added})
        self.commits.append(commit)
        self.branches[branch] = commit
        return commit

    def find(self, revision: str) -> Commit | None:
        """A commit by branch or id."""
        by_oid = {commit.oid: commit for commit in self.commits}
        return self.branches.get(revision) or by_oid.get(revision)


class Missing(Exception):
    """What the Hub calls a 404: RepoNotFound, RevisionNotFound or EntryNotFound."""

    def __init__(self, code: str, commit: Commit | None = None):
        self.headers = {"X-Error-Code": code, **({"X-Repo-Commit": commit.oid} if commit else {})}


class HubServer:
    """`repositories` and `requests` are what a test looks at."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []  # (method, path)
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def repository(self, name: str) -> Repository:
        if name not in self.repositories:
            raise Missing("RepoNotFound")
        return self.repositories[name]

    def revision(self, name: str, revision: str) -> Commit:
        commit = self.repository(name).find(unquote(revision))
        if commit is None:
            raise Missing("RevisionNotFound")
        return commit


class Handler(BaseHTTPRequestHandler):
    """One method per route, as `ROUTES` below says. Each gets the body and the parts of the path, and gives back
    (status, headers, body)."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    # -- write -------------------------------------------------------------------------------------------------------

    def create(self, body):
        name = f"{body.get('organization') or USER}/{body['name']}"
        status = 409 if name in self.hub.repositories else 200
        self.hub.repositories.setdefault(name, Repository(name))
        return self.json({"url": f"{self.hub.endpoint}/{name}"}, status)

    def validate_yaml(self, body):
        return self.json({"errors": [], "warnings": []})

    def preupload(self, body, repo, revision):
        self.hub.revision(repo, revision)
        keys = {"uploadMode": "regular", "shouldIgnore": False}
        return self.json({"files": [{"path": file["path"], **keys} for file in body["files"]]})

    def commit(self, body, repo, revision):
        header, *changes = map(json.loads, body.splitlines())
        added = {}
        for change in changes:
            if change["key"] != "file":
                raise NotImplementedError(change["key"])  # lfsFile, deletedFile, deletedFolder
            added[change["value"]["path"]] = base64.b64decode(change["value"]["content"])
        self.hub.revision(repo, revision)
        commit = self.hub.repository(repo).commit(unquote(revision), header["value"]["summary"], added)
        return self.json({"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{commit.oid}", "commitOid": commit.oid})

    def branch(self, body, repo, revision):
        branches = self.hub.repository(repo).branches
        status = 409 if unquote(revision) in branches else 200
        branches.setdefault(unquote(revision), branches["main"])
        return self.json({}, status)

    # -- read --------------------------------------------------------------------------------------------------------

    def info(self, body, repo, revision="main"):
        commit = self.hub.revision(repo, revision)
        flags = {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        siblings = [{"rfilename": path} for path in commit.files]
        return self.json({"id": repo, "modelId": repo, "sha": commit.oid, "siblings": siblings, **flags})

    def tree(self, body, repo, revision, folder=""):
        commit = self.hub.revision(repo, revision)
        return self.json(
            [
                {"type": "file", "path": path, "oid": git_sha1(content), "size": len(content)}
                for path, content in commit.files.items()
                if path.startswith(folder)
            ]
        )

    def resolve(self, body, repo, revision, path):
        commit = self.hub.revision(repo, revision)
        content = commit.files.get(unquote(path))
        if content is None:
            raise Missing("EntryNotFound", commit)
        headers = {"Content-Type": "application/octet-stream", "ETag": f'"{git_sha1(content)}"'}
        return 200, {**headers, "X-Repo-Commit": commit.oid}, content

    # -- plumbing ----------------------------------------------------------------------------------------------------

    def json(self, value, status: int = 200):
        return status, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def answer(self):
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, path))
        if self.headers.get("Content-Type", "").startswith("application/json"):
            body = json.loads(body)
        try:
            status, headers, content = self.route(path, body)
        except Missing as missing:
            status, headers, content = 404, missing.headers, b""
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def route(self, path, body):
        if self.command == "POST" and not self.headers.get("Authorization"):
            return self.json({"error": "Invalid username or password."}, 401)
        for method, pattern, handler in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                return handler(self, body, **match.groupdict())
        raise Missing("EntryNotFound")

    do_GET = do_HEAD = do_POST = answer

    def log_message(self, *args):
        """Silent: tests look at `requests`."""


ROUTES = [
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    ("POST", rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)", Handler.commit),
    ("POST", rf"/api/models/{REPO}/branch/(?P<revision>[^/]+)", Handler.branch),
    ("GET", rf"/api/models/{REPO}/revision/(?P<revision>[^/]+)", Handler.info),
    ("GET", rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)", Handler.tree),
    ("GET", rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)/(?P<folder>.+)", Handler.tree),
    ("GET", rf"/api/models/{REPO}", Handler.info),
    ("GET HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]
