"""The Hub of the tests, asked by clients that know nothing of it: `HfApi` of huggingface_hub and the `hf` command.

What they send is theirs, what they make of an answer is compared with what was put in, with hashes of git and LFS, and
with the words of the real Hub where its own clients' tests and bug reports quote them.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from hub_metadata import LICENSES
from hub_repository import ATTRIBUTES
from hub_server import Account, HubServer
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
    file_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _detect_agent, _http, close_session, sha


NAME = "user/model"
WEIGHTS = bytes(range(256)) * 20  # no text
CARD = "---\nlicense: mit\ntags:\n- small\n---\n\n# A model\n"
FILES = {"config.json": b"{}\n", "model.safetensors": WEIGHTS, "README.md": CARD.encode(), "figures/a.png": b"\0PNG"}


# huggingface_hub sends bytes in a way that its transport wants to be rid of.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture(scope="module")
def session():
    """One client for all tests: to make one takes longer than most of them."""
    close_session()
    huggingface_hub.utils.disable_progress_bars()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "*")
        yield
    huggingface_hub.utils.enable_progress_bars()
    close_session()


@pytest.fixture
def waits(session, monkeypatch):
    """The client is online, and notes how long it would wait between two attempts."""
    waits = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_detect_agent, "_registry", {})  # or it asks the real Hub
    monkeypatch.setattr(_http.time, "sleep", waits.append)
    return waits


@pytest.fixture(params=["regular", "lfs", "hub"])
def any_hub(request, waits):
    with HubServer(request.param) as server:
        yield server


@pytest.fixture
def hub(waits):
    with HubServer() as server:
        yield server


@pytest.fixture
def lfs_hub(waits):
    with HubServer("lfs") as server:
        yield server


def client(hub, token="hf_secret") -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token)


def put(hub, files=FILES, summary="put", name=NAME, **options):
    """Commit files by the stock client; makes the repository if need be."""
    api = client(hub)
    api.create_repo(name, exist_ok=True)
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(name, operations, commit_message=summary, **options)


def head(hub, branch="main", name=NAME):
    return hub.repositories[name].branches[branch]


def read(hub, path, tmp_path, **options) -> bytes:
    file = client(hub).hf_hub_download(NAME, path, cache_dir=tmp_path, **options)
    return Path(file).read_bytes()


def raw(hub, method, path, body=None, token="hf_secret", **headers):
    """A request as nobody's client sends it: (status, headers, body)."""
    connection = HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=10)
    sent = {"Authorization": f"Bearer {token}"} if token else {}
    connection.request(method, path, body, {**sent, **headers})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def count(hub, method, part) -> int:
    return sum(method == one and part in path for one, path in hub.requests)


# ---------------------------------------------------------------------------------------------------------------------
# Who


def test_whoami_tells_the_token_and_the_organizations(hub):
    """Of a write, a read and a fine-grained token, against the accounts that were put in."""
    scopes = {"user/model": ("repo.content.read", "repo.write"), "team": ("repo.content.read",)}
    hub.tokens["w"] = Account()
    hub.tokens["r"] = Account("someone", "read", {"team": "read"})
    hub.tokens["f"] = Account("user", "fineGrained", {"team": "write"}, scopes)
    told = {token: client(hub, token).whoami() for token in hub.tokens}
    tokens = {token: page["auth"]["accessToken"] for token, page in told.items()}
    assert {token: (page["name"], page["type"]) for token, page in told.items()} == {
        "w": ("user", "user"),
        "r": ("someone", "user"),
        "f": ("user", "user"),
    }
    assert [token["role"] for token in tokens.values()] == ["write", "read", "fineGrained"]
    assert all(token["displayName"] for token in tokens.values())
    assert [(org["name"], org["roleInOrg"]) for org in told["r"]["orgs"]] == [("team", "read")]
    scoped = tokens["f"]["fineGrained"]["scoped"]
    assert {one["entity"]["name"]: (one["entity"]["type"], tuple(one["permissions"])) for one in scoped} == {
        "user/model": ("model", scopes["user/model"]),
        "team": ("org", scopes["team"]),
    }


def test_an_unknown_token_is_refused_everywhere(hub):
    """With `tokens` set, others are none: 401, and not as if the repository were missing."""
    put(hub)
    assert client(hub, "anything").whoami()["name"] == "user"  # any token will do while none is set
    hub.tokens["good"] = Account()
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        client(hub, "bad").whoami()
    with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header") as error:
        client(hub, "bad").model_info(NAME)
    assert error.value.response.status_code == 401 and not isinstance(error.value, RepositoryNotFoundError)
    assert client(hub, "good").model_info(NAME).id == NAME


WRITES = {
    "create_repo": lambda api: api.create_repo("user/other"),
    "create_commit": lambda api: api.create_commit(NAME, [CommitOperationAdd("a", b"a")], commit_message="m"),
    "create_branch": lambda api: api.create_branch(NAME, branch="b"),
    "delete_branch": lambda api: api.delete_branch(NAME, branch="dev"),
    "create_tag": lambda api: api.create_tag(NAME, tag="t"),
    "delete_tag": lambda api: api.delete_tag(NAME, tag="v1"),
    "update_repo_settings": lambda api: api.update_repo_settings(NAME, private=True),
    "delete_repo": lambda api: api.delete_repo(NAME),
    "move_repo": lambda api: api.move_repo(NAME, "user/other"),
    "auth_check": lambda api: api.auth_check(NAME, write=True),
}


@pytest.mark.parametrize("call", WRITES)
def test_who_may_not_write_does_not(hub, call):
    """A read token, a stranger, another person, a narrow fine-grained token: refused, and nothing has changed."""
    put(hub)
    client(hub).create_branch(NAME, branch="dev")
    client(hub).create_tag(NAME, tag="v1")
    hub.tokens["r"] = Account("user", "read")
    hub.tokens["o"] = Account("other")
    hub.tokens["member"] = Account("third", orgs={"user": "read"})
    hub.tokens["narrow"] = Account("user", "fineGrained", scopes={"user": ["repo.content.read"]})
    statuses = []
    for token in ("r", "o", "member", "narrow", False):
        with pytest.raises(HfHubHTTPError) as error:
            WRITES[call](client(hub, token))
        statuses.append(error.value.response.status_code)
    assert statuses == [403, 403, 403, 403, 401]
    repository = hub.repositories[NAME]
    assert list(hub.repositories) == [NAME] and not repository.private
    assert (set(repository.branches), set(repository.tags)) == ({"main", "dev"}, {"v1"})
    assert len(repository.commits) == 2


def test_a_fine_grained_token_writes_where_it_may(hub):
    """One repository, and no other of the same person."""
    put(hub)
    put(hub, name="user/closed")
    hub.tokens["f"] = Account("user", "fineGrained", scopes={NAME: ["repo.write"]})
    api = client(hub, "f")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=NAME)
    assert head(hub).files["x"] == b"x"
    with pytest.raises(HfHubHTTPError, match="you must use a write token"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="user/closed")


# ---------------------------------------------------------------------------------------------------------------------
# Repositories


def test_create_repo(hub):
    """Address, visibility and the answer where it exists, in one's own name and in an organization's."""
    hub.tokens["t"] = Account("user", orgs={"team": "write"})
    api = client(hub, "t")
    assert api.create_repo("model", private=True) == f"{hub.endpoint}/user/model"
    assert api.create_repo("team/model").repo_id == "team/model"
    assert {name: one.private for name, one in hub.repositories.items()} == {"user/model": True, "team/model": False}
    with pytest.raises(HfHubHTTPError, match="You already created this model repo") as error:
        api.create_repo("user/model")
    assert error.value.response.status_code == 409
    assert api.create_repo("user/model", exist_ok=True).repo_id == "user/model"
    with pytest.raises(HfHubHTTPError, match='rights to create a model under the namespace "strange"'):
        api.create_repo("strange/model")


@pytest.mark.parametrize("name", ["a--b", "a..b", "-a", "a/b", "a" * 97, "a.git", ""])
def test_illegal_names_are_refused(hub, name):
    """The stock client does not even send most of them."""
    status, _, body = raw(hub, "POST", "/api/repos/create", json.dumps({"name": name}))
    assert status == 400 and "Invalid name" in json.loads(body)["error"]
    assert not hub.repositories


def test_a_new_repository_is_as_on_the_hub(waits):
    """One commit; with the .gitattributes of the real one where that is asked for."""
    for given, files in {None: {}, True: {".gitattributes": ATTRIBUTES}}.items():
        with HubServer(gitattributes=given) as hub:
            client(hub).create_repo(NAME)
            assert head(hub).files == files
            assert [one.title for one in client(hub).list_repo_commits(NAME)] == ["initial commit"]
            assert client(hub).list_repo_files(NAME) == list(files)
    assert b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n" in ATTRIBUTES


def test_private_repositories_are_not_seen(hub, tmp_path):
    """401 RepoNotFound to a stranger, 404 to another person, the file to the owner; all of them once it is public."""
    put(hub)
    client(hub).update_repo_settings(NAME, private=True)
    hub.tokens.update(o=Account("other"), hf_secret=Account())
    looks = (HfApi.model_info, HfApi.list_repo_refs, HfApi.list_repo_commits, HfApi.list_repo_files)
    for token, status in {False: 401, "o": 404}.items():
        for look in looks:
            with pytest.raises(RepositoryNotFoundError) as error:
                look(client(hub, token), NAME)
            assert error.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            client(hub, token).hf_hub_download(NAME, "config.json", cache_dir=tmp_path / "none")
        assert not client(hub, token).file_exists(NAME, "config.json")
    assert client(hub).model_info(NAME).private
    assert read(hub, "config.json", tmp_path) == FILES["config.json"]
    client(hub).update_repo_settings(NAME, private=False)
    assert client(hub, False).file_exists(NAME, "config.json")


def test_missing_repositories_look_like_private_ones(hub):
    """The same answers for what is not there; also for names without an owner."""
    for token, status in {False: 401, "hf_secret": 404}.items():
        for name in (NAME, "gpt2"):
            with pytest.raises(RepositoryNotFoundError) as error:
                client(hub, token).model_info(name)
            assert error.value.response.status_code == status


def test_gated_repositories(hub):
    """Everybody sees that they are there; files are for the owner and for who is on the list."""
    put(hub)
    client(hub).update_repo_settings(NAME, gated="manual")
    hub.tokens.update(o=Account("other"), l=Account("listed"), hf_secret=Account())
    hub.repositories[NAME].listed.add("listed")
    assert client(hub, "o").model_info(NAME).gated == "manual"
    for token, status in {False: 401, "o": 403}.items():
        with pytest.raises(GatedRepoError) as error:
            client(hub, token).file_exists(NAME, "config.json")
        assert error.value.response.status_code == status
    assert client(hub, "l").file_exists(NAME, "config.json") and client(hub).file_exists(NAME, "config.json")


def test_delete_and_move(hub, tmp_path):
    """A deleted repository is gone; one that moved is found by its old name too, and its name is taken."""
    put(hub)
    put(hub, name="user/second")
    api = client(hub)
    with pytest.raises(HfHubHTTPError, match=r"A model repository called .* already exists"):
        api.move_repo(NAME, "user/second")
    api.move_repo(NAME, "user/renamed")
    assert set(hub.repositories) == {"user/renamed", "user/second"}
    assert api.model_info(NAME).id == "user/renamed"
    assert read(hub, "model.safetensors", tmp_path) == WEIGHTS
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=NAME)
    assert head(hub, name="user/renamed").files["x"] == b"x"
    api.delete_repo("user/renamed")
    assert not api.repo_exists("user/renamed") and not api.repo_exists(NAME)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("user/renamed")
    api.delete_repo("user/renamed", missing_ok=True)


def test_names_in_another_case_are_the_same(hub, tmp_path):
    """As on the real Hub."""
    put(hub, name="user/Model")
    assert client(hub).model_info("USER/model").id == "user/Model"
    assert client(hub).create_repo("user/MODEL", exist_ok=True) and list(hub.repositories) == ["user/Model"]


# ---------------------------------------------------------------------------------------------------------------------
# There and back


def test_a_folder_goes_there_and_back(any_hub, tmp_path):
    """Byte for byte; again it makes no commit and sends no content, and a change sends what has changed."""
    folder, api = tmp_path / "folder", client(any_hub)
    for path, content in {**FILES, "empty.bin": b""}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    api.create_repo(NAME)
    made = api.upload_folder(repo_id=NAME, folder_path=folder, commit_message="all", commit_description="of it")
    commits = any_hub.repositories[NAME].commits
    assert (made.oid, commits[-1].summary, commits[-1].description) == (commits[1].oid, "all", "of it")
    assert {path: head(any_hub).files[path] for path in FILES} == FILES and head(any_hub).files["empty.bin"] == b""
    any_hub.requests.clear()
    assert api.upload_folder(repo_id=NAME, folder_path=folder).oid == made.oid
    assert (count(any_hub, "POST", "/commit/"), count(any_hub, "PUT", "")) == (0, 0) and len(commits) == 2
    (folder / "README.md").write_text(CARD + "More.\n")
    api.upload_folder(repo_id=NAME, folder_path=folder)
    assert commits[-1].changed == ("README.md",)
    back = Path(api.snapshot_download(NAME, cache_dir=tmp_path / "cache"))
    found = {str(path.relative_to(back)): path.read_bytes() for path in back.rglob("*") if path.is_file()}
    assert found == head(any_hub).files
    assert read(any_hub, "README.md", tmp_path / "cache", revision=made.oid) == CARD.encode()


def test_which_files_go_to_lfs(any_hub):
    """By mode; in "hub" by what the real .gitattributes names, by size and by being text. An empty one never."""
    text = "né".encode() * 300
    files = {**FILES, "a.txt": text, "vocabulary": text, "long.txt": b"a" * (10 * 2**20 + 1), "e.safetensors": b""}
    put(any_hub, {**files, "saved_model/x/y": b"text", "logs/tfevents": b"text", "cut.txt": b"a" + text})
    large = {"model.safetensors", "figures/a.png", "long.txt", "saved_model/x/y", "logs/tfevents"}
    everything = set(head(any_hub).files) - {"e.safetensors", ".gitattributes"}
    assert head(any_hub).large == {"regular": set(), "lfs": everything, "hub": large}[any_hub.mode]


def test_a_repository_may_name_its_large_files(waits):
    """By a .gitattributes of its own, as in the tests of huggingface_hub."""
    with HubServer("hub") as hub:
        put(hub, {".gitattributes": b"*.csv filter=lfs diff=lfs merge=lfs -text\n"})
        put(hub, {"table.csv": b"1,2\n", "model.pt": b"text"})
        assert head(hub).large == {"table.csv"}
        status, _, body = commit(hub, {"key": "file", "value": {"path": "b", "content": "AAA=", "encoding": "base64"}})
        assert status == 400 and "contains binary files" in json.loads(body)["error"]


def test_ignored_files_stay_here(hub):
    """By the .gitignore that is sent along, and by that of the repository."""
    put(hub, {".gitignore": b"# these\n*.log\nruns/\n", "a.log": b"1", "runs/1/x": b"2", "b": b"3"})
    put(hub, {"c.log": b"1", "d": b"2"})
    assert set(head(hub).files) == {".gitignore", "b", "d"}


def test_lfs_objects_are_sent_once_and_without_the_token(lfs_hub, tmp_path):
    """What is there is not sent again; the addresses are their own permission, for this object only."""
    put(lfs_hub, {"a": WEIGHTS, "b": WEIGHTS[1:]})
    put(lfs_hub, {"c": WEIGHTS, "d": WEIGHTS[2:]})
    assert count(lfs_hub, "PUT", "/cdn/") == 3
    assert read(lfs_hub, "c", tmp_path) == WEIGHTS
    sent = [one for one in lfs_hub.received if one.path.startswith("/cdn/")]
    assert len(sent) == 4 and not any("authorization" in one.headers for one in sent)
    path, query = sent[-1].path.split("?")
    other = path.replace(hashlib.sha256(WEIGHTS).hexdigest(), hashlib.sha256(WEIGHTS[1:]).hexdigest())
    assert raw(lfs_hub, "GET", f"{path}?{query}", token=None)[2] == WEIGHTS
    assert [raw(lfs_hub, "GET", wrong)[0] for wrong in (path, f"{other}?{query}")] == [403, 403]


def test_lfs_in_parts(waits, tmp_path):
    """2,500 bytes in parts of 1,000: three are sent, and together they are the file."""
    with HubServer("lfs", part_size=1000) as hub:
        put(hub, {"a": WEIGHTS[:2500], "b": WEIGHTS[:1000]})
        sizes = [len(one.body) for one in hub.received if one.method == "PUT"]
        assert sorted(sizes) == [500, 1000, 1000, 1000] and count(hub, "POST", "/complete") == 1
        assert read(hub, "a", tmp_path) == WEIGHTS[:2500]


def test_lfs_refuses_what_is_not_what_it_says(lfs_hub):
    """Wrong content, a size that is not that of the object, an object that never came, an id that is none."""
    put(lfs_hub, {"a": WEIGHTS})
    oid, absent = hashlib.sha256(WEIGHTS).hexdigest(), hashlib.sha256(b"absent").hexdigest()
    batch = {"operation": "upload", "objects": [{"oid": one, "size": 6} for one in (absent, "x")]}
    objects = json.loads(raw(lfs_hub, "POST", f"/{NAME}.git/info/lfs/objects/batch", json.dumps(batch))[2])["objects"]
    assert objects[1]["error"]["code"] == 422
    address = objects[0]["actions"]["upload"]["href"].removeprefix(lfs_hub.cdn)
    assert raw(lfs_hub, "PUT", address, b"another", token=None)[0] == 400
    assert raw(lfs_hub, "POST", f"/{NAME}.git/info/lfs/objects/verify", json.dumps(batch["objects"][0]))[0] == 404
    for named, size in {absent: 6, oid: 1}.items():
        status, _, body = commit(lfs_hub, {"key": "lfsFile", "value": {"path": "b", "oid": named, "size": size}})
        assert status == 400 and "LFS pointer" in json.loads(body)["error"]
    assert set(head(lfs_hub).files) == {"a"}


# ---------------------------------------------------------------------------------------------------------------------
# Commits


def commit(hub, *lines):
    """A commit as nobody's client writes it."""
    body = "\n".join(json.dumps(line) for line in ({"key": "header", "value": {"summary": "raw"}}, *lines))
    return raw(hub, "POST", f"/api/models/{NAME}/commit/main", body)


def test_commits_add_replace_copy_and_delete(any_hub):
    """The tree after each, against a dict that is changed likewise; copies of small files and of large ones."""
    put(any_hub, {"a": b"1", "b": WEIGHTS, "folder/c": b"3", "folder/d/e": b"4", "f": b"5"})
    first = dict(head(any_hub).files)
    operations = [
        CommitOperationDelete("a"),
        CommitOperationDelete("folder/"),
        CommitOperationAdd("f", b"6"),
        CommitOperationCopy("b", "copy of b"),
        CommitOperationCopy("f", "copy of f"),
    ]
    made = client(any_hub).create_commit(NAME, operations, commit_message="second")
    gone = {"a", "folder/c", "folder/d/e"}
    expected = {path: content for path, content in first.items() if path not in gone}
    expected |= {"f": b"6", "copy of b": WEIGHTS, "copy of f": b"5"}
    last = head(any_hub)
    assert last.files == expected and last.oid == made.oid and set(last.removed) == gone
    assert ("b" in last.large) == ("copy of b" in last.large) == (any_hub.mode != "regular")
    assert any_hub.repositories[NAME].find(last.parent.oid).files == first
    client(any_hub).delete_files(NAME, ["copy*"])
    assert set(head(any_hub).files) == set(expected) - {"copy of b", "copy of f"}


def test_files_come_to_lfs_and_leave_it(waits):
    """One that becomes text; one that is added and deleted in the same commit, as its last line says."""
    with HubServer("hub") as hub:
        put(hub, {"a": WEIGHTS, "b": WEIGHTS})
        put(hub, {"a": b"text"})
        assert head(hub).large == {"b"}
        value = {"path": "c", "oid": hashlib.sha256(WEIGHTS).hexdigest(), "size": len(WEIGHTS)}
        gone = [{"key": "deletedFile", "value": {"path": path}} for path in ("b", "c")]
        assert commit(hub, {"key": "lfsFile", "value": value}, *gone)[0] == 200
        assert head(hub).files == {".gitattributes": ATTRIBUTES, "a": b"text"} and not head(hub).large


def test_deleting_what_is_not_there_is_an_error(hub):
    """With the code and the words by which the stock client recognizes it; nothing is committed."""
    put(hub)
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist") as error:
        client(hub).create_commit(NAME, [CommitOperationDelete("absent")], commit_message="m")
    assert error.value.response.status_code == 404 and len(hub.repositories[NAME].commits) == 2


def test_a_commit_on_a_moved_branch_is_refused(hub):
    """412 with the words of the Hub, and the branch is as it was; with the new head as parent it goes through."""
    first = put(hub, {"a": b"1"}).oid
    second = put(hub, {"a": b"2"}, parent_commit=first).oid
    with pytest.raises(HfHubHTTPError, match="Please refresh and try again") as error:
        put(hub, {"a": b"3"}, parent_commit=first)
    assert error.value.response.status_code == 412
    assert (head(hub).oid, head(hub).files) == (second, {"a": b"2"})
    put(hub, {"a": b"3"}, parent_commit=second)
    assert head(hub).files == {"a": b"3"}


def test_of_commits_at_the_same_time_one_wins(hub, monkeypatch):
    """Eight threads, one parent: one commit, seven times 412; also if a commit takes its time."""
    parent = put(hub, {"a": b"0"}).oid
    oid, pause = hub.repositories[NAME].oid, threading.Event()
    monkeypatch.setattr(hub.repositories[NAME], "oid", lambda *parts: (pause.wait(0.02), oid(*parts))[1])
    statuses = []

    def race(index):
        try:
            put(hub, {"a": str(index).encode()}, parent_commit=parent)
            statuses.append(200)
        except HfHubHTTPError as error:
            statuses.append(error.response.status_code)

    threads = [threading.Thread(target=race, args=(index + 1,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] + [412] * 7 and head(hub).parent.oid == parent


def test_branches(hub, tmp_path):
    """Made at main or elsewhere, written and read apart, deleted; each error in the words of the Hub."""
    api = client(hub)
    first = put(hub, {"a": b"1"}).oid
    put(hub, {"a": b"2"})
    api.create_branch(NAME, branch="dev")
    api.create_branch(NAME, branch="feature/old", revision=first)
    put(hub, {"b": b"x"}, revision="feature/old")
    assert head(hub).files == {"a": b"2"} and head(hub, "feature/old").files == {"a": b"1", "b": b"x"}
    assert read(hub, "a", tmp_path, revision="feature/old") == b"1"
    heads = {one.name: (one.ref, one.target_commit) for one in api.list_repo_refs(NAME).branches}
    branches = hub.repositories[NAME].branches
    assert heads == {name: (f"refs/heads/{name}", commit.oid) for name, commit in branches.items()}
    with pytest.raises(HfHubHTTPError, match="Reference refs/heads/dev already exists") as error:
        api.create_branch(NAME, branch="dev")
    assert error.value.response.status_code == 409
    api.create_branch(NAME, branch="dev", exist_ok=True)
    api.delete_branch(NAME, branch="dev")
    with pytest.raises(RevisionNotFoundError, match="Invalid rev id"):
        api.delete_branch(NAME, branch="dev")
    with pytest.raises(HfHubHTTPError, match="Cannot delete refs/heads/main"):
        api.delete_branch(NAME, branch="main")
    with pytest.raises(RevisionNotFoundError):
        api.create_branch(NAME, branch="new", revision="absent")
    with pytest.raises(BadRequestError, match="Invalid reference for a branch"):
        api.create_branch(NAME, branch="refs/pr/5")
    with pytest.raises(RevisionNotFoundError):
        put(hub, {"a": b"3"}, revision="dev")
    assert set(branches) == {"main", "feature/old"}


def test_tags(hub, tmp_path):
    """On the head or on a commit by its id, long or short; they stay when the branch moves."""
    api = client(hub)
    first = put(hub, {"a": b"1"}).oid
    api.create_tag(NAME, tag="v1", tag_message="the first")
    second = put(hub, {"a": b"2"}).oid
    api.create_tag(NAME, tag="v2", revision=second[:7])
    assert {one.name: one.target_commit for one in api.list_repo_refs(NAME).tags} == {"v1": first, "v2": second}
    assert api.model_info(NAME, revision="v1").sha == first
    assert read(hub, "a", tmp_path, revision="v1") == b"1"
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag(NAME, tag="v1", revision=second)
    assert error.value.response.status_code == 409
    api.create_tag(NAME, tag="v1", revision=second, exist_ok=True)
    assert hub.repositories[NAME].tags["v1"].oid == first
    api.delete_tag(NAME, tag="v1")
    for call in (lambda: api.delete_tag(NAME, tag="v1"), lambda: api.model_info(NAME, revision="v1")):
        with pytest.raises(RevisionNotFoundError):
            call()
    with pytest.raises(RevisionNotFoundError):
        api.create_tag(NAME, tag="v3", revision="absent")
    with pytest.raises(BadRequestError):
        api.create_tag(NAME, tag="no tag")


# ---------------------------------------------------------------------------------------------------------------------
# Read


def test_history_and_tree_come_in_pages(hub):
    """Newest first, with title, text and author; the same list whatever a page holds."""
    for index in range(4):
        put(hub, {f"folder/{index}": b"x"}, f"commit {index}", commit_description=f"text {index}")
    for size in (1000, 2):
        hub.page_size = size
        hub.requests.clear()
        commits = client(hub).list_repo_commits(NAME)
        assert [one.title for one in commits] == [f"commit {index}" for index in (3, 2, 1, 0)] + ["initial commit"]
        assert [one.message for one in commits][:2] == ["text 3", "text 2"] and commits[0].authors == ["user"]
        assert [one.commit_id for one in commits] == [one.oid for one in head(hub).history()]
        tree = list(client(hub).list_repo_tree(NAME, recursive=True))
        assert [one.path for one in tree] == ["folder", *(f"folder/{index}" for index in range(4))]
        assert len(hub.requests) == {1000: 2, 2: 6}[size]


def test_trees(any_hub):
    """Folder by folder and all at once; identities against git and SHA-256; the last commit of each file."""
    put(any_hub, FILES, "first")
    put(any_hub, {"config.json": b"{ }"}, "second")
    api, large = client(any_hub), head(any_hub).large
    own = {".gitattributes"} & set(head(any_hub).files)
    assert {one.path for one in api.list_repo_tree(NAME)} == own | {*FILES, "figures"} - {"figures/a.png"}
    assert [one.path for one in api.list_repo_tree(NAME, "figures")] == ["figures/a.png"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(NAME, "absent"))
    found = {one.path: one for one in api.list_repo_tree(NAME, recursive=True, expand=True)}
    assert set(found) == own | {*FILES, "figures"}
    assert {path: one.last_commit.title for path, one in found.items() if path not in own} == {
        **dict.fromkeys([*FILES, "figures"], "first"),
        "config.json": "second",
    }
    weights = found["model.safetensors"]
    assert weights.size == len(WEIGHTS)
    if "model.safetensors" in large:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{weights.lfs.sha256}\nsize {len(WEIGHTS)}\n"
        assert weights.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest() and weights.lfs.size == len(WEIGHTS)
        assert (weights.blob_id, weights.lfs.pointer_size) == (sha.git_hash(pointer.encode()), len(pointer))
    else:
        assert (weights.blob_id, weights.lfs) == (sha.git_hash(WEIGHTS), None)


def test_model_info(any_hub):
    """Names and sizes of files, what the card says, and only what was asked for."""
    put(any_hub, {**FILES, "README.md": b"---\nlicense: mit\npipeline_tag: fill-mask\nlanguage: no\ntags: [a]\n---\n"})
    info = client(any_hub).model_info(NAME, files_metadata=True, securityStatus=True)
    assert (info.id, info.author, info.sha) == (NAME, "user", head(any_hub).oid)
    assert (info.private, info.gated, info.pipeline_tag, info.tags) == (False, False, "fill-mask", ["a"])
    assert (info.card_data.license, info.card_data.language) == ("mit", "no")  # YAML 1.2: no boolean
    assert "filesWithIssues" in info.security_repo_status
    weights = {one.rfilename: one for one in info.siblings}["model.safetensors"]
    assert (weights.size, weights.lfs is not None) == (len(WEIGHTS), "model.safetensors" in head(any_hub).large)
    plain = client(any_hub).model_info(NAME, expand=["sha"])
    assert (plain.id, plain.sha, plain.siblings) == (NAME, head(any_hub).oid, None)
    with pytest.raises(RevisionNotFoundError):
        client(any_hub).model_info(NAME, revision="absent")


def test_paths_info(hub):
    """Files and folders that are there; nothing of those that are not."""
    put(hub)
    found = client(hub).get_paths_info(NAME, ["config.json", "figures", "absent"], expand=True)
    assert [(one.path, type(one).__name__, one.last_commit.title) for one in found] == [
        ("config.json", "RepoFile", "put"),
        ("figures", "RepoFolder", "put"),
    ]
    assert client(hub).get_paths_info(NAME, "config.json")[0].last_commit is None


def test_what_the_head_of_a_file_says(any_hub):
    """Commit, identity, size and address, against what was committed."""
    made = put(any_hub).oid
    large = head(any_hub).large
    for path, content in FILES.items():
        url = f"{any_hub.endpoint}/{NAME}/resolve/main/{path}"
        found = file_download.get_hf_file_metadata(url, token="hf_secret")
        identity = hashlib.sha256(content).hexdigest() if path in large else sha.git_hash(content)
        assert (found.commit_hash, found.etag, found.size) == (made, identity, len(content)), path
        assert found.location.startswith(any_hub.cdn if path in large else url), path
    status, headers, body = raw(any_hub, "HEAD", f"/{NAME}/resolve/main/absent")
    assert (status, headers["X-Error-Code"], headers["X-Repo-Commit"], body) == (404, "EntryNotFound", made, b"")
    assert headers["X-Request-Id"]


def test_ranges(any_hub):
    """A part from the front, the middle, the end and to the end; 416 beyond it; several ranges are not served."""
    put(any_hub)
    size, url = len(WEIGHTS), f"{any_hub.endpoint}/{NAME}/resolve/main/model.safetensors"
    wanted = {"bytes=0-9": (0, 10), "bytes=100-": (100, size), "bytes=-7": (size - 7, size)}
    wanted |= {"bytes=10-99999": (10, size)}
    get = _http.get_session().get  # follows to where files in LFS come from
    for said, (start, end) in wanted.items():
        answer = get(url, headers={"Range": said})
        assert (answer.status_code, answer.content) == (206, WEIGHTS[start:end]), said
        assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
    beyond = get(url, headers={"Range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")
    several = get(url, headers={"Range": "bytes=0-1,5-6"})
    assert (several.status_code, several.content) == (200, WEIGHTS)


def test_file_exists_and_missing_revisions(hub, tmp_path):
    """What is not there is told apart: a file, a revision, a repository."""
    put(hub, {"a/ö b.txt": b"x"})
    api = client(hub)
    assert api.file_exists(NAME, "a/ö b.txt") and not api.file_exists(NAME, "a")
    assert read(hub, "a/ö b.txt", tmp_path) == b"x"
    assert not api.file_exists(NAME, "a/ö b.txt", revision="absent") and api.revision_exists(NAME, "main")
    with pytest.raises(EntryNotFoundError):
        read(hub, "absent", tmp_path)
    with pytest.raises(RevisionNotFoundError):
        read(hub, "a/ö b.txt", tmp_path, revision="absent")


# ---------------------------------------------------------------------------------------------------------------------
# Cards


def test_model_cards_by_their_own_class(hub, monkeypatch):
    """`ModelCard` validates without a token, pushes and loads; what the Hub does not accept is not sent."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    client(hub).create_repo(NAME)
    card = ModelCard(CARD)
    card.validate()
    assert "authorization" not in hub.received[-1].headers
    card.push_to_hub(NAME, token="hf_secret")
    assert head(hub).files == {"README.md": str(card).encode()}
    card.data.license = "mine"
    with pytest.raises(ValueError, match='- Error: "license" must be one of'):
        card.validate()
    with pytest.raises(ValueError, match='- Error: "license" must be one of'):
        card.push_to_hub(NAME, token="hf_secret")
    assert len(hub.repositories[NAME].commits) == 2


INDEX = """model-index:
- name: m
  results:
  - task: {type: fill-mask}
    dataset: {name: d, type: %s}
    metrics:
"""
REFUSED = {
    "license: mine": '"license" must be one of',
    "license: [mit, mine]": '"license[1]" must be one of',
    "language: EN": '"language" must only contain lowercase characters',
    "language: [en, english]": '"language[1]" with value "english" is not valid',
    "tags: one": '"tags" must be an array',
    "tags: [1]": '"tags[0]" must be a string',
    "widget: {}": '"widget" must be an array',
    "base_model: runs/bert/model": '"base_model" with value "runs/bert/model" is not valid',
    "base_model: /home/me/model": "is not valid. Use a model id",
    "base_model: [./model]": '"base_model[0]" with value',
    "datasets: my data": "is not valid. If possible, use a dataset id",
    "model-index: good": '"model-index" must be an array',
    "model-index: [{}]": '"model-index[0].name" is required',
    INDEX % "a b": "fails to match the required pattern",
    INDEX % "d" + "    - {type: loss}": '"model-index[0].results[0].metrics[0].value" is required',
    "license: mit\nlicense: mit": "duplicated mapping key",
    "license: [mit": "bad YAML",
    "- a\n- b": "must be of type object",
}


@pytest.mark.parametrize("metadata", REFUSED)
def test_metadata_that_is_refused(hub, metadata):
    """By validate-yaml as the stock client asks it before a commit, and by the commit itself."""
    put(hub, {"a": b"1"})
    card = f"---\n{metadata}\n---\n# A model\n"
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md") as error:
        put(hub, {"README.md": card.encode()})
    assert REFUSED[metadata] in str(error.value)
    status, _, body = commit(hub, {"key": "file", "value": {"path": "README.md", "content": card}})
    assert status == 400 and REFUSED[metadata] in json.loads(body)["error"]
    assert set(head(hub).files) == {"a"}


def test_metadata_that_is_accepted(hub):
    """A full card silently; one without metadata, or with a task that the Hub does not know, with a warning."""
    full = f"license: {LICENSES[0]}\nlanguage: no\ndatasets: a/b\nbase_model: [c/d.e, bert]\nwidget: [{{text: a}}]\n"
    full += "pipeline_tag: fill-mask\nlibrary_name: transformers\nmetrics: [accuracy]\nanything: {else: 1}\n"
    full += INDEX % "d" + "    - {type: loss, value: 1.5, name: Loss}\n"
    put(hub, {"README.md": f"---\n{full}---\n".encode()})
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        put(hub, {"README.md": b"# A model\n"})
    with pytest.warns(UserWarning, match='"flying" is not in the official list'):
        put(hub, {"README.md": b"---\npipeline_tag: flying\n---\n"})
    assert len(hub.repositories[NAME].commits) == 4


# ---------------------------------------------------------------------------------------------------------------------
# The hf command


def test_the_hf_command(tmp_path):
    """Who, upload of a folder and a file, branches, tags, download and delete, as a person types them."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "README.md").write_text(CARD)
    with HubServer("hub") as hub:
        kept = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG", "SYSTEMROOT")}
        environment = {**kept, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*"}

        def hf(*arguments, fails=False):
            command = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()", *map(str, arguments)]
            done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
            assert (done.returncode != 0) == fails, done.stderr
            return done.stdout + done.stderr

        assert "user" in hf("auth", "whoami")
        hf("upload", NAME, folder, ".", "--private", "--commit-message", "from the shell")
        assert hub.repositories[NAME].private and head(hub).summary == "from the shell"
        assert head(hub).files["model.safetensors"] == WEIGHTS
        assert head(hub).large == {"model.safetensors"}
        hf("repos", "tag", "create", NAME, "v1")
        assert "v1" in hf("repos", "tag", "list", NAME)
        hf("upload", NAME, folder / "README.md", "docs/README.md", "--revision", "dev")
        assert set(head(hub, "dev").files) - set(head(hub).files) == {"docs/README.md"}
        hf("download", NAME, "--revision", "v1", "--local-dir", tmp_path / "back")
        assert (tmp_path / "back" / "model.safetensors").read_bytes() == WEIGHTS
        assert "not found" in hf("download", "user/absent", fails=True).lower()
        hf("repos", "delete", NAME, "--yes")
        assert not hub.repositories


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_passing_trouble_is_retried(hub, waits, status):
    """The stock client tries again after 1, 2, 4 s; after what Retry-After says, and a second, if told so."""
    fault = hub.fault(status, path="/preupload/", times=3)
    put(hub)
    assert fault.fired == 3 and count(hub, "POST", "/preupload/") == 4
    assert waits == ([1, 1, 1] if status == 429 else [1, 2, 4])
    assert set(head(hub).files) == set(FILES)


def test_lasting_trouble_is_an_error(hub, waits):
    """Six attempts, 23 s; then the status and the words of the Hub. Nothing was committed."""
    client(hub).create_repo(NAME)
    fault = hub.fault(503, path="/preupload/", times=None)
    with pytest.raises(HfHubHTTPError, match="Service Unavailable") as error:
        put(hub)
    assert (error.value.response.status_code, fault.fired, waits) == (503, 6, [1, 2, 4, 8, 8])
    assert len(hub.repositories[NAME].commits) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 409, 412, 413, 500, 503])
def test_a_commit_is_refused_once(hub, waits, status):
    """The stock client does not repeat a commit, whatever the reason: it raises, and the tree is as before."""
    first = put(hub, {"a": b"1"}).oid
    fault = hub.fault(status, "POST", "/commit/main", times=None)
    with pytest.raises(HfHubHTTPError) as error:
        put(hub, {"a": b"2"})
    assert (error.value.response.status_code, fault.fired, waits) == (status, 1, [])
    assert (head(hub).oid, head(hub).files) == (first, {"a": b"1"})


def test_a_reset_while_a_file_is_sent(lfs_hub, waits):
    """1,000 bytes arrive, nothing is stored of them; the stock client sends all of it again."""
    fault = lfs_hub.fault("reset", "PUT", at=1000)
    put(lfs_hub, {"model.safetensors": WEIGHTS})
    sent = [one for one in lfs_hub.received if one.method == "PUT"]
    assert [(len(one.body), one.status) for one in sent] == [(1000, None), (len(WEIGHTS), 200)]
    assert (fault.fired, waits) == (1, [1]) and head(lfs_hub).files == {"model.safetensors": WEIGHTS}


def test_a_reset_while_a_commit_is_sent(hub):
    """An error of the transport, and no commit; the same call makes it."""
    client(hub).create_repo(NAME)
    fault = hub.fault("reset", path="/commit/", at=100)
    with pytest.raises(httpx2.TransportError):
        put(hub)
    assert fault.fired == 1 and len(hub.repositories[NAME].commits) == 1
    assert [len(one.body) for one in hub.received if "/commit/" in one.path] == [100]
    put(hub)
    assert len(hub.repositories[NAME].commits) == 2


def test_a_lost_answer(hub):
    """The commit stands though the client raises; the same call then finds nothing to do."""
    client(hub).create_repo(NAME)
    fault = hub.fault("lost answer", path="/commit/")
    with pytest.raises(httpx2.TransportError):
        put(hub)
    assert fault.fired == 1 and set(head(hub).files) == set(FILES)
    assert put(hub).oid == head(hub).oid and len(hub.repositories[NAME].commits) == 2


def test_a_download_goes_on_where_it_was_cut(any_hub, monkeypatch, tmp_path):
    """An answer that ends early, twice: the stock client asks for the rest by Range, and the file is whole."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what it has not a chunk of, it asks for again
    put(any_hub)
    where = r"^/cdn/" if any_hub.mode != "regular" else "/resolve/.*/model"
    fault = any_hub.fault("truncate", "GET", where, at=1000, times=2)
    assert read(any_hub, "model.safetensors", tmp_path) == WEIGHTS
    asked = [one.headers.get("range") for one in any_hub.received if one.method == "GET"][-3:]
    assert (fault.fired, asked) == (2, [None, "bytes=1000-", "bytes=2000-"])
    assert [one.status for one in any_hub.received if one.method == "GET"][-3:] == [200, 206, 206]


def test_a_reset_in_a_download_leaves_nothing(hub, tmp_path):
    """The stock client does not go on after a reset: it raises, the cache has no such file, and again it works."""
    put(hub)
    fault = hub.fault("reset", "GET", "/model.safetensors", at=1000)
    with pytest.raises(httpx2.TransportError):
        read(hub, "model.safetensors", tmp_path)
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and WEIGHTS[:8] in path.read_bytes()]
    assert fault.fired == 1 and not kept
    assert read(hub, "model.safetensors", tmp_path) == WEIGHTS


def test_a_stall_in_a_download(hub, monkeypatch, caplog, tmp_path):
    """Silence after 1,000 bytes outlasts the client's patience: it goes on from there on another connection."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    put(hub)
    fault = hub.fault("stall", "GET", "/model.safetensors", at=1000)
    assert read(hub, "model.safetensors", tmp_path) == WEIGHTS
    assert fault.fired == 1 and hub.received[-1].headers["range"] == "bytes=1000-"
    assert "timed out" in caplog.text


def test_a_stall_before_an_answer(hub):
    """Nothing comes, then the end: nothing was done, and the client says that the server is gone."""
    client(hub).create_repo(NAME)
    fault, begin = hub.fault("stall", path="/commit/", seconds=0.1), time.monotonic()
    with pytest.raises(httpx2.RemoteProtocolError, match="without sending a response"):
        put(hub)
    assert time.monotonic() - begin >= 0.1 and fault.fired == 1
    assert len(hub.repositories[NAME].commits) == 1


def test_a_wrong_byte(any_hub, tmp_path):
    """The stock client looks at sizes only: it keeps the file. Its check of a cache tells it."""
    put(any_hub)
    where = r"^/cdn/" if any_hub.mode != "regular" else "/resolve/.*/model"
    fault = any_hub.fault("wrong_hash", "GET", where)
    got = read(any_hub, "model.safetensors", tmp_path)
    assert fault.fired == 1 and sum(one != other for one, other in zip(got, WEIGHTS)) == 1
    checked = client(any_hub).verify_repo_checksums(NAME, cache_dir=tmp_path)
    assert [one["path"] for one in checked.mismatches] == ["model.safetensors"]
    shutil.rmtree(tmp_path)
    read(any_hub, "model.safetensors", tmp_path)
    assert not client(any_hub).verify_repo_checksums(NAME, cache_dir=tmp_path).mismatches


def test_a_hub_that_is_down_when_a_file_is_wanted(hub, tmp_path):
    """Not in the cache: an error that says so. In the cache: the file."""
    put(hub)
    hub.fault(503, times=None)
    with pytest.raises(LocalEntryNotFoundError):
        read(hub, "config.json", tmp_path)
    hub.faults.clear()
    read(hub, "config.json", tmp_path)
    hub.fault(503, times=None)
    assert read(hub, "config.json", tmp_path) == FILES["config.json"]


def test_what_somebody_else_does_meanwhile(hub):
    """A function as a fault: their commit comes in between, and is not lost."""
    first = put(hub, {"a": b"1"}).oid
    hub.fault(lambda: hub.repositories[NAME].commit("main", "theirs", {"b": b"2"}), "POST", "/commit/")
    with pytest.raises(HfHubHTTPError) as error:
        put(hub, {"a": b"3"}, parent_commit=first)
    assert error.value.response.status_code == 412 and head(hub).files == {"a": b"1", "b": b"2"}


def test_which_requests_meet_a_fault(hub):
    """By method, path, how many pass before and how many meet it; a fault that is none is refused."""
    put(hub)
    fault = hub.fault(500, "GET", "/refs$", after=1, times=2)
    paths = [f"/api/models/{NAME}/refs"] * 5 + [f"/api/models/{NAME}"]
    assert [raw(hub, "GET", path)[0] for path in paths] == [200, 500, 500, 200, 200, 200]
    assert (fault.fired, fault.seen) == (2, 5)
    for wrong in ("explosion", 418):
        with pytest.raises(ValueError, match="is no fault"):
            hub.fault(wrong)


# ---------------------------------------------------------------------------------------------------------------------
# What nobody's client sends


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/agent-harnesses"),
        ("GET", "/api/models/user/model/unknown"),
        ("POST", "/api/models/user/model"),
        ("PUT", "/api/models/user/model/commit/main"),
        ("GET", "/api/datasets/user/model"),
        ("GET", "/"),
        ("GET", "/user/model/unknown/main/a"),
    ],
)
def test_unknown_routes(hub, method, path):
    """404, also for a method that a route does not have: JSON below /api, a page elsewhere."""
    put(hub)
    status, headers, body = raw(hub, method, path)
    assert status == 404 and "X-Error-Code" not in headers
    assert (b"<h1>" in body) == (not path.startswith("/api/"))
    if path.startswith("/api/"):
        assert "can't find" in json.loads(body)["error"]


HEADER = {"key": "header", "value": {"summary": "s"}}
FILE = {"path": "a", "size": 1, "sample": "YQ=="}
MODEL = f"/api/models/{NAME}"
MALFORMED = {
    "no JSON": ("POST", "/api/repos/create", "{"),
    "no object": ("POST", "/api/repos/create", "[]"),
    "no body": ("POST", "/api/repos/create", ""),
    "no text": ("POST", "/api/repos/create", b"\xff\xfe"),
    "no name": ("POST", "/api/repos/create", {"organization": None}),
    "a name that is a number": ("POST", "/api/repos/create", {"name": 1}),
    "a visibility that is none": ("POST", "/api/repos/create", {"name": "a", "visibility": "hidden"}),
    "a flag that is none": ("POST", "/api/repos/create", {"name": "a", "private": "yes"}),
    "a gate that is none": ("PUT", f"{MODEL}/settings", {"gated": "wide"}),
    "a card that is none": ("POST", "/api/validate-yaml", {"content": None}),
    "files that are no list": ("POST", f"{MODEL}/preupload/main", {"files": {}}),
    "a file without its size": ("POST", f"{MODEL}/preupload/main", {"files": [{"path": "a", "sample": ""}]}),
    "a sample that is no base64": ("POST", f"{MODEL}/preupload/main", {"files": [{**FILE, "sample": "%"}]}),
    "a size that is a flag": ("POST", f"{MODEL}/preupload/main", {"files": [{**FILE, "size": True}]}),
    "a tag without a name": ("POST", f"{MODEL}/tag/main", {}),
    "objects that are no list": ("POST", f"/{NAME}.git/info/lfs/objects/batch", {"operation": "upload", "objects": 1}),
    "an empty commit": ("POST", f"{MODEL}/commit/main", ""),
    "a commit without a header": ("POST", f"{MODEL}/commit/main", {"key": "file", "value": {"path": "a"}}),
    "a commit without a change": ("POST", f"{MODEL}/commit/main", HEADER),
    "a commit of half a line": ("POST", f"{MODEL}/commit/main", json.dumps(HEADER) + '\n{"key": "fi'),
    "an unknown change": ("POST", f"{MODEL}/commit/main", [HEADER, {"key": "link", "value": {"path": "a"}}]),
    "a file without content": ("POST", f"{MODEL}/commit/main", [HEADER, {"key": "file", "value": {"path": "a"}}]),
    "a commit without a summary": ("POST", f"{MODEL}/commit/main", {"key": "header", "value": {"summary": ""}}),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_bodies(hub, case):
    """400 with a reason in JSON; nothing is made."""
    put(hub)
    method, path, body = MALFORMED[case]
    if isinstance(body, list):
        body = "\n".join(json.dumps(line) for line in body)
    status, headers, answer = raw(hub, method, path, json.dumps(body) if isinstance(body, dict) else body)
    assert status == 400 and json.loads(answer)["error"] and headers["X-Error-Message"]
    assert list(hub.repositories) == [NAME] and len(hub.repositories[NAME].commits) == 2


@pytest.mark.parametrize("path", ["../a", "a/../../b", "/a", "a//b", ".git/config", "..\\a", "a/.", "", "a\0b"])
def test_paths_that_lead_elsewhere(hub, path):
    """422, as huggingface_hub's tests expect of the real Hub."""
    put(hub)
    status, _, body = commit(hub, {"key": "file", "value": {"path": path, "content": "x"}})
    assert status == 422 and "Invalid path" in json.loads(body)["error"] and len(hub.repositories[NAME].commits) == 2


def test_pull_requests_are_not_served(hub):
    """501, before anything is sent."""
    client(hub).create_repo(NAME)
    with pytest.raises(HfHubHTTPError, match="pull requests are not served") as error:
        put(hub, create_pr=True)
    assert error.value.response.status_code == 501 and len(hub.repositories[NAME].commits) == 1


def test_a_body_in_chunks(hub):
    """Transfer-Encoding: chunked is read to its end, and the connection serves the next request."""
    put(hub)
    connection = HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=10)
    line = json.dumps({"key": "file", "value": {"path": "a", "content": "x"}}).encode()
    chunks = [json.dumps(HEADER).encode() + b"\n", line[:9], line[9:]]
    for expected in (200, 200):
        headers = {"Authorization": "Bearer t", "Transfer-Encoding": "chunked"}
        connection.request("POST", f"{MODEL}/commit/main", iter(chunks), headers, encode_chunked=True)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["success"]) == (expected, True)
    connection.close()
    assert head(hub).files["a"] == b"x"


def test_everything_received_is_kept(lfs_hub):
    """A test can look for a token, and for content, in whatever was sent."""
    put(lfs_hub)
    carriers = [one for one in lfs_hub.received if "hf_secret" in str(one.headers)]
    assert len(carriers) == len([one for one in lfs_hub.received if not one.path.startswith("/cdn/")])
    assert WEIGHTS in [one.body for one in lfs_hub.received]
    assert [(one.method, one.path.split("?")[0]) for one in lfs_hub.received] == lfs_hub.requests
    assert {one.status for one in lfs_hub.received} == {200}


def test_a_mistake_of_this_server_is_not_hidden():
    """500 to the client; and the test that caused it fails when it ends, unless it fails anyway."""
    with pytest.raises(AssertionError, match="ZeroDivisionError"), HubServer() as hub:
        hub.fault(lambda: 1 / 0)
        assert raw(hub, "GET", "/api/whoami-v2")[0] == 500
    with pytest.raises(ConnectionRefusedError):
        raw(hub, "GET", "/api/whoami-v2")
    with pytest.raises(ValueError, match="mode='xet'"):
        HubServer("xet")
