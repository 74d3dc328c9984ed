"""The routes of the Hub of the tests (`hub_server.py`): a function for each, and the table of them at the end.

Each gets the request (the `Handler` of `hub_server.py`: `hub`, `account`, `query`, `headers`, `body`, `json()`) and
the parts of its path, `repo` as the Repository where the table says that it is read or written; it gives an answer.
"""

import hashlib
import json
import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

import hub_metadata
from hub_changes import Change
from hub_faults import STATUSES
from hub_messages import (
    Answer,
    Refused,
    as_json,
    check_reference,
    decoded,
    field,
    file_entry,
    folder_entry,
    parse,
    ranged,
    references,
    sibling,
    visibility,
)
from hub_repository import Commit, Repository, matches, sha256


# ---------------------------------------------------------------------------------------------------------------------
# Who


def whoami(request):
    return as_json(request.account.as_json())


def auth_check(request, repo):
    return as_json({})


# ---------------------------------------------------------------------------------------------------------------------
# Repositories


def create(request):
    body = request.json()
    owner = field(body, "organization", str, request.account.name)
    name = f"{owner}/{field(body, 'name', str)}"
    if field(body, "type", str, "model") != "model":
        raise Refused(501, "only models are served here")
    if not re.fullmatch(r"\w[\w.-]{0,94}\w|\w", name.split("/", 1)[1]) or re.search(r"--|\.\.|\.git$", name):
        raise Refused(400, f"Invalid name of a repository: {name!r}")
    if not request.account.may_write(name):
        raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
    url = {"url": f"{request.hub.endpoint}/{name}"}
    if request.hub.repository(name):
        return as_json({"error": "You already created this model repo", **url}, 409)
    private = bool(visibility(body))
    request.hub.repositories[name] = Repository(name, private, request.hub.gitattributes)
    return as_json({**url, "name": name, "private": private})


def delete(request):
    body = request.json()
    name = f"{field(body, 'organization', str, request.account.name)}/{field(body, 'name', str)}"
    repository = request.admitted(name, "write")
    del request.hub.repositories[repository.name]
    return 200, {"Content-Type": "text/plain"}, b"OK"


def move(request):
    body = request.json()
    repository = request.admitted(field(body, "fromRepo", str), "write")
    name = field(body, "toRepo", str)
    if request.hub.repository(name):
        raise Refused(409, f"A model repository called {name} already exists")
    if not request.account.may_write(name):
        raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{name.split("/")[0]}"')
    request.hub.repositories[name] = request.hub.repositories.pop(repository.name)
    request.hub.moved[repository.name.lower()] = name
    repository.name = name
    return 200, {"Content-Type": "text/plain"}, b"OK"


def settings(request, repo):
    body = request.json()
    private, gated = visibility(body), field(body, "gated", object, repo.gated)
    if gated not in (False, "auto", "manual"):
        raise Refused(400, '"gated" must be one of [auto, manual, false]')
    repo.private = repo.private if private is None else private
    repo.gated = gated
    return as_json({"private": repo.private, "gated": repo.gated})


def branch(request, repo, revision):
    name = check_reference(revision, "branch")
    start = find(repo, field(request.json(), "startingPoint", str, "main"))
    if name in repo.branches:
        raise Refused(409, f"Reference refs/heads/{name} already exists")
    repo.branches[name] = start
    return as_json({})


def delete_branch(request, repo, revision):
    if revision == "main":
        raise Refused(403, "Cannot delete refs/heads/main")
    if repo.branches.pop(revision, None) is None:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return as_json({})


def tag(request, repo, revision):
    commit = find(repo, revision)
    name = check_reference(field(request.json(), "tag", str), "tag")
    if name in repo.tags:
        raise Refused(409, f"Tag reference exists already: {name}")
    repo.tags[name] = commit
    return as_json({})


def delete_tag(request, repo, revision):
    if repo.tags.pop(revision, None) is None:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return as_json({})


# ---------------------------------------------------------------------------------------------------------------------
# Write


def validate_yaml(request):
    body = request.json()
    errors, warnings = hub_metadata.check(field(body, "content", str))
    status = 400 if errors else 200
    if "text/plain" in request.headers.get("Accept", ""):
        lines = [f"- Error: {one}" for one in errors] + [f"- Warning: {one}" for one in warnings]
        return status, {"Content-Type": "text/plain; charset=utf-8"}, "\n".join(lines).encode()
    found = {"errors": [{"message": one} for one in errors], "warnings": [{"message": one} for one in warnings]}
    return as_json(found, status)


def preupload(request, repo, revision):
    refuse_pull_request(request)
    commit, body = branch_head(repo, revision), request.json()
    rules = field(body, "gitIgnore", str, commit.text(".gitignore")).splitlines()
    ignored = [line.strip() for line in rules if line.strip() and not line.startswith("#")]
    answers = []
    for file in field(body, "files", list):
        path, size = field(file, "path", str), field(file, "size", int)
        large = request.hub.is_large(commit, path, size, decoded(field(file, "sample", str)))
        known = {"oid": commit.etag(path)} if path in commit.files else {}
        mode = {"uploadMode": "lfs" if large else "regular", "shouldIgnore": matches(path, ignored)}
        answers.append({"path": path, **mode, **known})
    return as_json({"files": answers})


def commit(request, repo, revision):
    refuse_pull_request(request)
    before = branch_head(repo, revision)
    header, *lines = [parse(line) for line in request.body.splitlines() if line.strip()] or [None]
    if field(header, "key", str) != "header":
        raise Refused(400, 'The first line must have the key "header"')
    said = field(header, "value", dict)
    summary = field(said, "summary", str)
    if not summary:
        raise Refused(400, '"summary" is not allowed to be empty')
    if not lines:
        raise Refused(400, "Add a line with the key `lfsFile`, `file` or `deletedFile`")
    if field(said, "parentCommit", str, before.oid) != before.oid:
        raise Refused(412, STATUSES[412][0])
    change = Change(request.hub, repo, before)
    for line in lines:
        change.apply(line)
    change.check_card()
    about = {"description": field(said, "description", str, ""), "author": request.account.name}
    made = repo.commit(revision, summary, change.added, change.removed, change.large, **about)
    url = f"{request.hub.endpoint}/{repo.name}/commit/{made.oid}"
    return as_json({"success": True, "commitUrl": url, "commitOid": made.oid, "hookOutput": ""})


def refuse_pull_request(request):
    if "create_pr" in request.query:
        raise Refused(501, "pull requests are not served here")


def branch_head(repo, revision) -> Commit:
    if revision not in repo.branches:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return repo.branches[revision]


# ---------------------------------------------------------------------------------------------------------------------
# Large files


def lfs_batch(request, repo):
    body = request.json()
    if field(body, "operation", str) != "upload":
        raise Refused(422, '"operation" must be one of [upload]')
    objects = [lfs_object(request, repo, one) for one in field(body, "objects", list)]
    headers = {"Content-Type": "application/vnd.git-lfs+json"}
    return as_json({"transfer": "basic", "objects": objects}, **headers)


def lfs_object(request, repo, wanted) -> dict:
    """What a client is to do with one file: nothing if it is there."""
    oid, size = field(wanted, "oid", str), field(wanted, "size", int)
    found = {"oid": oid, "size": size}
    if not re.fullmatch("[0-9a-f]{64}", oid) or size < 0:
        return {**found, "error": {"code": 422, "message": "Invalid oid or size"}}
    if oid in repo.objects:
        return found
    upload = {"href": content_url(request, repo, oid)}
    if request.hub.part_size is not None and size > request.hub.part_size:
        parts = range(1, -(-size // request.hub.part_size) + 1)
        header = {str(part): content_url(request, repo, oid, part) for part in parts}
        upload["href"] = content_url(request, repo, oid, "complete")
        upload["header"] = {"chunk_size": str(request.hub.part_size), **header}
    verify = {"href": f"{request.hub.endpoint}/{repo.name}.git/info/lfs/objects/verify"}
    return {**found, "actions": {"upload": upload, "verify": verify}}


def lfs_verify(request, repo):
    body = request.json()
    content = repo.objects.get(field(body, "oid", str))
    if content is None or len(content) != field(body, "size", int):
        raise Refused(404, "The object does not exist, or not in this size")
    return as_json({})


def content_url(request, repo, oid, part="", **query) -> str:
    """An address that is its own permission."""
    path = f"{repo.name}/{oid}" + (f"/{part}" if part else "")
    signature = request.hub.signature(repo.name, oid, str(part))
    return f"{request.hub.cdn}/cdn/{path}?{urlencode({**query, 'Signature': signature})}"


def signed(request, repo, oid, part="") -> Repository:
    found = request.hub.repository(repo)
    if found is None or request.query.get("Signature") != [request.hub.signature(found.name, oid, part)]:
        raise Refused(403, "SignatureDoesNotMatch")
    return found


def put_content(request, repo, oid):
    store(signed(request, repo, oid), oid, request.body)
    return 200, {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'}, b""


def put_part(request, repo, oid, part):
    signed(request, repo, oid, part).parts.setdefault(oid, {})[int(part)] = request.body
    return 200, {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'}, b""


def complete(request, repo, oid):
    found = signed(request, repo, oid, "complete")
    numbers = [field(part, "partNumber", int) for part in field(request.json(), "parts", list)]
    arrived = found.parts.pop(oid, {})
    if sorted(arrived) != numbers:
        raise Refused(400, f"Parts {numbers} were announced, {sorted(arrived)} have arrived")
    store(found, oid, b"".join(arrived[number] for number in numbers))
    return as_json({})


def store(repository: Repository, oid: str, content: bytes) -> None:
    if sha256(content) != oid:
        raise Refused(400, "BadDigest: the content is not what its SHA-256 says")
    repository.objects[oid] = content


def get_content(request, repo, oid):
    content = signed(request, repo, oid).objects.get(oid)
    if content is None:
        raise Refused(404, "NoSuchKey")
    return ranged(content, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'}, request.headers.get("Range"))


# ---------------------------------------------------------------------------------------------------------------------
# Read


def info(request, repo, revision="main"):
    commit = find(repo, revision)
    card = hub_metadata.read(commit.text("README.md"))
    tags = card.get("tags") if isinstance(card.get("tags"), list) else []
    known = {"id": repo.name, "modelId": repo.name, "author": repo.name.split("/")[0], "sha": commit.oid}
    flags = {"private": repo.private, "gated": repo.gated, "disabled": False, "downloads": 0, "likes": 0}
    dates = {"createdAt": repo.commits[0].date, "lastModified": commit.date, "tags": tags}
    data = {"cardData": card} if card else {}
    data |= {key: card[key] for key in ("pipeline_tag", "library_name", "model-index") if key in card}
    page = {**known, **flags, **dates, **data}
    page["siblings"] = [sibling(commit, path, "blobs" in request.query) for path in sorted(commit.files)]
    if "securityStatus" in request.query:
        page["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": []}
    if "expand" in request.query:
        page = {key: value for key, value in page.items() if key in ("id", *request.query["expand"])}
    return as_json(page)


def refs(request, repo):
    found = {"branches": references("heads", repo.branches), "converts": [], "tags": references("tags", repo.tags)}
    return as_json({**found, "pullRequests": []} if "include_prs" in request.query else found)


def commits(request, repo, revision):
    found = [
        {
            "id": commit.oid,
            "title": commit.summary,
            "message": commit.description,
            "authors": [{"user": commit.author or repo.name.split("/")[0]}],
            "date": commit.date,
        }
        for commit in find(repo, revision).history()
    ]
    return paged(request, found)


def tree(request, repo, revision, folder=""):
    commit, below = find(repo, revision), f"{folder}/" if folder else ""
    entries = dict.fromkeys(commit.files, file_entry) | dict.fromkeys(commit.folders(), folder_entry)
    inside = {path: entry for path, entry in entries.items() if path.startswith(below)}
    if folder and not inside:
        raise no_entry(commit, folder)
    if not asked(request, "recursive"):
        inside = {path: entry for path, entry in inside.items() if "/" not in path.removeprefix(below)}
    expand = asked(request, "expand")
    return paged(request, [inside[path](commit, path, expand) for path in sorted(inside)])


def paths_info(request, repo, revision):
    commit = find(repo, revision)
    if request.headers.get("Content-Type", "").startswith("application/json"):
        paths, expand = field(request.json(), "paths", list), field(request.json(), "expand", bool, False)
    else:
        form = parse_qs(request.body.decode("utf-8", "replace"))
        paths, expand = form.get("paths", []), form.get("expand", [""])[0].lower() == "true"
    files = [file_entry(commit, path, expand) for path in paths if path in commit.files]
    return as_json(files + [folder_entry(commit, path, expand) for path in paths if path in commit.folders()])


def resolve(request, repo, revision, path):
    refuse_gated(request, repo)
    commit = find(repo, revision)
    if path not in commit.files:
        raise no_entry(commit, path)
    content, name = commit.files[path], path.rsplit("/", 1)[-1]
    shown = f"inline; filename*=UTF-8''{urlencode({'': name})[1:]}; filename={json.dumps(name)};"
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes", "Content-Disposition": shown}
    if path not in commit.large:
        return ranged(content, {**headers, "ETag": f'"{commit.etag(path)}"'}, request.headers.get("Range"))
    url = content_url(request, repo, commit.etag(path), filename=name)
    linked = {"X-Linked-Etag": f'"{commit.etag(path)}"', "X-Linked-Size": str(len(content)), "Location": url}
    return 302, {**headers, **linked, "Content-Type": "text/plain"}, f"Found. Redirecting to {url}".encode()


def refuse_gated(request, repo):
    name, account = repo.name, request.account
    restricted = f"Access to model {name} is restricted"
    if repo.gated and account is None:
        raise Refused(401, f"{restricted}. You must have access to it and be authenticated.", "GatedRepo")
    if repo.gated and not account.may_read(name) and account.name not in repo.listed:
        raise Refused(403, f"{restricted} and you are not in the authorized list.", "GatedRepo")


def no_entry(commit: Commit, path: str) -> Refused:
    return Refused(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)


def find(repo: Repository, revision: str) -> Commit:
    commit = repo.find(revision)
    if commit is None:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def asked(request, flag: str) -> bool:
    return request.query.get(flag, [""])[0].lower() in ("true", "1")


def paged(request, entries: list) -> Answer:
    """One page of a list, with the address of the next."""
    size, start = request.hub.page_size, int(request.query.get("cursor", ["0"])[0])
    query = urlencode({**request.query, "cursor": start + size}, doseq=True)
    more = start + size < len(entries)
    link = {"Link": f'<{request.hub.endpoint}{urlsplit(request.path).path}?{query}>; rel="next"'} if more else {}
    return as_json(entries[start : start + size], **link)


# ---------------------------------------------------------------------------------------------------------------------
# The table

REPO = r"(?P<repo>[^/]+(?:/[^/]+)?)"  # those without an owner exist on the real one
REVISION = r"(?P<revision>[^/]+)"
OBJECT = r"(?P<repo>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})"


class Route(NamedTuple):
    methods: str
    pattern: str
    handler: Callable[..., Answer]
    needs: str | None  # an "account"; the right to "read" or "write" the repository; nothing


ROUTES = [
    Route("GET", r"/api/whoami-v2", whoami, "account"),
    Route("POST", r"/api/repos/create", create, "account"),
    Route("DELETE", r"/api/repos/delete", delete, "account"),
    Route("POST", r"/api/repos/move", move, "account"),
    Route("POST", r"/api/validate-yaml", validate_yaml, None),
    Route("GET", rf"/api/models/{REPO}/auth-check", auth_check, "read"),
    Route("GET", rf"/api/models/{REPO}/auth-check/write", auth_check, "write"),
    Route("PUT", rf"/api/models/{REPO}/settings", settings, "write"),
    Route("POST", rf"/api/models/{REPO}/branch/{REVISION}", branch, "write"),
    Route("DELETE", rf"/api/models/{REPO}/branch/{REVISION}", delete_branch, "write"),
    Route("POST", rf"/api/models/{REPO}/tag/{REVISION}", tag, "write"),
    Route("DELETE", rf"/api/models/{REPO}/tag/{REVISION}", delete_tag, "write"),
    Route("POST", rf"/api/models/{REPO}/preupload/{REVISION}", preupload, "write"),
    Route("POST", rf"/api/models/{REPO}/commit/{REVISION}", commit, "write"),
    Route("POST", rf"/{REPO}\.git/info/lfs/objects/batch", lfs_batch, "write"),
    Route("POST", rf"/{REPO}\.git/info/lfs/objects/verify", lfs_verify, "write"),
    Route("PUT", rf"/cdn/{OBJECT}", put_content, None),
    Route("PUT", rf"/cdn/{OBJECT}/(?P<part>\d+)", put_part, None),
    Route("POST", rf"/cdn/{OBJECT}/complete", complete, None),
    Route("GET HEAD", rf"/cdn/{OBJECT}", get_content, None),
    Route("GET", rf"/api/models/{REPO}/revision/{REVISION}", info, "read"),
    Route("GET", rf"/api/models/{REPO}/refs", refs, "read"),
    Route("GET", rf"/api/models/{REPO}/commits/{REVISION}", commits, "read"),
    Route("GET", rf"/api/models/{REPO}/tree/{REVISION}", tree, "read"),
    Route("GET", rf"/api/models/{REPO}/tree/{REVISION}/(?P<folder>.+)", tree, "read"),
    Route("POST", rf"/api/models/{REPO}/paths-info/{REVISION}", paths_info, "read"),
    Route("GET", rf"/api/models/{REPO}", info, "read"),
    Route("GET HEAD", rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)", resolve, "read"),
]
