"""Publish a model folder on the Hub: everything is checked before anything is sent, one commit carries all of it, and
what the Hub then gives back is loaded elsewhere and compared.

    release = prepare(Path("runs/bert"), "user/bert", options)  # here: the files, and what is wrong with them
    published = publish(connect(60), release, options)          # there: preflight, one commit, a checked download

Notable: nothing of the run is written but `published.json`, which says what stands where. A commit names the one it
follows, so that work which came in between is never lost. The token stays in the client and in the environment of the
process that checks; it is no argument of anything.
"""

import functools
import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import get_token, validate_repo_id

from triune.training.console import quantity
from triune.training.hub import card, content, facts, golden, scan
from triune.training.report import replace


RECORD = "published.json"
MAIN = "main"
PIECE = 1 << 24  # bytes of a file that are read at once
Content = Path | bytes


@dataclass
class Options:
    branch: str = MAIN
    tag: str | None = None
    public: bool = False
    force: bool = False  # replace what others have put there
    pull_card: bool = False  # take over what was written on the published card
    examples: bool = True  # show what stems from held-out data
    message: str | None = None
    license: str | None = None
    language: str | None = None
    seeds: list[str] = field(default_factory=list)  # other runs of the same recipe
    not_secret: list[str] = field(default_factory=list)  # files whose findings were looked at


class Release(NamedTuple):
    """What is to stand in the repository."""

    name: str
    folder: Path  # the model folder
    record: Path
    facts: Any
    files: dict[str, Content]  # all but the card
    left_behind: list[str]


class Remote(NamedTuple):
    """What stands there."""

    head: str | None  # the commit of the branch; None: there is no repository, or no such branch
    exists: bool
    private: bool
    files: dict[str, str]  # path -> what identifies the content
    card: str | None
    tags: dict[str, str]  # tag -> commit


class Changes(NamedTuple):
    add: dict[str, Content]
    delete: list[str]

    def __bool__(self) -> bool:
        return bool(self.add or self.delete)


# ---------------------------------------------------------------------------------------------------------------------
# Here


def check_name(name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{name!r} is no name of a repository: {str(error).splitlines()[0]}") from error
    if name.count("/") != 1:
        raise ValueError(f"{name!r} is no name of a repository: it must be user/name, or organization/name")


def prepare(run: Path, name: str, options: Options) -> Release:
    """The files of a run's model folder, complete and free of secrets."""
    check_name(name)
    folder = content.model_folder(run)
    found = facts.read(run, [Path(seed) for seed in options.seeds])
    files: dict[str, Content] = dict(content.travelling(folder))
    files.pop(content.CARD, None)
    files.setdefault(content.LICENSE, content.licence())
    if not options.examples:
        files = {path: file for path, file in files.items() if not card.shows_data(path)}
    to_be_made = content.GOLDEN not in files
    wrong = [one for one in content.lacking(folder, files) if not (to_be_made and one.startswith(content.GOLDEN))]
    if wrong:
        raise ValueError(f"{folder} is not complete: {'; '.join(wrong)}")
    if to_be_made:
        files[content.GOLDEN] = golden.compute(folder)
    return Release(name, folder, record_of(folder), found, files, content.left_behind(folder))


def record_of(folder: Path) -> Path:
    """In the run folder; of a model that no run left beside its files, where it does not travel."""
    return folder.parent / RECORD if (folder.parent / facts.RUN).is_file() else folder / f".{RECORD}"


def written_card(release: Release, options: Options, revision: str | None = None, former: str | None = None) -> bytes:
    text = card.render(
        release.facts,
        release.name,
        revision=revision,
        former=former,
        examples=options.examples,
        license=options.license,
        language=options.language,
    )
    return text.encode()


def local_card(release: Release) -> str | None:
    path = release.folder / content.CARD
    return path.read_text(encoding="utf-8") if path.is_file() else None


def refuse_secrets(files: Mapping[str, Content], options: Options, token: str | None) -> None:
    """The token itself is refused wherever it stands; what only looks like a secret, unless someone has looked."""
    found = scan.secrets(files, token)
    grave = [one for one in found if one.file not in options.not_secret or one.kind == scan.THE_TOKEN]
    if grave:
        listed = "\n  ".join(f"{one.file}, line {one.line}: {one.kind} {one.shown}" for one in grave)
        raise ValueError(
            f"what is to be published holds secrets:\n  {listed}\nTake them out; or, if it is none: --not_secret FILE"
        )


# ---------------------------------------------------------------------------------------------------------------------
# There


STATUS = {
    400: "the Hub does not accept it",
    401: "the Hub does not accept the token: `hf auth login` with one that can write",
    403: "the token may not do this: it needs write access to the repository",
    404: "the Hub does not find it, or the token may not see it",
    409: "it is in conflict with what the Hub has",
    412: "someone has committed meanwhile: the same command looks again",
    413: "it is too large for the Hub",
    429: "too many requests: wait a while",
}
SAFE = "nothing has been published, and the run is as it was; the same command tries again"

UNSURE = "whether the commit was made is not known; the run is as it was, and the same command finds out"


class Refused(ValueError):
    """What went wrong between here and the Hub, in a sentence."""


@contextmanager
def doing(what: str, otherwise: str = SAFE, unanswered: str | None = None) -> Iterator[None]:
    """Whatever the client raises (its transport has errors of its own) becomes a sentence. `unanswered`: what holds
    where the Hub has not said anything, and may have done what it was asked."""
    try:
        yield
    except (Refused, KeyboardInterrupt):
        raise
    except Exception as error:
        after = otherwise if unanswered is None or any(map(status_of, causes(error))) else unanswered
        raise Refused(f"{what}: {reason(error)}; {after}") from error


def causes(error: BaseException) -> list[BaseException]:
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def status_of(error: BaseException) -> int | None:
    """What the Hub has answered, if it has."""
    return getattr(getattr(error, "response", None), "status_code", None)


def reason(error: BaseException) -> str:
    chain = causes(error)
    for one in chain:
        if isinstance(one, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, and publishing needs the Hub"
        status = status_of(one)
        if status is not None:
            says = getattr(one, "server_message", None)
            known = STATUS.get(status, "the Hub has a problem" if status >= 500 else "the Hub refuses")
            return f"{known} (HTTP {status}{f': {says}' if says else ''})"
    last = chain[-1]
    if isinstance(last, ValueError):
        return " ".join(str(last).split())
    return f"the Hub does not answer ({type(last).__name__}: {' '.join(str(last).split()) or 'no reason given'})"


NO_TOKEN = "not logged in: `hf auth login`, or set HF_TOKEN, with a token that can write"


def connect(timeout: float) -> HfApi:
    """A client that gives up on a silent Hub: by itself it waits for ever."""
    get_session().timeout = timeout
    return HfApi(token=get_token())


def check_account(api: HfApi, name: str) -> None:
    """Someone is logged in, and may write there as far as the Hub tells."""
    with doing("asking the Hub who is logged in"):
        if not (api.token or get_token()):
            raise Refused(f"{NO_TOKEN}; {SAFE}")
        account = api.whoami()
    owner, owners = name.split("/")[0], [account["name"], *(one["name"] for one in account.get("orgs", ()))]
    if owner not in owners:
        raise Refused(f"{name!r}: {account['name']} can publish under {', '.join(owners)}; {SAFE}")
    if not can_write(account.get("auth", {}).get("accessToken", {}), {owner, name}):
        raise Refused(f"the token of {account['name']} cannot write to {name}: make one that can; {SAFE}")


def can_write(token: dict[str, Any], places: set[str]) -> bool:
    """As far as the Hub tells: a fine-grained token has a list of where it may do what."""
    scopes = token.get("fineGrained", {}).get("scoped", ())
    if token.get("role") != "fineGrained":
        return token.get("role") != "read"
    return any(one["entity"].get("name") in places and "repo.write" in one["permissions"] for one in scopes)


def look(api: HfApi, name: str, branch: str) -> Remote:
    """The state of the repository; of one that does not exist, nothing."""
    with doing(f"looking at {name}"):
        try:
            info = api.model_info(name)
        except RepositoryNotFoundError:
            return Remote(None, False, True, {}, None, {})
        refs = api.list_repo_refs(name)
        heads = {one.name: one.target_commit for one in refs.branches}
        tags = {one.name: one.target_commit for one in refs.tags}
        head = heads.get(branch)
        files = {} if head is None else listed(api, name, head)
        published = read_remote(api, name, head) if content.CARD in files else None
        return Remote(head, True, bool(info.private), files, published, tags)


def listed(api: HfApi, name: str, commit: str) -> dict[str, str]:
    """Every file of a commit, by what identifies its content: SHA-256 in LFS, git's SHA-1 otherwise."""
    tree = api.list_repo_tree(name, revision=commit, recursive=True)
    return {one.path: one.lfs.sha256 if one.lfs else one.blob_id for one in tree if hasattr(one, "blob_id")}


def read_remote(api: HfApi, name: str, commit: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return Path(api.hf_hub_download(name, content.CARD, revision=commit, local_dir=folder)).read_text("utf-8")


def identities(file: Content) -> frozenset[str]:
    """What the Hub may call this content."""
    if isinstance(file, bytes):
        return hashed(io.BytesIO(file), len(file))
    state = file.stat()
    return of_file(file, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def of_file(file: Path, size: int, changed: int) -> frozenset[str]:
    """Weights are large: read once, piece by piece."""
    with file.open("rb") as content:
        return hashed(content, size)


def hashed(content: BinaryIO, size: int) -> frozenset[str]:
    large, small = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    while piece := content.read(PIECE):
        large.update(piece)
        small.update(piece)
    return frozenset({large.hexdigest(), small.hexdigest()})


def size(file: Content) -> int:
    return len(file) if isinstance(file, bytes) else file.stat().st_size


def count(files: Collection) -> str:
    return f"{len(files)} file{'s' if len(files) != 1 else ''}"


# ---------------------------------------------------------------------------------------------------------------------
# What differs


def compare(files: Mapping[str, Content], remote: Remote) -> Changes:
    """What to send; and what of ours is not wanted any more. What others have added stays."""
    add = {path: file for path, file in files.items() if remote.files.get(path) not in identities(file)}
    return Changes(add, [path for path in remote.files if content.ours(path) and path not in files])


def pinned(release: Release, remote: Remote, options: Options) -> str | None:
    """The tag that the card names: the new one, or the one it names already while all else is as it was then."""
    if options.tag:
        return options.tag
    named = card.revision(remote.card) if remote.card else None
    changes = compare(release.files, remote)
    others = {*changes.add, *changes.delete} - {content.CARD}
    return named if named in remote.tags and not others else None


def refuse_to_overwrite(api: HfApi, release: Release, remote: Remote, changes: Changes, options: Options) -> None:
    """What stands there must be what this run has put there, unless it is the same anyway."""
    if options.tag in remote.tags and (changes or remote.tags[options.tag] != remote.head):
        raise Refused(f"tag={options.tag!r} stands at {remote.tags[options.tag][:10]} already: choose another; {SAFE}")
    known = recorded(release).get(options.branch, {})
    if not changes or options.force or known.get("commit") == remote.head:
        return
    theirs = {path for path in remote.files if path != ".gitattributes"}
    if not known and not theirs:
        return
    then = known.get("files", {})
    moved = {path for path in (*then, *remote.files) if then.get(path) != remote.files.get(path)}
    if known and options.pull_card and moved <= {content.CARD}:
        return
    if not known:
        raise Refused(
            f"{release.name} holds {count(theirs)} that this run has not published: --force replaces them; {SAFE}"
        )
    commits = newer(api, release.name, options.branch, known["commit"])
    raise Refused(
        f"{release.name} has moved since this run was published ({commits}): {', '.join(sorted(moved)) or 'no file'} "
        f"changed there; --pull_card takes over what was written on the card, --force replaces all; {SAFE}"
    )


def newer(api: HfApi, name: str, branch: str, commit: str) -> str:
    with doing(f"looking at the commits of {name}"):
        found = api.list_repo_commits(name, revision=branch)
    ids = [one.commit_id for one in found]
    later = found[: ids.index(commit)] if commit in ids else found
    return ", ".join(f"{one.commit_id[:10]} {one.title!r}" for one in later[:3])


def recorded(release: Release) -> dict[str, Any]:
    """What this run has published under this name, by branch."""
    if not release.record.is_file():
        return {}
    try:
        return json.loads(release.record.read_text(encoding="utf-8")).get(release.name, {})
    except ValueError as error:
        raise ValueError(f"{release.record} is not JSON: {error}; without it, everything is compared anew") from error


def write_record(release: Release, options: Options, commit: str, files: Mapping[str, str]) -> None:
    page = json.loads(release.record.read_text(encoding="utf-8")) if release.record.is_file() else {}
    page.setdefault(release.name, {})[options.branch] = {"commit": commit, "tag": options.tag, "files": dict(files)}
    replace(release.record, json.dumps(page, indent=1) + "\n")


# ---------------------------------------------------------------------------------------------------------------------
# Sending


def send(api: HfApi, release: Release, remote: Remote, changes: Changes, options: Options) -> str:
    """One commit, after the one that was looked at; gives the commit that the branch then stands at."""
    name, branch = release.name, options.branch
    with doing(f"making the repository {name}"):
        if not remote.exists:
            api.create_repo(name, private=True)
        if branch != MAIN and remote.head is None:
            api.create_branch(name, branch=branch, exist_ok=True)
        head = remote.head or api.model_info(name, revision=branch).sha
    if not changes:
        return head
    operations = [
        *(
            CommitOperationAdd(path, file if isinstance(file, bytes) else str(file))
            for path, file in changes.add.items()
        ),
        *(CommitOperationDelete(path) for path in changes.delete),
    ]
    message = options.message or f"Publish {release.record.resolve().parent.name}"
    with doing(f"sending {count(operations)} to {name}", unanswered=UNSURE):
        made = api.create_commit(name, operations, commit_message=message, revision=branch, parent_commit=head)
    return made.oid


def note(api: HfApi, release: Release, remote: Remote, options: Options, commit: str) -> None:
    """What is written down once the commit stands: the record, the tag."""
    stands = f"commit {commit} stands; the same command goes on"
    with doing(f"looking at {release.name} after the commit", stands):
        files = listed(api, release.name, commit)
    write_record(release, options, commit, files)
    if options.tag and options.tag not in remote.tags:
        with doing(f"tagging {commit[:10]} as {options.tag}", stands):
            api.create_tag(release.name, tag=options.tag, revision=commit, exist_ok=True)


def confirm(api: HfApi, name: str, commit: str, files: Mapping[str, Content]) -> golden.Checked:
    """Downloaded into an empty cache, compared byte for byte, and computed in a clean process."""
    token = api.token or get_token()
    environment = {"HF_ENDPOINT": api.endpoint, "HF_HUB_OFFLINE": "0", **({"HF_TOKEN": token} if token else {})}
    try:
        found = golden.check(name, commit, environment)
        wrong = [path for path, file in files.items() if found.digests.get(path) not in identities(file)]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} came back with other bytes")
    except ValueError as error:
        raise Refused(
            f"commit {commit} is published, but what the Hub gives back is not what is here: {error}"
        ) from error
    return found


def take_over(release: Release, published: str) -> None:
    """What was written on the published card, into the run's own."""
    own = card.render(release.facts, card.local_name(release.folder), former=published)
    replace(release.folder / content.CARD, own)


class Published(NamedTuple):
    commit: str
    tag: str | None
    public: bool
    sent: list[str]
    deleted: list[str]
    kept: int
    checked: golden.Checked


def publish(
    api: HfApi, release: Release, options: Options, tell: Callable[[str], None] = lambda text: None
) -> Published:
    """All of it, in the order in which nothing can be lost; `tell` hears what takes a while."""
    token = api.token or get_token()
    refuse_secrets({**release.files, content.CARD: written_card(release, options)}, options, token)
    check_account(api, release.name)
    remote = look(api, release.name, options.branch)
    former = remote.card if options.pull_card and remote.card else local_card(release)
    final = written_card(release, options, pinned(release, remote, options), former)
    files = {**release.files, content.CARD: final}
    refuse_secrets({content.CARD: final}, options, token)
    changes = compare(files, remote)
    refuse_to_overwrite(api, release, remote, changes, options)
    if changes.add.keys() & release.files.keys():
        tell("checking that these files compute, elsewhere, what the model computed here")
        golden.check_files(files)
    if changes:
        tell(f"sending {count(changes.add)}, {quantity(sum(map(size, changes.add.values())), 'B')}")
    commit = send(api, release, remote, changes, options)
    note(api, release, remote, options, commit)
    if former is not None and former is remote.card:
        take_over(release, former)
    tell("checking what the Hub gives back, from an empty cache")
    checked = confirm(api, release.name, commit, files)
    public = options.public or (remote.exists and not remote.private)
    if options.public and remote.private:
        with doing(f"opening {release.name} to everyone", "it is published, and private; the same command goes on"):
            api.update_repo_settings(release.name, private=False)
    kept = len(files) - len(changes.add)
    tag = options.tag or card.revision(final.decode())
    return Published(commit, tag, public, sorted(changes.add), changes.delete, kept, checked)
