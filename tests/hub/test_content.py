"""What travels from a model folder and what does not, on a small folder of the real kind and on everything that may
lie in it by mistake or by malice."""

import json
import shutil
import stat
import zlib

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPProcessor

from triune import modeling
from triune.configuration import TriuneConfig, TriuneMAEConfig, clip_preset, seq2seq_preset
from triune.configuration.configuration_triune import AUTO_MAP
from triune.configuration.export import reached
from triune.training.hub import content
from triune.training.image_processor import build_processor
from triune.training.tokenizers import train_tokenizer


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
CODE = {file.name for file in reached(["configuration_triune", "modeling_triune"])}
TEXT = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def png(width=1, height=1):
    """A grey picture, by the format's own rules."""

    def chunk(kind, data):
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    rows = zlib.compress((b"\0" + b"\x7f" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A complete model folder."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    modeling.TriuneForMaskedLM(TriuneConfig(**SMALL)).save_pretrained(folder)
    train_tokenizer("wordpiece", ["one two three"], 64, 32).save_pretrained(folder)
    save_file({"outputs.logits": torch.zeros(1)}, folder / content.GOLDEN)
    content.write_licence(folder)
    (folder / content.CARD).write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (folder / content.RECIPE).write_text("task: masked_lm\n")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run" / "model")


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def shard(folder, parts=2):
    """The weights in several files, as transformers writes them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for part in range(parts):
        name = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        own = {tensor: tensors[tensor] for tensor in names[part::parts]}
        save_file(own, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sorted(set(weight_map.values()))


# ---------------------------------------------------------------------------------------------------------------------
# What travels


def test_a_complete_folder(folder):
    """Everything that was saved travels, nothing is lacking, nothing stays: against the names that were written."""
    papers = {"LICENSE", "README.md", "recipe.yaml", "golden.safetensors"}
    assert set(content.travelling(folder)) == CODE | TEXT | papers
    assert list(content.travelling(folder)) == sorted(content.travelling(folder))
    assert content.lacking(folder) == []
    assert content.left_behind(folder) == []
    assert all(content.ours(name) for name in content.travelling(folder))


PLANTED = (
    *(".env", ".git/config", ".ssh/id_rsa", "id_rsa", "key.pem", "token", "notes.ipynb", "model.safetensors.partial"),
    *("pytorch_model.bin", "model.pt", "data.pkl", "optimizer.safetensors", "ema.safetensors", "training_args.bin"),
    *("checkpoints/step-10/model.safetensors", "state.json", "run.yaml", "metrics.jsonl", "sitecustomize.py"),
    *("figures/.hidden.png", "figures/secret.txt", "figures/deep/x.png", "samples/a.jpg", "other/x.png"),
    *("README.md.bak", "model-00001-of-00002.safetensors", "tokenizer.model", "config.json~", "figures/a\nb.png"),
)


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_not_named_stays(folder, name):
    """A planted file does not travel, and is told to stay behind."""
    before = set(content.travelling(folder))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("secret")
    assert set(content.travelling(folder)) == before
    stays = content.left_behind(folder)
    assert len(stays) == 1
    assert name == stays[0] or (stays[0].endswith("/") and name.startswith(stays[0]))
    assert not content.ours(name) or name == "model-00001-of-00002.safetensors"


def test_pictures_travel(folder):
    """PNGs of the two folders, beside what stays in them."""
    for name in ("figures/loss.png", "samples/0.png", "figures/loss.svg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(png())
    assert {"figures/loss.png", "samples/0.png"} <= set(content.travelling(folder))
    assert content.left_behind(folder) == ["figures/loss.svg"]
    assert content.lacking(folder) == []


@pytest.mark.parametrize("name", ["README.md", "figures/loss.png", "model.safetensors", "losses.py", "tokenizer.json"])
def test_links_stay(folder, tmp_path, name):
    """A link does not travel, whether it leads out of the folder or to a file in it, and one is told."""
    (tmp_path / "secret").write_text("secret")
    (folder / ".env").write_text("secret")
    for target in (tmp_path / "secret", folder / ".env", folder / "config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
        assert name not in content.travelling(folder)
        assert any(line.startswith(f"{name} is a link") for line in content.lacking(folder))


def test_a_linked_folder_stays(folder, tmp_path):
    """Pictures behind a link do not travel; a link above the model folder does not matter."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "private.png").write_bytes(png())
    (folder / "figures").symlink_to(tmp_path / "elsewhere")
    assert not any("private" in name for name in content.travelling(folder))
    assert "figures" in content.left_behind(folder)
    (folder / "figures").unlink()
    (tmp_path / "link").symlink_to(folder)
    assert set(content.travelling(tmp_path / "link")) == set(content.travelling(folder))


def test_shards_of_the_index_travel(folder):
    """All that the index names and no others; with one file of weights, no shards."""
    shards = shard(folder)
    (folder / "model-00003-of-00003.safetensors").write_bytes((folder / shards[0]).read_bytes())
    weights = {name for name in content.travelling(folder) if name.startswith("model-") or "index" in name}
    assert weights == {*shards, "model.safetensors.index.json"}
    assert content.left_behind(folder) == ["model-00003-of-00003.safetensors"]
    assert content.lacking(folder) == []
    assert not content.without_weights(folder)
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    assert not any(name.startswith("model-") for name in content.travelling(folder))


def test_code_is_what_the_auto_classes_load(folder):
    """The files that auto_map names and those that they import in turn: against the family's list; others stay."""
    assert set(content.code_files(folder)) == CODE
    (folder / "parts.py").write_text("from .more import x\n")
    (folder / "more.py").write_text("x = 1\n")
    (folder / "unused.py").write_text("x = 1\n")
    assert set(content.code_files(folder)) == CODE | {"more.py"}
    assert content.left_behind(folder) == ["unused.py"]


def test_ours_is_what_publishing_may_take_away(tmp_path):
    """Files of the allow-list, whether they are here or not; never those that others add by hand."""
    for path in ("tokenizer.json", "figures/old.png", "model-00001-of-00009.safetensors", "losses.py", "README.md"):
        assert content.ours(path), path
    for path in (".gitattributes", "eval.py", "onnx/model.onnx", "figures/x/y.png", "photos/x.png", "model.gguf"):
        assert not content.ours(path), path


# ---------------------------------------------------------------------------------------------------------------------
# What is lacking


@pytest.mark.parametrize(
    ("name", "says"),
    {
        "model.safetensors": "there are no weights (model.safetensors; .bin and .pt are never published): save",
        "losses.py": "code is missing (losses.py)",
        "configuration_triune.py": "code is missing (configuration_triune.py)",
        "tokenizer.json": "tokenizer.json missing: save the tokenizer with tokenizer.save_pretrained",
        "tokenizer_config.json": "tokenizer_config.json missing",
        "LICENSE": "LICENSE is missing: put the text",
        "golden.safetensors": "golden.safetensors is missing",
        "README.md": "README.md is missing: scripts/publish.py writes it",
    }.items(),
)
def test_a_missing_file(folder, name, says):
    """One sentence, which names the file and says what to do."""
    (folder / name).unlink()
    (found,) = content.lacking(folder)
    assert says in found


def test_what_the_publisher_adds_is_not_lacking(folder):
    """Golden outputs and licence that are made on the way count; the card is the caller's."""
    golden = (folder / content.GOLDEN).read_bytes()
    for name in (content.GOLDEN, content.LICENSE, content.CARD):
        (folder / name).unlink()
    have = {**content.travelling(folder), content.GOLDEN: golden, content.LICENSE: content.licence()}
    assert content.lacking(folder, have=have) == []
    assert content.lacking(folder, have={**have, content.GOLDEN: golden[:-1]}) != []


def test_lacking_shards(folder):
    """A shard that is missing, that lacks a tensor, that is no shard: against the index."""
    shards = shard(folder, parts=3)
    (folder / shards[1]).unlink()
    assert [line for line in content.lacking(folder) if shards[1] in line] == content.lacking(folder)
    save_file({"x": torch.zeros(1)}, folder / shards[1])
    (found,) = content.lacking(folder)
    assert found.startswith(f"{shards[1]} does not hold")
    change(folder / "model.safetensors.index.json", weight_map={"x": "../../etc/passwd", "y": shards[0]})
    assert any("names '../../etc/passwd', which is no shard" in line for line in content.lacking(folder))
    assert not any("passwd" in name for name in content.travelling(folder))
    change(folder / "model.safetensors.index.json", weight_map={})
    assert any("names no shard" in line for line in content.lacking(folder))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model_type": "bert"}, "model_type 'bert'"),
        ({"auto_map": None}, "auto_map in config.json lacks or changes every entry"),
        ({"auto_map": {**AUTO_MAP, "AutoModel": "other/repo--x.Y"}}, "lacks or changes AutoModel, so others would"),
        ({"architectures": ["BertModel"]}, "architectures ['BertModel']"),
        ({"architectures": None}, "architectures None"),
        ({"attn_implementation": "someone/kernel"}, "would download and run code"),
        ({"hidden_act": "gelus"}, "did you mean 'gelu'"),
        ({"num_attention_heads": "two"}, "config.json is refused"),
        ({"vocab_file": "../.env"}, "vocab_file='../.env', which leads out"),
    ],
)
def test_a_wrong_configuration(folder, values, says):
    """One sentence, with the key and its value."""
    change(folder / "config.json", **values)
    (found,) = content.lacking(folder)
    assert says in found


def test_a_processor_is_asked_for_by_the_embedding(tmp_path):
    """Of images the image processor, of a backbone nothing."""
    config = TriuneConfig(**{**SMALL, "vocab_size": None}, embedding={"type": "patches", "image_size": 32})
    modeling.TriuneForImageClassification(config).save_pretrained(tmp_path / "image")
    assert any("preprocessor_config.json missing" in line for line in content.lacking(tmp_path / "image"))
    build_processor((32, 32), [0.5] * 3, [0.5] * 3).save_pretrained(tmp_path / "image")
    assert not any("missing: save" in line for line in content.lacking(tmp_path / "image"))
    modeling.TriuneModel(TriuneConfig(**SMALL)).save_pretrained(tmp_path / "backbone")
    assert not any("missing: save" in line for line in content.lacking(tmp_path / "backbone"))


STACK = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
PATCHES = {**STACK, "embedding": {"type": "patches", "image_size": 32, "patch_size": 8}}
SEVERAL = {
    "TriuneForConditionalGeneration": (lambda: seq2seq_preset("seq2seq-mini", stacks=SMALL), "seq2seq", "tokenizer"),
    "TriuneForMaskedImageModeling": (
        lambda: TriuneMAEConfig(encoder=PATCHES, decoder=STACK),
        "mae",
        "preprocessor_config",
    ),
    "TriuneCLIPModel": (lambda: clip_preset("clip-mini", text=SMALL, vision=PATCHES), "clip", "processor_config"),
}


def processor_of(head):
    tokenizer = train_tokenizer("wordpiece", ["one two three"], 64, 32)
    images = build_processor((32, 32), [0.5] * 3, [0.5] * 3)
    both = {"TriuneForMaskedImageModeling": images, "TriuneCLIPModel": CLIPProcessor(images, tokenizer)}
    return both.get(head, tokenizer)


@pytest.mark.parametrize("head", SEVERAL)
def test_a_model_of_several_stacks(head, tmp_path):
    """Complete with the code, the auto_map and the processors of its kind; what is taken away or changed is told."""
    make, kind, processor = SEVERAL[head]
    model = getattr(modeling, head)(make())
    model.save_pretrained(tmp_path)
    assert any("missing: save the" in line for line in content.lacking(tmp_path))
    processor_of(head).save_pretrained(tmp_path)
    papers = {content.GOLDEN, content.LICENSE, content.CARD}
    assert {line.split()[0] for line in content.lacking(tmp_path)} == papers
    modules = [f"configuration_triune_{kind}", f"modeling_triune_{kind}"]
    assert set(content.code_files(tmp_path)) == {file.name for file in reached(modules)}
    have = {**content.travelling(tmp_path), content.GOLDEN: b"", content.LICENSE: content.licence()}
    have[content.GOLDEN] = (tmp_path / "model.safetensors").read_bytes()  # any safetensors
    assert content.lacking(tmp_path, have) == []
    for name in (f"modeling_triune_{kind}.py", f"{processor}.json"):
        (found,) = content.lacking(tmp_path, {path: file for path, file in have.items() if path != name})
        assert name in found
    whole = json.loads((tmp_path / "config.json").read_text())
    change(tmp_path / "config.json", auto_map={**whole["auto_map"], "AutoConfig": "other/repo--x.Y"})
    (found,) = content.lacking(tmp_path, have)
    assert "lacks or changes AutoConfig" in found
    change(tmp_path / "config.json", auto_map=whole["auto_map"], architectures=["TriuneForMaskedLM"])
    (found,) = content.lacking(tmp_path, have)
    assert f"and not one of {', '.join(model.config.heads)}" in found


# ---------------------------------------------------------------------------------------------------------------------
# Files that are not what their names say

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("figures/loss.png", b"\x80\x04pickle", "figures/loss.png is no PNG"),
        ("figures/loss.png", png()[:-4], "is no PNG, or not a whole one"),
        ("figures/loss.png", png() + b"PK\x03\x04 a zip behind it", "is no PNG"),
        ("model.safetensors", b"\x80\x04pickle...", "model.safetensors is not what its name says"),
        ("golden.safetensors", b"", "golden.safetensors is not what its name says"),
        ("tokenizer.json", b"{'a': 1}", "tokenizer.json is no JSON"),
        ("tokenizer.json", b"[1, 2]", "holds a list, and no JSON object"),
        ("tokenizer.json", b'{"a": ' + DEEP.encode() + b"}", "tokenizer.json is not what its name says"),
        ("generation_config.json", b"\xff\xfe", "generation_config.json is no JSON"),
        ("tokenizer_config.json", b'{"vocab_file": ".env"}', "vocab_file='.env', which leads out of the folder"),
        ("tokenizer_config.json", b'{"x": [{"merges_file": "/etc/passwd"}]}', "merges_file='/etc/passwd'"),
        ("tokenizer_config.json", b'{"name_or_path": "/home/me/runs"}', "name_or_path='/home/me/runs'"),
        ("tokenizer_config.json", b'{"vocab_file": "a/../../b"}', "leads out"),
        ("tokenizer_config.json", b'{"vocab_file": "C:\\\\keys"}', "leads out"),
        ("tokenizer_config.json", b'{"vocab_file": "~/keys"}', "leads out"),
        ("losses.py", b"def f(:", "losses.py is not what its name says: invalid syntax"),
        ("recipe.yaml", b"a: [1", "recipe.yaml is not what its name says"),
        ("recipe.yaml", b"- a\n", "recipe.yaml holds no settings"),
        ("README.md", b"\xff\xfe\x00", "README.md is not UTF-8"),
        ("vocab.txt", b"a\0b", "vocab.txt is no text"),
    ],
)
def test_a_file_that_is_something_else(folder, name, data, says):
    """It is refused in one line that names it."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    (found,) = content.lacking(folder)
    assert says in found
    assert "\n" not in found


def test_harmless_paths_are_kept(folder):
    """Names of files beside it, and of repositories, are no paths out; words that look like paths are words."""
    harmless = {"vocab_file": "vocab.txt", "name_or_path": "user/bert", "unk_token": "../", "pad_token": "/"}
    change(folder / "tokenizer_config.json", **harmless, tokenizer_file=None)
    assert content.lacking(folder) == []


def test_truncated_weights(folder):
    """One byte less than the header says."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    (found,) = content.lacking(folder)
    assert found.startswith("model.safetensors is not what its name says")


# ---------------------------------------------------------------------------------------------------------------------
# Which folder


def test_model_folder(folder):
    """A run leads to its model; others are refused with what is near."""
    assert content.model_folder(folder.parent) == folder
    assert content.model_folder(str(folder)) == folder
    with pytest.raises(ValueError, match=r"there is no folder '.*rum'; did you mean 'run'"):
        content.model_folder(folder.parent.parent / "rum")
    (folder / "config.json").unlink()
    for wrong in (folder, folder.parent):
        with pytest.raises(ValueError, match=r"holds no config\.json: a finished run leaves"):
            content.model_folder(wrong)
    with pytest.raises(ValueError, match="there is no folder"):
        content.model_folder("no/such/place")
    with pytest.raises(ValueError, match="there is no folder"):
        content.model_folder(folder / "README.md")


def test_licence(tmp_path):
    """The family's own text, readable by all; another that lies there is kept."""
    file = content.write_licence(tmp_path)
    assert "Apache License" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    file.write_text("mine")
    assert content.write_licence(tmp_path).read_text() == "mine"


def test_without_weights(folder):
    """Neither a file of weights nor an index."""
    assert not content.without_weights(folder)
    (folder / "model.safetensors").unlink()
    assert content.without_weights(folder)
