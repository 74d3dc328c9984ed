"""Publishing against the loopback Hub: what it is told, what it is left with, what a person is told; and a model that
comes back. The Hub (`hub_server.py`) is checked by stock clients in `test_hub_server.py`.

Runs are real ones, small, trained once. The check of what came back starts a process of seconds: where something else
is asked, a stand-in notes that it was called.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from hub_repository import Account
from hub_server import HubServer
from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.utils import _http
from safetensors.torch import load_file
from script_loading import load_script
from small_runs import OTHERS

from triune.configuration.configuration_triune_clip import clip_preset
from triune.modeling import TriuneForMaskedLM
from triune.training.hub import content, golden
from triune.training.hub.publish import Options, Refused, prepare, publish


ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_PlantedByTheTestsOfPublishing0123456789"
NAME = "user/model"


@pytest.fixture
def bert(runs, tmp_path):
    return Path(shutil.copytree(runs / "bert", tmp_path / "bert"))


def fingerprint(folder):
    """Everything below a folder, but for the record of what was published."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "published.json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---------------------------------------------------------------------------------------------------------------------
# The Hub


@pytest.fixture
def hub(monkeypatch):
    """Reached from this process; retries do not wait."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    with HubServer() as server:
        yield server


def published(hub, name, commit):
    """The files of a commit, as digests."""
    files = hub.repositories[name].find(commit).files
    return {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}


@pytest.fixture
def checked(hub, monkeypatch):
    """What was asked to be checked, instead of a check: `test_a_model_comes_back` has the real one."""
    calls = []

    def stand_in(what, *rest):
        calls.append(what)
        digests = {} if not isinstance(what, str) else published(hub, what, rest[0])
        return golden.Checked(0.0, 1.0, True, "float32", None, None, 1.0, digests)

    monkeypatch.setattr(golden, "check", stand_in)
    monkeypatch.setattr(golden, "check_files", stand_in)
    return calls


def send(hub, folder, name=NAME, token=TOKEN, **options):
    options = Options(**options)
    return publish(HfApi(endpoint=hub.endpoint, token=token), prepare(folder, name, options), options)


def writes(hub):
    """Requests that change something."""
    return [path for method, path in hub.requests if method != "GET" and method != "HEAD" and "validate" not in path]


def commits(hub, name=NAME):
    return hub.repositories[name].branches["main"], len(hub.repositories[name].commits)


# ---------------------------------------------------------------------------------------------------------------------
# What is sent


def test_one_commit_has_everything(hub, bert, checked):
    """A first publication: a private repository, one commit with the files that travel, byte for byte, and the card of
    that name; checked before (the files) and after (the commit); the run as it was."""
    before = fingerprint(bert)
    done = send(hub, bert)
    commit, count = commits(hub)
    assert count == 2 and commit.oid == done.commit  # the first is the empty one
    expected = {path: file.read_bytes() for path, file in content.travelling(bert / "model").items()}
    card = commit.files["README.md"].decode()
    assert commit.files.keys() == expected.keys()
    assert [path for path in expected if commit.files[path] != expected[path]] == ["README.md"]
    assert 'name = "user/model"' in card and "./" not in card.split("## Use it")[1].split("##")[0]
    assert hub.repositories[NAME].private and not done.public
    assert len(checked) == 2 and checked[0].keys() == expected.keys() and checked[1] == NAME
    assert fingerprint(bert) == before


def test_again_sends_nothing(hub, bert, checked):
    """The same run a second time makes no request that changes anything; what came back is looked at again."""
    first = send(hub, bert)
    hub.requests.clear()
    again = send(hub, bert)
    assert writes(hub) == [] and again.sent == [] and again.commit == first.commit
    assert len(checked) == 3


def test_without_its_record_a_run_knows_its_work(hub, bert, checked):
    """`published.json` lost: all is compared, nothing is sent, nothing is refused."""
    first = send(hub, bert)
    (bert / "published.json").unlink()
    assert send(hub, bert).commit == first.commit and commits(hub)[1] == 2
    assert json.loads((bert / "published.json").read_text())[NAME]["main"]["commit"] == first.commit


def test_a_changed_card_is_sent_alone(hub, bert, checked):
    """What was written between the markers travels, and nothing else does; nothing is computed for it beforehand."""
    send(hub, bert)
    path = bert / "model" / "README.md"
    marker = re.search(r"<!-- yours: about .*-->\n", path.read_text()).group()
    path.write_text(path.read_text().replace(marker, marker + "\nWritten by hand & kept.\n"))
    done = send(hub, bert)
    commit, count = commits(hub)
    assert done.sent == ["README.md"] and commit.changed == ("README.md",) and count == 3
    assert "Written by hand & kept." in commit.files["README.md"].decode()
    assert len(checked) == 3


def test_what_is_not_wanted_any_more_goes(hub, bert, checked):
    """Weights in three parts, then in one: the parts and their index leave with the same commit; a file that somebody
    added stays."""
    model = leaving_model(bert)
    model.save_pretrained(bert / "model", max_shard_size="20KB")
    (bert / "model" / "model.safetensors").unlink(missing_ok=True)
    parts = sorted(path.name for path in (bert / "model").glob("model-*.safetensors"))
    send(hub, bert)
    assert len(parts) > 1 and set(parts) <= commits(hub)[0].files.keys()
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    api.create_commit(NAME, [CommitOperationAdd("notes.txt", b"mine")], commit_message="mine")
    for name in (*parts, "model.safetensors.index.json"):
        (bert / "model" / name).unlink()
    model.save_pretrained(bert / "model")
    done = send(hub, bert, force=True)
    files = commits(hub)[0].files
    assert set(done.deleted) == {*parts, "model.safetensors.index.json"} and not set(parts) & files.keys()
    assert files["notes.txt"] == b"mine" and "model.safetensors" in files


def leaving_model(folder):
    return TriuneForMaskedLM.from_pretrained(folder / "model")


def test_a_model_that_no_run_left(hub, runs, tmp_path, checked):
    """Saved by save_pretrained alone: golden outputs, licence and card are made for the commit, and the folder is as
    it was but for the record, which does not travel; again, nothing is sent."""
    folder = tmp_path / "plain"
    leaving_model(runs / "bert").save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(runs / "bert" / "model" / name, folder / name)
    before = set(folder.iterdir())
    send(hub, folder)
    files = commits(hub)[0].files
    assert {"golden.safetensors", "LICENSE", "README.md", "model.safetensors"} < files.keys()
    assert files["golden.safetensors"] == (runs / "bert" / "model" / "golden.safetensors").read_bytes()
    assert "was not recorded" in files["README.md"].decode()
    assert {path.name for path in set(folder.iterdir()) - before} == {".published.json"}
    assert not [path for path in files if "published" in path] and send(hub, folder).sent == []


def test_a_tag_is_named_by_the_card(hub, bert, checked):
    """The snippets pin it, it stands at the commit; a later publication of the same names it still, one of other
    weights does not, and no tag is moved."""
    done = send(hub, bert, tag="v1")
    repository = hub.repositories[NAME]
    assert repository.tags["v1"].oid == done.commit and done.tag == "v1"
    assert 'revision = "v1"' in commits(hub)[0].files["README.md"].decode()
    again = send(hub, bert)
    assert again.sent == [] and again.tag == "v1"
    model = leaving_model(bert)
    model.lm_head.weight.data += 1.0
    model.save_pretrained(bert / "model")
    golden.write(bert / "model")
    with pytest.raises(Refused, match=r"tag='v1' stands at .* already: choose another"):
        send(hub, bert, tag="v1")
    other = send(hub, bert)
    assert other.tag is None and 'revision = "v1"' not in commits(hub)[0].files["README.md"].decode()


def test_public_is_opened_last(hub, bert, checked):
    """Made private, opened when the check is done: by the order of requests; and again without the flag it stays
    open."""
    done = send(hub, bert, public=True)
    kinds = [path.split("/")[-1] for path in writes(hub)]
    assert done.public and not hub.repositories[NAME].private
    assert kinds[0] == "create" and kinds[-1] == "settings"
    assert send(hub, bert).public


def test_a_branch(hub, bert, checked):
    """Another branch is made, and main is as it was."""
    done = send(hub, bert, branch="small")
    assert hub.repositories[NAME].branches["small"].oid == done.commit
    assert "config.json" not in commits(hub)[0].files


def test_no_examples(hub, runs, checked):
    """Nothing that stems from held-out data: no example of the summary in any file that is sent."""
    send(hub, runs / "gpt", examples=False)
    examples = json.loads((runs / "gpt" / "summary.json").read_text())["examples"]
    sent = b"".join(commits(hub)[0].files.values())
    assert examples and all(one["text"].encode() not in sent for one in examples)
    send(hub, runs / "vit", name="user/images", examples=False)
    assert not [path for path in commits(hub, "user/images")[0].files if path.startswith("samples/")]


# ---------------------------------------------------------------------------------------------------------------------
# What others have done


def test_what_others_have_put_there_is_not_overwritten(hub, bert, checked):
    """A repository with another model, and one that somebody has committed to since: refused with the files and the
    commit, and --force replaces."""
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    api.create_repo(NAME)
    api.create_commit(NAME, [CommitOperationAdd("config.json", b"{}")], commit_message="other")
    with pytest.raises(Refused, match="user/model holds 1 file that this run has not published: --force"):
        send(hub, bert)
    send(hub, bert, force=True)
    api.create_commit(NAME, [CommitOperationAdd("config.json", b"{}")], commit_message="mended by hand")
    with pytest.raises(Refused, match=r"moved since .* '?mended by hand'?\): config.json changed there"):
        send(hub, bert)
    assert commits(hub)[0].summary == "mended by hand"
    send(hub, bert, force=True)
    assert commits(hub)[0].files["config.json"] == (bert / "model" / "config.json").read_bytes()


def test_what_was_written_on_the_published_card_can_be_taken_over(hub, bert, checked):
    """Edited on the Hub between the markers: refused, taken over with the flag, and then the same everywhere."""
    send(hub, bert)
    text = commits(hub)[0].files["README.md"].decode()
    marker = re.search(r"<!-- yours: limits .*-->\n", text).group()
    edited = text.replace(marker, marker + "\nNot for poems.\n").encode()
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    api.create_commit(NAME, [CommitOperationAdd("README.md", edited)], commit_message="edited")
    with pytest.raises(Refused, match="--pull_card takes over what was written"):
        send(hub, bert)
    done = send(hub, bert, pull_card=True)
    assert "Not for poems." in commits(hub)[0].files["README.md"].decode() and done.sent in ([], ["README.md"])
    assert "Not for poems." in (bert / "model" / "README.md").read_text()
    assert send(hub, bert).sent == []


def test_a_commit_that_comes_in_between_is_not_lost(hub, bert, checked):
    """Somebody commits after the branch was looked at: HTTP 412, their work stands, the next try says what it is."""
    send(hub, bert)
    (bert / "model" / "recipe.yaml").write_text("task: masked_lm\n")
    repository = hub.repositories[NAME]
    hub.fault(lambda: repository.commit("main", "in between", {"theirs.txt": b"x"}), path="/commit/")
    with pytest.raises(Refused, match=r"someone has committed meanwhile.*HTTP 412"):
        send(hub, bert)
    assert commits(hub)[0].summary == "in between"
    with pytest.raises(Refused, match=r"theirs\.txt changed there"):
        send(hub, bert)


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong

FAULTS = {
    "500 always on whoami": ({"kind": 500, "path": "whoami", "times": None}, r"asking .* who is logged in.*HTTP 500"),
    "401 on whoami": ({"kind": 401, "path": "whoami"}, r"does not accept the token.*hf auth login.*HTTP 401"),
    "403 on create": ({"kind": 403, "path": "repos/create"}, r"making the repository .*write access.*HTTP 403"),
    "503 always on preupload": ({"kind": 503, "path": "/preupload/", "times": None}, r"sending .*HTTP 503"),
    "429 always on preupload": ({"kind": 429, "path": "/preupload/", "times": None}, r"too many requests.*HTTP 429"),
    "500 always on commit": ({"kind": 500, "path": "/commit/", "times": None}, r"sending \d+ files? .*HTTP 500"),
    "409 on commit": ({"kind": 409, "path": "/commit/"}, r"in conflict.*HTTP 409"),
    "400 on commit": ({"kind": 400, "path": "/commit/"}, r"does not accept it.*HTTP 400"),
    "reset in the commit": (
        {"kind": "reset", "path": "/commit/", "at": 1000, "times": None},
        r"the Hub does not answer",
    ),
    "cut answers": ({"kind": "truncate", "path": "/api/models/", "times": None}, r"the Hub does not answer|sending"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_and_mended_by_trying_again(hub, bert, checked, fault):
    """A sentence that says what was tried, why it failed and that nothing is lost; the run untouched, no commit to be
    seen; the same command, once the fault is over, completes it."""
    how, says = FAULTS[fault]
    before = fingerprint(bert)
    made = hub.fault(**how)
    with pytest.raises(Refused, match=says) as error:
        send(hub, bert)
    assert made.fired and re.search("the same command (tries again|finds out)", str(error.value))
    assert "\n" not in str(error.value) and TOKEN not in str(error.value)
    assert fingerprint(bert) == before and not (bert / "published.json").exists()
    if NAME in hub.repositories:
        assert "config.json" not in commits(hub)[0].files
    hub.faults.clear()
    assert send(hub, bert).commit == commits(hub)[0].oid and "model.safetensors" in commits(hub)[0].files


LARGE = {
    "no batch": {"kind": 500, "path": "objects/batch", "times": None},
    "no place to put": {"kind": 503, "method": "PUT", "times": None},
    "reset at byte 1,000": {"kind": "reset", "method": "PUT", "at": 1000, "times": None},
    "refused": {"kind": 403, "method": "PUT", "times": None},
    "not verified": {"kind": 500, "path": "verify", "times": None},
}


@pytest.mark.parametrize("fault", LARGE)
def test_a_fault_on_the_way_of_large_files(hub, bert, checked, monkeypatch, fault):
    """By LFS: whatever fails before the commit, no commit is there; tried again, it is complete."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub.mode = "lfs"
    before = fingerprint(bert)
    made = hub.fault(**LARGE[fault])
    with pytest.raises(Refused, match=r"sending \d+ files? to user/model: .*the same command (tries|finds)"):
        send(hub, bert)
    assert made.fired and fingerprint(bert) == before and commits(hub)[1] == 1
    hub.faults.clear()
    send(hub, bert)
    commit, count = commits(hub)
    weights = (bert / "model" / "model.safetensors").read_bytes()
    assert count == 2 and "model.safetensors" in commit.large and commit.files["model.safetensors"] == weights


@pytest.mark.parametrize("kind, path", [(500, "/preupload/"), (429, "/preupload/"), ("reset", "/preupload/")])
def test_what_passes_is_tried_again(hub, bert, checked, kind, path):
    """Twice a fault, then none: the client tries again by itself."""
    made = hub.fault(kind, path=path, times=2)
    send(hub, bert)
    assert made.fired == 2 and commits(hub)[1] == 2


def test_an_answer_that_was_lost(hub, bert, checked):
    """The commit stands, and the client never heard of it: told so, found the next time, and not made twice."""
    hub.fault("lost answer", path="/commit/")
    with pytest.raises(Refused, match=r"whether the commit was made is not known.*the same command finds out"):
        send(hub, bert)
    assert not (bert / "published.json").exists()
    send(hub, bert)
    assert commits(hub)[1] == 2 and json.loads((bert / "published.json").read_text())


def test_a_tag_that_failed_is_made_the_next_time(hub, bert, checked):
    """The commit stands and the sentence says so; again, nothing is sent but the tag."""
    hub.fault(500, path="/tag/", times=None)
    with pytest.raises(Refused, match=r"tagging \w{10} as v1.*commit \w{40} stands; the same command goes on"):
        send(hub, bert, tag="v1")
    hub.faults.clear()
    hub.requests.clear()
    done = send(hub, bert, tag="v1")
    assert done.sent == [] and hub.repositories[NAME].tags["v1"].oid == done.commit


def test_a_silent_hub_is_given_up(hub, bert, checked, monkeypatch):
    """No answer within the time that was set: a sentence, instead of waiting for ever."""
    from huggingface_hub import get_session

    monkeypatch.setattr(get_session(), "timeout", 0.3)
    hub.fault("stall", path="whoami", seconds=20)
    with pytest.raises(Refused, match=r"the Hub does not answer \(\w*Timeout"):
        send(hub, bert)


ACCOUNTS = {
    "a token that can only read": (Account("user", "read"), NAME, "the token of user cannot write to user/model"),
    "somebody else's name": (Account("other"), NAME, "'user/model': other can publish under other"),
    "a narrow token": (
        Account("user", "fineGrained", {}, {"user/else": ("repo.write",)}),
        NAME,
        "the token of user cannot write to user/model",
    ),
}


@pytest.mark.parametrize("case", ACCOUNTS)
def test_who_may_not_write_is_told_first(hub, bert, checked, case):
    """Before anything is made or sent."""
    account, name, says = ACCOUNTS[case]
    hub.tokens[TOKEN] = account
    with pytest.raises(Refused, match=re.escape(says)):
        send(hub, bert, name=name)
    assert writes(hub) == []


def test_those_who_may_write_do(hub, bert, checked):
    """A member of an organization, and a narrow token for this very repository."""
    hub.tokens[TOKEN] = Account("user", "fineGrained", {"team": "write"}, {"team/model": ("repo.write",)})
    send(hub, bert, name="team/model")
    assert "config.json" in commits(hub, "team/model")[0].files


def test_secrets_stop_everything(hub, bert, checked):
    """A planted key in a file that travels, the token itself in the card: refused by file and line, not shown, nothing
    sent; what looks like one may be allowed by name, the token may not."""
    key = "AKIA" + "ABCDEFGHIJKLMNOP"
    recipe = bert / "model" / "recipe.yaml"
    recipe.write_text(f"task: masked_lm\n# {key}\n")
    with pytest.raises(ValueError, match=r"recipe.yaml, line 2: ") as error:
        send(hub, bert)
    assert key not in str(error.value) and hub.requests == []
    send(hub, bert, not_secret=["recipe.yaml"])
    recipe.write_text(f"# {TOKEN}\n")
    with pytest.raises(ValueError, match="the token in use") as error:
        send(hub, bert, not_secret=["recipe.yaml"])
    assert TOKEN not in str(error.value)


def test_what_does_not_travel(hub, bert, checked):
    """Planted files of every kind that must not leave: none is in any commit, and no byte of them in any request."""
    planted = b"planted-" + b"x" * 24
    names = (".env", "id_rsa", "server.pem", "optimizer.safetensors", "pytorch_model.bin", "state.pt", "a.pkl")
    for name in (*names, "notes.ipynb", "figures/.hidden.png", "training_args.bin", "sub/model.safetensors"):
        path = bert / "model" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(planted)
    send(hub, bert)
    assert not any(planted in one.body for one in hub.received)
    files = commits(hub)[0].files
    assert not [path for path in files if Path(path).name in {*names, ".hidden.png"} or "sub" in path]


def test_the_token_is_no_argument(hub, bert, monkeypatch):
    """The process that checks has it in its environment, and in no argument; what it says is said without it."""
    seen = []

    def stand_in(command, **how):
        seen.append((command, how["env"]))
        return subprocess.CompletedProcess(command, 1, "", f"OSError: {TOKEN} was not liked")

    monkeypatch.setattr(golden, "check_files", lambda files: None)
    monkeypatch.setattr(golden.subprocess, "run", stand_in)
    with pytest.raises(
        Refused, match=r"commit \w{40} is published, but what the Hub gives back .* was not liked"
    ) as error:
        send(hub, bert)
    ((command, environment),) = seen
    assert TOKEN not in " ".join(map(str, command)) and environment["HF_TOKEN"] == TOKEN
    assert TOKEN not in str(error.value)


def test_the_token_is_nowhere(hub, bert, checked):
    """After a publication: in no body that was sent, no file of the run, no header but that of the Hub's own port."""
    hub.mode = "regular"
    send(hub, bert, tag="v1")
    assert not any(TOKEN.encode() in one.body or TOKEN in one.path for one in hub.received)
    names = {name for one in hub.received for name, value in one.headers.items() if TOKEN in value}
    assert names == {"authorization"}
    assert not [path for path in bert.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


# ---------------------------------------------------------------------------------------------------------------------
# The script


@pytest.fixture(scope="module")
def script():
    return load_script("scripts/publish.py")


def message(script, *argv):
    with pytest.raises(SystemExit) as stop:
        script.main([str(word) for word in argv])
    return str(stop.value)


def test_dry_run(script, runs, capsys, monkeypatch):
    """Every file with its size, the whole card, and no request: the Hub is not even asked."""
    monkeypatch.setattr(HfApi, "__init__", None)
    script.main([str(runs / "bert"), NAME, "--dry_run"])
    told = capsys.readouterr().out
    for path, _file in content.travelling(runs / "bert" / "model").items():
        assert path in told
    assert 'name = "user/model"' in told and "nothing was sent" in told and "model-index" in told


MISTAKES = {
    "no name": ((), "where to? The repository comes after the run"),
    "an illegal name": (("user/a--b",), "'user/a--b' is no name of a repository: "),
    "no owner": (("model",), "'model' is no name of a repository: it must be user/name"),
    "an unknown flag": ((NAME, "--publik"), "there is no flag --publik; did you mean '--public'?"),
    "offline": ((NAME,), "HF_HUB_OFFLINE is set, and publishing needs the Hub"),
    "an unknown licence": ((NAME, "--license", "appache-2.0"), "did you mean 'apache-2.0'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told_in_a_sentence(script, runs, case, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    words, says = MISTAKES[case]
    told = message(script, runs / "bert", *words)
    assert told.startswith("error: ") and says in told and "Traceback" not in told and TOKEN not in told


def test_no_token(script, runs, monkeypatch, tmp_path):
    """Not logged in: said before anything is asked."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "not logged in: `hf auth login`" in message(script, runs / "bert", NAME)


def test_a_mistake_of_ours_does_not_tell_the_token(script, runs, monkeypatch):
    """Even a traceback: the token in an exception's text is taken out."""

    def fail(*rest):
        raise RuntimeError(f"headers: Bearer {TOKEN}")

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(script.publish, "prepare", fail)
    told = message(script, runs / "bert", NAME)
    assert "Traceback" in told and "RuntimeError: headers: Bearer" in told and TOKEN not in told


def test_folders_that_are_no_model(script, bert, tmp_path):
    """No folder, no weights, of one stack or of several: each in a sentence."""
    assert "nothing-here" in message(script, tmp_path / "nothing-here", NAME)
    (bert / "model" / "model.safetensors").unlink()
    assert "model.safetensors" in message(script, bert, NAME)
    config = clip_preset("clip-mini")
    config.save_pretrained(tmp_path / "clip")
    assert "must name one of TriuneCLIPModel" in message(script, tmp_path / "clip", NAME)
    config.architectures = ["TriuneCLIPModel"]
    config.save_pretrained(tmp_path / "clip")
    assert "there are no weights (model.safetensors" in message(script, tmp_path / "clip", NAME)


def test_preview(script, bert):
    """A page beside the model folder, with the card's title."""
    script.main(["--preview", str(bert)])
    assert "Verify it" in (bert / "preview.html").read_text()


# ---------------------------------------------------------------------------------------------------------------------
# There and back

READER = """
import importlib.abc, json, sys

class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triune":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
sys.modules.pop("triune", None)
import torch
from safetensors.torch import load_file
import transformers

torch.set_num_threads(1)
name, revision, auto, kind, ask, golden = sys.argv[1:]
model = getattr(transformers, auto).from_pretrained(name, revision=revision, trust_remote_code=True).eval()
tensors = load_file(golden)
with torch.no_grad():
    logits = model(**{key[7:]: value for key, value in tensors.items() if key.startswith("inputs.")}).logits
torch.save(logits, sys.argv[6] + ".seen")
labels = {"candidate_labels": ["a", "b"]} if kind.startswith("zero-shot") else {}
pipe = kind and transformers.pipeline(kind, model=name, revision=revision, trust_remote_code=True)
answer = pipe(ask, **labels) if kind else "score: no pipeline does it"
print(json.dumps([type(model).__module__, "triune" in sys.modules, str(answer)]))
"""
KINDS = {
    "bert": ("AutoModelForMaskedLM", "fill-mask", "a [MASK] word"),
    "gpt": ("AutoModelForCausalLM", "text-generation", "abc"),
    "vit": ("AutoModelForImageClassification", "image-classification", "picture"),
    "pretraining": ("AutoModelForPreTraining", "fill-mask", "a [MASK] word"),
    "seq2seq": ("AutoModelForSeq2SeqLM", "", ""),
    "mae": ("AutoModelForMaskedImageModeling", "", ""),
    "clip": ("AutoModelForZeroShotImageClassification", "zero-shot-image-classification", "picture"),
}


def clean(hub, home, *command):
    """A process with an empty cache, to which Triune is not known, as far as it does not import it."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    environment = {
        **kept,
        **{"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"},
        **{"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    }
    return subprocess.run(
        [sys.executable, *map(str, command)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240
    )


def there_and_back(run, name, mode, tmp_path, sharded=False):
    """Published by the script, read by a clean process: against the outputs here."""
    auto, kind, ask = KINDS[name]
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    if sharded:
        leaving_model(folder).save_pretrained(folder / "model", max_shard_size="20KB")
        (folder / "model" / "model.safetensors").unlink(missing_ok=True)
    file = folder / "model" / "golden.safetensors"
    ask = str(folder / "model" / "samples" / "0.png") if ask == "picture" else ask
    with HubServer(mode=mode) as hub:
        sent = clean(hub, tmp_path / "here", "scripts/publish.py", folder, NAME)
        assert sent.returncode == 0, sent.stderr
        commit = commits(hub)[0]
        read = clean(hub, tmp_path / "there", "-I", "-c", READER, NAME, commit.oid, auto, kind, ask, file)
        assert read.returncode == 0, read.stderr
        large = {path for path in commit.files if path in commit.large}
        evidence = [(one.path, one.headers, one.body) for one in hub.received]
    told = sent.stdout + sent.stderr + read.stdout + read.stderr
    assert TOKEN not in told and not any(TOKEN.encode() in body for _, _, body in evidence)
    assert re.search(r"the same bytes, answers that differ by 0", " ".join(sent.stdout.split())), sent.stdout
    assert commit.oid in sent.stdout and "trust_remote_code=True" in sent.stdout
    module, known, answer = json.loads(read.stdout.splitlines()[-1])
    assert module.startswith("transformers_modules.") and commit.oid in module and not known
    assert ("generated_text" if name == "gpt" else "score") in answer
    model = getattr(transformers, auto).from_pretrained(folder / "model").eval()
    tensors = load_file(file)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        here = model(**{key[7:]: value for key, value in tensors.items() if key.startswith("inputs.")}).logits
    torch.set_num_threads(threads)
    seen = torch.load(f"{file}.seen", weights_only=True)
    pairs = zip(here, seen) if isinstance(here, tuple) else [(here, seen)]  # of two tasks both
    assert [(one - other).abs().max().item() for one, other in pairs] == [0.0] * (1 + isinstance(here, tuple))
    return commit, large


def test_a_model_comes_back(runs, tmp_path):
    """The script as a person runs it, in a process of its own: published, downloaded, checked; then read by name and
    revision in another process, from an empty cache, with the code of that commit: logits equal to the bit."""
    _commit, large = there_and_back(runs / "bert", "bert", "regular", tmp_path)
    assert large == set()


CODES = """
import sys
from transformers import AutoModelForMaskedLM

for revision in sys.argv[2:]:
    model = AutoModelForMaskedLM.from_pretrained(sys.argv[1], revision=revision, trust_remote_code=True)
    print(sys.modules[type(model).__module__].MARK)
"""


def test_a_pinned_revision_has_its_own_code(hub, bert, checked, tmp_path):
    """Two commits with different code under one name: in one process, with one cache, each revision runs its own,
    whichever came first."""
    code = bert / "model" / "modeling_triune.py"
    source, published = code.read_text(), []
    for mark in ("first", "second"):
        code.write_text(f'{source}\n\nMARK = "{mark}"\n')
        published.append(send(hub, bert).commit)
    first, second = published
    read = clean(hub, tmp_path / "there", "-I", "-c", CODES, NAME, second, first, second, "main", first)
    assert read.stdout.split() == ["second", "first", "second", "second", "first"], read.stderr


SPOILT = {
    "another byte": {"kind": "wrong_hash", "path": "resolve/.*model.safetensors", "method": "GET", "times": None},
    "another code": {"kind": "wrong_hash", "path": "resolve/.*modeling_triune.py", "method": "GET", "times": None},
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", SPOILT)
def test_what_comes_back_spoilt_is_noticed(hub, bert, fault):
    """The download is not what was sent: said with the commit, a repository that was to be opened stays private, and
    the same command, once the fault is over, is content and opens it."""
    hub.fault(**SPOILT[fault])
    with pytest.raises(Refused, match=r"commit \w{40} is published, but what the Hub gives back"):
        send(hub, bert, public=True)
    assert hub.repositories[NAME].private
    hub.faults.clear()
    done = send(hub, bert, public=True)
    assert done.sent == [] and done.checked.difference == 0.0 and not hub.repositories[NAME].private


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt", "vit"])
@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_every_model_comes_back(runs, tmp_path, name, mode):
    """All three kinds, with files in their commit and by LFS."""
    _commit, large = there_and_back(runs / name, name, mode, tmp_path)
    assert ("model.safetensors" in large) == (mode == "lfs")


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_models_of_other_tasks_come_back(others, tmp_path, name):
    """Of several stacks, and of BERT's two tasks: the same way, with the pipelines that there are."""
    there_and_back(others / name, name, "regular", tmp_path)


@pytest.mark.parametrize("name", OTHERS)
def test_models_of_other_tasks_are_sent_whole(hub, others, tmp_path, name, checked):
    """One commit with every file that travels, its card the one of that name; again, nothing is sent."""
    run = Path(shutil.copytree(others / name, tmp_path / "run"))
    send(hub, run)
    commit, _ = commits(hub)
    assert commit.files.keys() == content.travelling(run / "model").keys()
    assert 'name = "user/model"' in commit.files["README.md"].decode()
    assert send(hub, run).sent == []


@pytest.mark.slow
def test_weights_in_parts_come_back(runs, tmp_path):
    """Of several files and their index, by LFS as the Hub chooses."""
    _commit, large = there_and_back(runs / "bert", "bert", "hub", tmp_path, sharded=True)
    assert len([path for path in large if path.startswith("model-")]) > 1
