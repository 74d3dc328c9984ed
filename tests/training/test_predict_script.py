"""`scripts/predict.py` and what it calls: answers against transformers' own pipelines and `generate`, inputs from
everywhere, and what a mistake is told. The models are small and untrained; their weights are large, so that answers
differ."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from script_loading import load_script
from transformers import AutoImageProcessor, pipeline

from triune.configuration import TriuneConfig
from triune.modeling import (
    TriuneForCausalLM,
    TriuneForImageClassification,
    TriuneForMaskedLM,
    TriuneForSequenceClassification,
    TriuneModel,
)
from triune.training import prediction
from triune.training.answering.go_on import Drawn, choices
from triune.training.image_processor import build_processor
from triune.training.prediction import load
from triune.training.sampling import generator
from triune.training.tokenizers import train_tokenizer


ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "predict.py"
LENGTH = 24
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.4}
CLASSES = {"id2label": {0: "calm", 1: "wild", 2: "odd"}, "label2id": {"calm": 0, "wild": 1, "odd": 2}}
MASKED = ["abc [MASK] de fgh", "[MASK] abc", "de de [MASK] abc fgh abc de"]
PROMPTS = ["abc de", "f", "abc de fgh abc"]

script = load_script("scripts/predict.py")


def save(folder, head, processor, **fields):
    torch.manual_seed(1)
    head(TriuneConfig(**SMALL, **fields)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder for each of the four tasks."""
    folder = tmp_path_factory.mktemp("models")
    words = random.Random(0)
    text = [" ".join(words.choices(["abc", "de", "fgh", "abcde"], k=9)) for _ in range(20)]
    pieces, letters = (train_tokenizer(kind, text, 64, LENGTH) for kind in ("wordpiece", "characters"))
    size = {"vocab_size": len(pieces), "max_position_embeddings": LENGTH, "pad_token_id": 0}
    patches = {"type": "patches", "image_size": 8, "patch_size": 4, "num_channels": 1}
    causal = {**size, "vocab_size": len(letters), "attention": "causal", "bos_token_id": 2, "eos_token_id": 3}
    return {
        "fill": save(folder / "fill", TriuneForMaskedLM, pieces, **size),
        "continue": save(folder / "continue", TriuneForCausalLM, letters, **causal),
        "texts": save(folder / "texts", TriuneForSequenceClassification, pieces, **size, **CLASSES),
        "images": save(
            folder / "images",
            TriuneForImageClassification,
            build_processor((8, 8), [0.4], [0.3]),
            embedding=patches,
            **CLASSES,
        ),
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    random = torch.Generator().manual_seed(0)
    for name, size in (("a.png", (8, 8)), ("b.png", (20, 12)), ("deep/c.png", (9, 30))):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(torch.randint(0, 256, size, generator=random).byte().numpy()).save(folder / name)
    (folder / "d.jpg").write_bytes(b"no image")
    return folder


def ask(model, inputs, batch_size=32, **options):
    return list(prediction.answers(load(model), inputs, options, batch_size))


# ---------------------------------------------------------------------------------------------------------------------
# What is answered


def assert_same(found, expected, name):
    """The same names in the same order, with the same scores."""
    assert [one[name] for one in found] == [one[name] for one in expected]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], rel=1e-4)


def test_fill_is_what_the_pipeline_says(models):
    """Tokens, scores and filled text of a padded batch, against `fill-mask` on one text at a time."""
    pipe = pipeline("fill-mask", models["fill"], top_k=4)
    for text, answer in zip(MASKED, ask(models["fill"], MASKED, top_k=4)):
        expected = pipe(text)
        assert_same(answer["masks"][0], expected, "token_str")
        assert answer["filled"] == expected[0]["sequence"]


def test_each_mask_has_its_answers(models):
    """Two masks in a text, against the two lists that `fill-mask` gives."""
    text = "abc [MASK] de [MASK]"
    (answer,) = ask(models["fill"], [text], top_k=3)
    for own, expected in zip(answer["masks"], pipeline("fill-mask", models["fill"], top_k=3)(text), strict=True):
        assert_same(own, expected, "token_str")


def test_greedy_continuation_is_generate(models):
    """Temperature 0 on a padded batch, against `generate` on each text alone: without the token that ends a text
    behind the prompt, and without special tokens."""
    saved = load(models["continue"])
    for text, answer in zip(PROMPTS, ask(models["continue"], PROMPTS, temperature=0.0, max_new_tokens=8)):
        ids = torch.tensor([[2, *saved.processor(text, add_special_tokens=False)["input_ids"]]])
        said = saved.model.generate(ids, max_new_tokens=8, do_sample=False, suppress_tokens=[0, 1, 2, 4])
        new = saved.processor.decode(said[0, ids.shape[1] :], skip_special_tokens=True)
        assert answer["continuation"] == new
        assert answer["tokens"] == len(new)


def test_a_continuation_is_its_own(models):
    """Drawn texts longer than the model reads at once, alone and in batches: the same. Another seed, other texts; the
    same text again, another one. The global generator stays as it was."""
    inputs = [*PROMPTS, PROMPTS[0], "abc de fgh" * 4]
    before = torch.get_rng_state()
    together = ask(models["continue"], inputs, max_new_tokens=60)
    assert ask(models["continue"], inputs, max_new_tokens=60, batch_size=2) == together
    assert ask(models["continue"], inputs[:1], max_new_tokens=60) == together[:1]
    assert torch.equal(torch.get_rng_state(), before)
    assert ask(models["continue"], inputs[:1], max_new_tokens=60, seed=1) != together[:1]
    assert together[0] != together[3]
    assert all(answer["ended"] or answer["tokens"] == 60 for answer in together)
    assert max(answer["tokens"] for answer in together) > LENGTH


def test_a_window_moves_on_by_half(models):
    """Past the model's length: the next token is that of the last half of what was read, in a call by hand."""
    saved = load(models["continue"])
    text = "abcdefgh" * 3
    ids = [2, *saved.processor(text, add_special_tokens=False)["input_ids"]]
    assert len(ids) > LENGTH
    logits = saved.model(input_ids=torch.tensor([ids[-LENGTH // 2 :]])).logits[0, -1]
    logits[[0, 1, 2, 4]] = -torch.inf
    (answer,) = ask(models["continue"], [text], temperature=0.0, max_new_tokens=1)
    expected = int(logits.argmax())
    assert answer["ended"] if expected == 3 else answer["continuation"] == saved.processor.decode([expected])


def test_draws_follow_the_softmax():
    """How often each of six tokens is drawn in 6,000 rows, against the softmax at temperature 2, and against its part
    that top-k and top-p leave."""
    scores = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
    drawn = Drawn([generator(0, place) for place in range(6000)])
    for temperature, top_k, top_p, kept in ((2.0, 6, 1.0, 6), (1.0, 3, 1.0, 3), (1.0, 6, 0.7, 2)):
        table = scores.expand(6000, -1)
        for change in [*choices(temperature, top_k, top_p), drawn]:
            table = change(None, table)
        shares = table.argmax(1).bincount(minlength=6) / 6000
        expected = (scores / temperature).softmax(0)
        expected[kept:] = 0
        assert torch.allclose(shares, expected / expected.sum(), atol=0.025)


def test_text_classes_are_what_the_pipeline_says(models):
    """Scores of a padded batch, one of its texts too long, against `text-classification`."""
    texts = ["abc de", "fgh", "abc de fgh " * 20]
    pipe = pipeline("text-classification", models["texts"], top_k=3, truncation=True, max_length=LENGTH)
    for answer, expected in zip(ask(models["texts"], texts), pipe(texts), strict=True):
        assert_same(answer["top"], expected, "label")
        assert (answer["label"], answer["score"]) == (answer["top"][0]["label"], answer["top"][0]["score"])


def test_image_classes_are_those_of_the_saved_processor(models, pictures):
    """Grey images of three sizes in a batch, against processor and model on each of them; one that is no image is
    answered with an error."""
    paths = list(prediction.image_paths([str(pictures)]))
    assert [Path(path).name for path in paths] == ["a.png", "b.png", "d.jpg", "c.png"]
    processor = AutoImageProcessor.from_pretrained(models["images"], backend="pil")
    model = TriuneForImageClassification.from_pretrained(models["images"])
    for path, answer in zip(paths, ask(models["images"], paths), strict=True):
        if path.endswith(".jpg"):
            assert answer == {"image": path, "error": "not an image"}
            continue
        inputs = processor(images=[Image.open(path).convert("L")], input_data_format="none", return_tensors="pt")
        scores = model(inputs["pixel_values"].reshape(1, 1, 8, 8)).logits[0].softmax(-1).tolist()
        assert {one["label"]: one["score"] for one in answer["top"]} == pytest.approx(
            {CLASSES["id2label"][place]: score for place, score in enumerate(scores)}, rel=1e-4
        )


# ---------------------------------------------------------------------------------------------------------------------
# The script


@pytest.fixture
def run(capsys, monkeypatch):
    """Call the script: its exit status, and the lines that it printed."""

    def call(*argv, stdin=None):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin or ""))
        status = script.main(list(argv))
        return status, capsys.readouterr().out.splitlines()

    return call


def test_inputs_from_everywhere_are_answered_alike(models, run, tmp_path):
    """Arguments, the lines of a file and those of stdin, blank ones between: the same objects of JSON."""
    (tmp_path / "lines.txt").write_text("\n\n".join(MASKED), encoding="utf-8")
    expected = ask(models["fill"], MASKED)
    for argv, stdin in (
        ((*MASKED, "--json"), None),
        (("--json", "--file", str(tmp_path / "lines.txt")), None),
        (("--json",), "\n".join(MASKED) + "\n\n"),
    ):
        status, lines = run(models["fill"], *argv, stdin=stdin)
        assert status == 0
        assert [json.loads(line) for line in lines] == expected


def test_what_people_read(models, run, pictures):
    """The lines, against the answers: a gap filled and its list, a continuation behind its text and a line between
    two, a class with its share; an image that cannot be read makes the status 1."""
    (answer,) = ask(models["fill"], ["abc [MASK] de"], top_k=2)
    words = [f"{one['token_str']} {one['score']:.1%}" for one in answer["masks"][0]]
    best = answer["masks"][0][0]["token_str"]
    assert run(models["fill"], "abc [MASK] de", "--top_k", "2") == (0, [f"abc [{best}] de", "  " + ", ".join(words)])
    said = [answer["text"] + answer["continuation"] for answer in ask(models["continue"], ["abc", "de"], seed=3)]
    assert run(models["continue"], "abc", "de", "--seed", "3")[1] == "\n---\n".join(said).splitlines()
    (answer,) = ask(models["texts"], ["abc"], top_k=1)
    assert run(models["texts"], "abc", "--top_k", "1")[1] == [f"{'abc':60}  {answer['label']} {answer['score']:.1%}"]
    status, lines = run(models["images"], str(pictures))
    assert status == 1 and len(lines) == 4
    assert f"{pictures / 'd.jpg'}  not an image" in lines


def test_terminals_are_not_steered(models):
    """A control sequence in a continuation is not printed as one."""
    shown = prediction.show(
        SimpleNamespace(task="causal_lm", processor=None), {"text": "a\n", "continuation": "\x1b[2J"}
    )
    assert shown == "a\n\N{REPLACEMENT CHARACTER}[2J"


def test_nothing_to_do_at_a_terminal(models, run, monkeypatch):
    """Without inputs, where someone would have to type them: the usage, with an example that this model answers."""
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(io, "StringIO", lambda text: terminal)
    for kind, asked in (("fill", "[MASK]"), ("continue", "beginning"), ("images", ".png")):
        status, lines = run(models[kind])
        assert status == 2
        assert "usage: " in lines[0] and asked in lines[-1] and models[kind] in lines[-1]


@pytest.mark.parametrize(
    ("kind", "argv", "told"),
    [
        ("fill", ["abc de"], "'abc de' has no [MASK], which stands for a hidden word"),
        ("fill", ["abc [MASK]" * 15], f"tokens, and the model reads {LENGTH} at once"),
        ("fill", ["abc [MASK]", "--topk", "3"], "there is no flag --topk; did you mean '--top_k'?"),
        ("fill", ["[MASK]", "--temperature", "1"], "temperature=1.0 has no meaning for masked_lm; its options: top_k"),
        ("fill", ["[MASK]", "--top_k", "0"], "top_k=0 is not allowed: it must be at least 1"),
        ("fill", ["[MASK]", "--batch_size", "0"], "batch_size=0 is not allowed"),
        ("fill", ["[MASK]", "--file", "x"], "give one of them"),
        ("fill", ["--file", "setup.cgf"], "there is no such file; did you mean 'setup.cfg'?"),
        ("fill", ["setup.cfg"], "'setup.cfg' is a file: to read its lines, give --file setup.cfg"),
        ("fill", [], "nothing to answer: stdin has no line that is not blank"),
        ("continue", ["abc", "--top_p", "1.5"], "top_p=1.5 is not allowed"),
        ("continue", ["abc", "--temperature", "-1"], "temperature=-1.0 is not allowed: it must be at least 0"),
        ("images", ["LICENCE"], "there is no image 'LICENCE'; did you mean 'LICENSE'?"),
        ("images", ["recipes"], "the folder 'recipes' holds no image (.png, "),
    ],
)
def test_mistakes_are_told(models, run, monkeypatch, kind, argv, told):
    """Each in a line that names the value and what is allowed, not in a traceback."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        run(models[kind], *argv)
    assert str(stop.value).startswith("error: ") and told in str(stop.value)


def test_models_that_are_none(models, run, tmp_path, monkeypatch):
    """A misspelt folder, one without a model, a model without tokenizer or image processor, a head of no task."""
    shutil.copytree(models["fill"], tmp_path / "runs" / "bert" / "model")
    monkeypatch.chdir(tmp_path)

    def told(name):
        with pytest.raises(SystemExit) as stop:
            run(name, "abc [MASK]")
        return str(stop.value)

    assert "did you mean 'runs/bert/model'?" in told("runs/brt/model")
    assert "'runs' holds no config.json" in told("runs")
    assert run("runs/bert", "abc [MASK]") == run("runs/bert/model", "abc [MASK]")
    (tmp_path / "runs/bert/model/tokenizer.json").unlink()
    assert "holds no tokenizer (tokenizer.json)" in told("runs/bert/model")
    shutil.copytree(models["images"], tmp_path / "images")
    (tmp_path / "images/preprocessor_config.json").unlink()
    assert "holds no image processor (preprocessor_config.json)" in told("images")
    TriuneModel(TriuneConfig(**SMALL)).save_pretrained(tmp_path / "backbone")
    assert "was saved as ['TriuneModel']" in told("backbone")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "missing: model.norm.weight"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "unexpected: extra"),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}),
            "model.norm.weight (3,) and not (16,)",
        ),
    ],
)
def test_weights_have_to_fit(models, run, tmp_path, change, told):
    """One tensor missing, one too many, one of another shape: transformers starts it afresh or leaves it out, and only
    warns; here it is an error."""
    shutil.copytree(models["fill"], tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(SystemExit) as stop:
        run(str(tmp_path / "model"), "[MASK]")
    assert f"do not fit TriuneForMaskedLM; {told}" in str(stop.value).replace("of another shape: ", "")


def test_as_a_command(models):
    """In a process of its own: the answer of this process on stdout, and not a word on stderr."""
    command = [sys.executable, str(SCRIPT), models["fill"], MASKED[0], "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    (expected,) = ask(models["fill"], MASKED[:1])
    assert_same(json.loads(done.stdout)["masks"][0], expected["masks"][0], "token_str")
