"""Golden inputs and outputs: against what tokenizer, image processor and model give when they are asked directly, and
in clean processes, from folders and from the loopback Hub."""

import ast
import json
import os
import shutil
import signal
import stat
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import CommitOperationAdd, HfApi
from PIL import Image
from safetensors.torch import load, load_file, save_file
from transformers import AutoTokenizer, CLIPProcessor

from triune import modeling
from triune.configuration import TriuneConfig, TriuneMAEConfig, clip_preset, seq2seq_preset, stack_reading
from triune.configuration.configuration_triune import HEADS
from triune.training.hub import content, golden
from triune.training.image_processor import build_processor, load_processor
from triune.training.tokenizers import train_tokenizer


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**SMALL, "vocab_size": 99, "max_position_embeddings": 32, "pad_token_id": 0}
IMAGE = {**SMALL, "embedding": {"type": "patches", "image_size": [12, 8], "patch_size": 4}}
TOKEN = "hf_" + "Ab1" * 12


def randomised(model):
    """No parameter keeps its starting value, so one that is not loaded shows."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def saved(folder, head="TriuneForMaskedLM", processor=True, dtype=torch.float32, **config):
    """A folder with a model, and the model."""
    made = TriuneConfig(**config)
    model = randomised(getattr(modeling, head)(made)).to(dtype)
    model.save_pretrained(folder)
    if processor and made.embedding["type"] == "tokens":
        tokenizer = train_tokenizer("wordpiece", ["One two three."], 64, made.max_position_embeddings)
        tokenizer.save_pretrained(folder)
    elif processor:
        channels = made.embedding["num_channels"]
        build_processor((12, 8), [0.4] * channels, [0.3] * channels).save_pretrained(folder)
    return folder, model


SEVERAL = {
    "TriuneSeq2SeqModel": lambda: seq2seq_preset("seq2seq-mini", stacks=TEXT, decoder_start_token_id=2),
    "TriuneForConditionalGeneration": lambda: seq2seq_preset(
        "seq2seq-mini", stacks=TEXT, decoder={"max_position_embeddings": 9}, decoder_start_token_id=2
    ),
    "TriuneForMaskedImageModeling": lambda: TriuneMAEConfig(encoder=IMAGE, decoder=SMALL, mask_ratio=0.5),
    "TriuneCLIPModel": lambda: clip_preset("clip-mini", text=TEXT, vision=IMAGE),
}


def saved_of_several(folder, head, dtype=torch.float32, processor=True):
    """A folder with a model of several stacks and what it reads with, and the model."""
    config = SEVERAL[head]()
    model = randomised(getattr(modeling, head)(config)).to(dtype)
    model.save_pretrained(folder)
    made = {
        "tokens": train_tokenizer("wordpiece", ["One two three."], 64, 32),
        "patches": build_processor((12, 8), [0.4] * 3, [0.3] * 3),
    }
    needed = [made[embedding] for embedding in made if stack_reading(config, embedding)]
    if processor:
        (needed[0] if len(needed) == 1 else CLIPProcessor(made["patches"], made["tokens"])).save_pretrained(folder)
    return folder, model


def page_of(data):
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert list(header["__metadata__"]) == ["golden"]
    return json.loads(header["__metadata__"]["golden"])


def answer_of(model, **inputs):
    with torch.no_grad(), golden.one_thread():
        return model(**inputs)[0].float()


# ---------------------------------------------------------------------------------------------------------------------
# What the file holds


def test_golden_text(tmp_path):
    """Inputs equal the tokenizer's, outputs those of the model before it was saved; two rows, the second padded."""
    folder, model = saved(tmp_path / "bert", **TEXT)
    file = golden.write(folder)
    assert file == folder / content.GOLDEN
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    tensors, page = load_file(file), page_of(file.read_bytes())
    options = {"padding": True, "truncation": True, "max_length": 16, "return_tensors": "pt"}
    expected = AutoTokenizer.from_pretrained(folder)(page["texts"], **options)
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(tensors[f"inputs.{name}"], expected[name])
    long, short = tensors["inputs.attention_mask"].sum(1).tolist()
    assert short == 5 < long  # [CLS] One two . [SEP]
    logits = answer_of(model, input_ids=expected["input_ids"], attention_mask=expected["attention_mask"])
    assert torch.equal(tensors["outputs.logits"], logits)
    assert torch.equal(tensors["outputs.columns"], torch.arange(99))
    assert torch.equal(tensors["outputs.real"], expected["attention_mask"].bool())
    assert (page["auto_class"], page["dtype"], page["threads"]) == ("AutoModelForMaskedLM", "float32", 1)
    assert page["versions"]["torch"] == torch.__version__


def test_golden_image(tmp_path):
    """The picture as the processor and as Pillow see it, neither square nor of the model's size; outputs of the
    model before it was saved."""
    config = {**IMAGE, "num_labels": 3}
    folder, model = saved(tmp_path / "vit", "TriuneForImageClassification", **config)
    tensors = load(golden.compute(folder))
    raw = tensors["raw.images"]
    assert raw.dtype == torch.uint8
    assert raw.shape == (1, 3, 18, 17)
    picture = Image.fromarray(raw[0].permute(1, 2, 0).numpy())
    pixels = np.asarray(picture.resize((8, 12), Image.Resampling.BILINEAR), dtype=np.float64)
    expected = torch.tensor((pixels / 255 - 0.4) / 0.3).permute(2, 0, 1)[None]
    torch.testing.assert_close(tensors["inputs.pixel_values"], expected.float(), atol=1e-5, rtol=0)
    seen = load_processor(str(folder))(picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(tensors["inputs.pixel_values"], seen)
    assert torch.equal(tensors["outputs.logits"], answer_of(model, pixel_values=seen))
    assert tensors["outputs.real"].tolist() == [True]


def test_the_picture():
    """Every pixel against the formula in plain Python; it has structure: many values, channels that differ."""
    made = golden.picture(3, 9, 14)
    for row in range(9):
        for column in range(14):
            inside = 4 * (2 * row - 9) ** 2 + 4 * (2 * column - 14) ** 2 < 81
            values = [255 * column // 14, 255 * row // 9, 255 * inside]
            assert made[:, row, column].tolist() == [255 - value if inside else value for value in values]
    assert made.unique().numel() > 20
    assert golden.picture(1, 9, 14).shape == (1, 9, 14)


ENTRIES = {
    "TriuneModel": TEXT,
    "TriuneForMaskedLM": TEXT,
    "TriuneForPreTraining": TEXT,
    "TriuneForCausalLM": {**TEXT, "attention": "causal", "sliding_window": 4},
    "TriuneForSequenceClassification": {**TEXT, "num_labels": 3},
    "TriuneForTokenClassification": {**TEXT, "num_labels": 3},
    "TriuneForImageClassification": {**IMAGE, "num_labels": 3},
}


@pytest.mark.parametrize("processor", [True, False], ids=["with processor", "without"])
@pytest.mark.parametrize("head", HEADS)
def test_every_head(tmp_path, head, processor):
    """Inputs put into the model again give the outputs, in a file that is the same each time; without a tokenizer or
    an image processor too. What counts: tokens that are no padding, or whole rows."""
    folder, model = saved(tmp_path / "model", head, processor=processor, **ENTRIES[head])
    data = golden.compute(folder)
    assert all(golden.compute(folder) == data for _ in range(3))
    tensors = load(data)
    inputs = {name[7:]: tensor for name, tensor in tensors.items() if name.startswith("inputs.")}
    found = answer_of(model, **inputs)
    assert torch.equal(tensors["outputs.last_hidden_state" if head == "TriuneModel" else "outputs.logits"], found)
    mask = inputs.get("attention_mask")
    assert mask is None or mask.min() == 0
    expected = mask.bool() if mask is not None and found.dim() == 3 else torch.ones(found.shape[:-1]).bool()
    assert torch.equal(tensors["outputs.real"], expected)
    assert ("raw.images" in tensors) == (processor and "Image" in head)
    assert ("texts" in page_of(data)) == (processor and "Image" not in head)


def inputs_in(tensors):
    return {name[7:]: tensor for name, tensor in tensors.items() if name.startswith("inputs.")}


@pytest.mark.parametrize("processor", [True, False], ids=["with processor", "without"])
@pytest.mark.parametrize("head", SEVERAL)
def test_every_head_of_several_stacks(tmp_path, head, processor):
    """What is kept is named: it is that field of what the model answered before it was saved, to rounding, for its
    weights lie elsewhere in memory; and the file is the same each time. The inputs are what its stacks read, and what
    a model draws by chance or takes from labels."""
    folder, model = saved_of_several(tmp_path / "model", head, processor=processor)
    data = golden.compute(folder)
    assert golden.compute(folder) == data
    tensors, page = load(data), page_of(data)
    name = "last_hidden_state" if head == "TriuneSeq2SeqModel" else "logits"
    with torch.no_grad(), golden.one_thread():
        found = getattr(model(**inputs_in(tensors)), name)
    torch.testing.assert_close(tensors[f"outputs.{name}"], found[..., tensors["outputs.columns"]], atol=1e-6, rtol=0)
    assert tensors["outputs.real"].all() and tensors["outputs.real"].shape == found.shape[:-1]
    further = {"TriuneForMaskedImageModeling": ["noise"], "TriuneCLIPModel": []}.get(head, ["decoder_input_ids"])
    assert page.get("further", []) == further
    text, image = (stack_reading(model.config, embedding) is not None for embedding in ("tokens", "patches"))
    read = {*further, *(["input_ids", "attention_mask"] if text else []), *(["pixel_values"] if image else [])}
    assert inputs_in(tensors).keys() == read
    assert ("texts" in page) == (text and processor) and ("raw.images" in tensors) == (image and processor)
    if head == "TriuneForMaskedImageModeling":
        assert len(tensors["inputs.noise"].unique()) == 6 and page["auto_class"] == "AutoModelForMaskedImageModeling"
    if "decoder_input_ids" in further:
        length = min(16, model.config.decoder.max_position_embeddings)
        assert tensors["inputs.decoder_input_ids"].shape == (2, length)
        assert set(tensors["inputs.decoder_input_ids"][:, 0].tolist()) == {2}


def test_two_texts_where_the_model_has_segments(tmp_path):
    """Pairs as the tokenizer frames them, both segments in each row; the words' logits are kept, not the verdict's."""
    config = {**TEXT, "embedding": {"type": "tokens", "type_vocab_size": 2}}
    folder, model = saved(tmp_path / "model", "TriuneForPreTraining", **config)
    data = golden.compute(folder)
    tensors, (first, second) = load(data), page_of(data)["texts"]
    rows = AutoTokenizer.from_pretrained(folder)(
        [first, second], [second, second], padding=True, truncation=True, max_length=16, return_token_type_ids=True
    )
    assert {name: tensor.tolist() for name, tensor in inputs_in(tensors).items()} == dict(rows)
    assert all(set(row) == {0, 1} for row in rows["token_type_ids"]) and 0 in rows["attention_mask"][1]
    with torch.no_grad(), golden.one_thread():
        found = model(**inputs_in(tensors)).prediction_logits
    assert torch.equal(tensors["outputs.logits"], found)


def test_a_large_vocabulary(tmp_path):
    """50,000 words, and yet less than a megabyte: columns at equal distances, of every position."""
    folder, model = saved(tmp_path / "large", **{**TEXT, "vocab_size": 50_000})
    data = golden.compute(folder)
    tensors = load(data)
    assert len(data) < 1_000_000
    columns = tensors["outputs.columns"]
    assert torch.equal(columns, torch.arange(0, 50_000, 10))  # 2 x 13 x 50,000 / 2**17 = 9.9
    ids, mask = tensors["inputs.input_ids"], tensors["inputs.attention_mask"]
    assert torch.equal(tensors["outputs.logits"], answer_of(model, input_ids=ids, attention_mask=mask)[..., columns])


def test_half_precision(tmp_path):
    """Weights of bfloat16 are loaded as such, which the file says; its outputs are numbers of that type."""
    folder, model = saved(tmp_path / "half", dtype=torch.bfloat16, **TEXT)
    data = golden.compute(folder)
    logits = load(data)["outputs.logits"]
    assert page_of(data)["dtype"] == "bfloat16"
    assert logits.dtype == torch.float32
    assert torch.equal(logits.bfloat16().float(), logits)
    again = load(data)
    found = answer_of(model, input_ids=again["inputs.input_ids"], attention_mask=again["inputs.attention_mask"])
    assert torch.equal(found, logits)


def test_short_models_and_tokenizers_without_padding(tmp_path):
    """No longer than the model reads; one row where rows cannot be padded."""
    folder, _ = saved(tmp_path / "short", **{**TEXT, "max_position_embeddings": 7})
    assert load(golden.compute(folder))["inputs.attention_mask"].sum(1).tolist() == [7, 5]
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            page = json.loads((folder / name).read_text())
            page.pop("pad_token", None)
            (folder / name).write_text(json.dumps(page))
    assert load(golden.compute(folder))["inputs.input_ids"].shape == (1, 7)


def test_what_cannot_be_golden(tmp_path):
    """Weights that are not numbers, a tokenizer of another model, no head, weights that do not fit: each a line."""
    folder, _ = saved(tmp_path / "bert", **TEXT)
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] * float("nan")}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="numbers that are not finite"):
        golden.compute(folder)
    assert not (folder / content.GOLDEN).exists()
    save_file({key: weights[key] for key in weights if key != name}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="do not fit TriuneForMaskedLM"):
        golden.compute(folder)
    small, _ = saved(tmp_path / "small", **{**TEXT, "vocab_size": 8})
    with pytest.raises(ValueError, match=r"is not this model's: it gives the id \d+, and the model has 8"):
        golden.compute(small)
    (small / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"the tokenizer in .* cannot be loaded: "):
        golden.compute(small)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "architectures": None}))
    with pytest.raises(ValueError, match=r"has architectures \[\], and not one of TriuneModel"):
        golden.compute(small)


# ---------------------------------------------------------------------------------------------------------------------
# What is pasted, and what is sent to the clean process

NAMES = ["user/name", "a'b", 'a"b', "a\nimport os", "a\\", "{0}", "\u2028x", "'); import os; ('"]


@pytest.mark.parametrize("name", NAMES)
def test_the_snippet_embeds_names_as_strings(name, tmp_path):
    """Python of at most 12 lines whose only names of outside are the literals: against the syntax tree."""
    for revision in ("v1.0", name):
        text = golden.snippet(name, revision, "AutoModelForMaskedLM")
        assert len(text.splitlines()) <= 13
        tree = ast.parse(text)
        assign = next(node for node in tree.body if isinstance(node, ast.Assign))
        assert ast.literal_eval(assign.value) == (name, revision)
        imported = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
        assert imported == ["huggingface_hub", "safetensors.torch", "transformers"]
    shape = ast.dump(ast.parse(golden.snippet("x/y", "z", "AutoModelForMaskedLM")))
    assert ast.dump(tree).count("Call(") == shape.count("Call(")


def test_the_snippet_of_a_folder(tmp_path):
    """It has no revision and asks no Hub; a backbone has another output."""
    text = golden.snippet(str(tmp_path), None, "AutoModel")
    assert "revision" not in text
    assert "hf_hub_download" not in text
    assert "outputs.last_hidden_state" in text


def test_what_is_sent_is_whole():
    """The program compiles, and imports nothing that a downloader has not: neither Triune nor the tests."""
    tree = ast.parse(golden.program())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    allowed = {"torch", "transformers", "safetensors", "huggingface_hub", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in names} <= allowed


def test_the_usage_is_five_lines():
    """The class and the processor of the model, pinned."""

    class Facts:
        auto_class = "AutoModelForMaskedLM"
        processor = "AutoTokenizer"

    text = golden.usage("user/name", "abc", Facts)
    ast.parse(text)
    assert len(text.splitlines()) == 5
    assert "AutoTokenizer" in text
    assert text.count("revision=revision") == 2


def test_the_environment(tmp_path, monkeypatch):
    """Caches of this process stay here; a folder gets no token and no network; a repository gets the token that
    `hf auth login` left; what is given wins."""
    for name in ("HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_HOME", "HF_TOKEN"):
        monkeypatch.setenv(name, "here")
    local = golden.clean_environment(tmp_path, True, {})
    assert not {"HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_TOKEN"} & local.keys()
    assert (local["HF_HUB_OFFLINE"], local["HF_HOME"]) == ("1", str(tmp_path / "home"))
    assert golden.clean_environment(tmp_path, False, {})["HF_TOKEN"] == "here"
    assert golden.clean_environment(tmp_path, False, {"HF_HOME": "there"})["HF_HOME"] == "there"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(golden, "get_token", lambda: TOKEN)
    assert golden.clean_environment(tmp_path, False, {})["HF_TOKEN"] == TOKEN
    assert golden.clean_environment(tmp_path, False, {"HF_TOKEN": "given"})["HF_TOKEN"] == "given"


def test_the_reason_is_the_last_line_without_the_token():
    """What a process said last, redacted; a signal where it said nothing."""

    def done(code, stderr):
        return subprocess.CompletedProcess([], code, "", stderr)

    said = golden.why(done(1, f"a warning\n\nOSError: 401 for {TOKEN}\n"), TOKEN)
    assert said == "OSError: 401 for hf_…(39 characters)"
    assert golden.why(done(-signal.SIGKILL, "a warning"), None) == "it was ended by signal 9"
    assert golden.why(done(3, ""), None) == "it ended with 3 and said nothing"


def test_the_verdict():
    """Within what rounding may do, by the type of number; NaN and other inputs are refused."""

    def checked(**values):
        return golden.Checked(**{**PLAIN, **values})

    for fine in ({}, {"difference": 1e-4}, {"difference": 0.04, "dtype": "bfloat16"}, {"inputs_equal": None}):
        assert golden.judged(checked(**fine), "x") == checked(**fine)
    for bad in ({"difference": 0.1}, {"difference": float("nan")}, {"difference": 0.9, "dtype": "bfloat16"}):
        with pytest.raises(ValueError, match=r"x answers differently than golden\.safetensors says: by "):
            golden.judged(checked(**bad), "x")
    with pytest.raises(ValueError, match="its tokenizer or image processor makes other inputs"):
        golden.judged(checked(inputs_equal=False), "x")


PLAIN = {"difference": 0.0, "largest": 10.0, "inputs_equal": True, "dtype": "float32"}
PLAIN |= {"commit": None, "code_commit": None, "seconds": 1.0, "digests": {}}


# ---------------------------------------------------------------------------------------------------------------------
# Clean processes


@pytest.fixture
def started(monkeypatch):
    """The processes that the check starts: (arguments, environment)."""
    found, run = [], subprocess.run

    def record(arguments, **options):
        found.append((arguments, options["env"]))
        return run(arguments, **options)

    monkeypatch.setattr(golden.subprocess, "run", record)
    return found


def publish(api, name, folder, message):
    operations = [CommitOperationAdd(path, str(file)) for path, file in content.travelling(folder).items()]
    return api.create_commit(name, operations, commit_message=message).oid


LOGITS = "self.classifier(outputs.pooler_output)"  # in the code of the image model


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """(server, first commit, second commit) of a repository with an image model whose code changed: what it answers
    changed with it, and the golden file did not."""
    place = tmp_path_factory.mktemp("hub")
    folder, _ = saved(place / "vit", "TriuneForImageClassification", **IMAGE, num_labels=3)
    golden.write(folder)
    other = shutil.copytree(folder, place / "other")
    code = (other / "modeling_triune.py").read_text()
    assert code.count(LOGITS) == 1
    (other / "modeling_triune.py").write_text(code.replace(LOGITS, f"{LOGITS} * 2"))
    with pytest.MonkeyPatch.context() as patch, HubServer() as server:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        api = HfApi(endpoint=server.endpoint, token=TOKEN)
        api.create_repo("user/vit")
        commits = [publish(api, "user/vit", one, one.name) for one in (folder, other)]
        patch.undo()
        yield server, *commits


def test_check_of_a_repository(hub, started):
    """A pinned revision from the Hub, into an empty cache: difference 0.0, inputs made again, code and weights of the
    commit that was asked for and not of the newest. The token is in no argument."""
    server, first, _ = hub
    environment = {"HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
    found = golden.check("user/vit", first, environment)
    assert (found.difference, found.inputs_equal, found.dtype) == (0.0, True, "float32")
    assert (found.commit, found.code_commit) == (first, first)
    assert 0 < found.largest
    ((arguments, sent),) = started
    assert arguments[1] == "-I"
    assert not any(TOKEN in argument for argument in arguments)
    assert sent["HF_TOKEN"] == TOKEN
    assert not os.path.exists(sent["HF_HOME"])


def test_check_of_files(tmp_path, started):
    """The files that travel, from a folder with a stray file: difference 0.0, in a process that could import Triune
    and has no token."""
    folder, _ = saved(tmp_path / "bert", **TEXT)
    files = {**content.travelling(folder), content.GOLDEN: golden.compute(folder)}
    found = golden.check_files(files)
    assert (found.difference, found.inputs_equal, found.commit, found.code_commit) == (0.0, True, None, None)
    assert "HF_TOKEN" not in started[0][1]
    assert not (folder / content.GOLDEN).exists()


@pytest.mark.slow
def test_check_of_the_newest(hub):
    """Without a revision, and pinned to the second commit, its code is used: it answers differently."""
    server, _, second = hub
    for revision in (None, second):
        with pytest.raises(ValueError, match="answers differently than"):
            golden.check("user/vit", revision, {"HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0"})


@pytest.mark.slow
@pytest.mark.parametrize("head", SEVERAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_check_of_several_stacks(tmp_path, head, dtype):
    """In a clean process: difference 0.0, and what tokenizer and image processor make is made again."""
    folder, _ = saved_of_several(tmp_path / "model", head, dtype)
    golden.write(folder)
    found = golden.check(str(folder))
    assert (found.difference, found.inputs_equal, f"torch.{found.dtype}") == (0.0, True, str(dtype))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["TriuneModel", "TriuneForCausalLM"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_check_of_a_folder(tmp_path, head, dtype):
    """Other heads and half precision: difference 0.0 in the type that the weights have."""
    folder, _ = saved(tmp_path / "model", head, dtype=dtype, **ENTRIES[head])
    golden.write(folder)
    found = golden.check(str(folder))
    assert (found.difference, f"torch.{found.dtype}") == (0.0, str(dtype))


def spoil_weights(folder):
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name] + 1}, folder / "model.safetensors", {"format": "pt"})


def spoil_code(folder):
    (folder / "heads.py").write_text("raise RuntimeError('no\\nheads')\n")


def spoil_tokenizer(folder):
    file = folder / "tokenizer.json"
    page = json.loads(file.read_text())
    vocabulary = page["model"]["vocab"]
    vocabulary["One"], vocabulary["two"] = vocabulary["two"], vocabulary["One"]
    file.write_text(json.dumps(page))


def spoil_processor(folder):
    file = folder / "processor_config.json"
    page = json.loads(file.read_text())
    page["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    file.write_text(json.dumps(page))


@pytest.mark.slow
def test_both_processors_are_checked(tmp_path):
    """Of a model that reads images and texts, the image processor changed alone."""
    folder, _ = saved_of_several(tmp_path / "clip", "TriuneCLIPModel")
    golden.write(folder)
    spoil_processor(folder)
    with pytest.raises(ValueError, match="makes other inputs than those of"):
        golden.check(str(folder))


def use_installed(folder):
    (folder / "heads.py").write_text("import triune.modeling\n")


SPOILT = {
    "weights": (spoil_weights, r"answers differently than golden\.safetensors says"),
    "code": (spoil_code, "fails in a clean process: RuntimeError: no heads"),
    "tokenizer": (spoil_tokenizer, "makes other inputs than those of"),
    "no golden file": (lambda folder: (folder / content.GOLDEN).unlink(), r"FileNotFoundError: .*golden\.safetensors"),
    "installed Triune": (use_installed, "requires the following packages|No module named 'triune"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", SPOILT)
def test_check_of_a_spoilt_folder(tmp_path, what):
    """One line that says what is wrong."""
    spoil, says = SPOILT[what]
    folder, _ = saved(tmp_path / "bert", **TEXT)
    golden.write(folder)
    spoil(folder)
    with pytest.raises(ValueError, match=says) as caught:
        golden.check(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_check_of_what_is_not_there(hub):
    """A repository, a revision that the Hub has not, and no Hub at all: one line each, without the token."""
    server = hub[0]
    environment = {"HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
    for name, revision in (("user/none", None), ("user/vit", "v9")):
        with pytest.raises(ValueError, match=f"^{name}.* fails in a clean process: ") as caught:
            golden.check(name, revision, environment)
        assert "\n" not in str(caught.value)
        assert TOKEN not in str(caught.value)
    with pytest.raises(ValueError, match="fails in a clean process: "):
        golden.check("user/vit", None, {**environment, "HF_HUB_OFFLINE": "1"})
