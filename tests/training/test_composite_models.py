"""Saved models of several stacks, and of pairs, are asked, measured, gone on from and made from presets as all others:
answers against the model's own forward pass, `generate` and transformers' pipeline, numbers against the run, weights
against the file. The models are small and untrained; their weights are large, so that answers differ."""

import json
import math
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
import yaml
from accelerate_state import reset_accelerate
from PIL import Image
from safetensors.torch import load_file
from script_loading import load_script
from transformers import CLIPProcessor

from triune.configuration import (
    CONFIGS,
    TriuneCLIPConfig,
    TriuneConfig,
    TriuneMAEConfig,
    TriuneSeq2SeqConfig,
    preset_of,
    stack_reading,
    stacks_of,
)
from triune.modeling import (
    TriuneCLIPModel,
    TriuneForConditionalGeneration,
    TriuneForImageClassification,
    TriuneForMaskedImageModeling,
    TriuneForMaskedLM,
    TriuneForPreTraining,
    TriuneForSequenceClassification,
)
from triune.modeling.embeddings import patchify
from triune.training import leaving, prediction
from triune.training import run as training
from triune.training.answering.write import said
from triune.training.arguments import Arguments, DataArguments, ModelArguments, TrainingArguments, parse
from triune.training.building import build_config, build_model
from triune.training.console import Console
from triune.training.image_processor import build_processor, denormalised
from triune.training.report import read
from triune.training.sampling import generator
from triune.training.tasks.pretraining import VERDICTS, with_segments
from triune.training.tokenizers import train_tokenizer


ROOT = Path(__file__).resolve().parents[2]
LENGTH, SIZE = 24, 8
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.4}
PATCHES = {"type": "patches", "image_size": SIZE, "patch_size": 4, "num_channels": 3}
PAIRS = ["abc [MASK] de\tfgh abc", "de [MASK]", "abc de\tfgh", "[MASK] abc fgh\t[MASK] de abcde abc"]
SOURCES = ["abc de", "fgh abcde de abc de fgh", "de"]
LABELS = ["abc", "de fgh", "abcde"]


pytestmark = pytest.mark.usefixtures("as_found")
predict, evaluation = load_script("scripts/predict.py"), load_script("scripts/eval.py")


def save(folder, head, config, *processors):
    torch.manual_seed(2)
    model = head(config)
    model.save_pretrained(folder)
    for processor in processors:
        processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer():
    words = random.Random(0)
    text = [" ".join(words.choices(["abc", "de", "fgh", "abcde"], k=9)) for _ in range(20)]
    return with_segments(train_tokenizer("wordpiece", text, 64, LENGTH))


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory):
    """A folder for each task."""
    folder = tmp_path_factory.mktemp("models")
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, **ids}
    vision = {**SMALL, "embedding": PATCHES}
    segments = {"embedding": {"type": "tokens", "type_vocab_size": 2}, "pooling": {"type": "cls", "dense": True}}
    ends = {
        **ids,
        "decoder_start_token_id": ids["bos_token_id"],
        "tie_word_embeddings": False,
    }  # tied, it says the start
    two = TriuneSeq2SeqConfig(encoder=text, decoder=text, **ends)
    clip = TriuneCLIPConfig(text={**text, "attention": "causal"}, vision=vision, projection_dim=8)
    clip.logit_scale_init_value = 1.0  # or one label has all of it
    images = build_processor((SIZE, SIZE), [0.4] * 3, [0.3] * 3)
    return {
        "pairs": save(folder / "pairs", TriuneForPreTraining, TriuneConfig(**text, **segments), tokenizer),
        "bert": save(folder / "bert", TriuneForMaskedLM, TriuneConfig(**text, **segments), tokenizer),
        "write": save(folder / "write", TriuneForConditionalGeneration, two, tokenizer),
        "match": save(folder / "match", TriuneCLIPModel, clip, CLIPProcessor(images, tokenizer)),
        "draw": save(
            folder / "draw", TriuneForMaskedImageModeling, TriuneMAEConfig(encoder=vision, decoder=SMALL), images
        ),
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    noise = torch.Generator().manual_seed(0)
    for name, size in (("a.png", (8, 8, 3)), ("b.png", (20, 12, 3)), ("d.png", (9, 30, 3))):
        Image.fromarray(torch.randint(0, 256, size, generator=noise).byte().numpy()).save(folder / name)
    (folder / "c.jpg").write_bytes(b"no image")
    return [str(folder / name) for name in ("a.png", "b.png", "c.jpg", "d.png")]


def ask(model, inputs, batch_size=32, **options):
    return list(prediction.answers(prediction.load(model), inputs, options, batch_size))


def assert_same(found, expected):
    """The same labels in the same order, with the same shares."""
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], rel=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# What is answered


@torch.no_grad()
def test_pairs_are_judged_by_the_model(models):
    """Verdict and words of texts and pairs in a padded batch: against the model on each by itself, as the tokenizer
    frames it."""
    saved = prediction.load(models["pairs"])
    model = TriuneForPreTraining.from_pretrained(models["pairs"]).eval()
    for text, answer in zip(PAIRS, ask(models["pairs"], PAIRS, top_k=2), strict=True):
        inputs = saved.processor(*text.split("\t"), return_tensors="pt")
        assert ("\t" in text) == bool(inputs["token_type_ids"].any())
        words, verdicts = model(**inputs).logits
        places = (inputs["input_ids"][0] == saved.processor.mask_token_id).nonzero().flatten()
        scores = words[0][places].softmax(-1).topk(2).values
        assert [[one["score"] for one in own] for own in answer["masks"]] == [
            pytest.approx(own, rel=1e-4) for own in scores.tolist()
        ]
        assert ("verdict" in answer) == ("\t" in text)
        if "verdict" in answer:
            score, place = verdicts[0].softmax(-1).max(-1)
            assert answer["verdict"] == {"label": VERDICTS[place], "score": pytest.approx(float(score), rel=1e-4)}


def test_written_text_is_generate(models):
    """Greedily and with three beams, a padded batch: against `generate` on each source alone."""
    saved = prediction.load(models["write"])
    assert saved.task == "seq2seq"
    for beams in (1, 3):
        found = ask(models["write"], SOURCES, num_beams=beams, max_new_tokens=9)
        for text, answer in zip(SOURCES, found, strict=True):
            inputs = saved.processor(text, return_tensors="pt", return_token_type_ids=False)
            ids = saved.model.generate(**inputs, max_new_tokens=9, num_beams=beams, do_sample=False)
            assert answer == {"text": text, "written": saved.processor.decode(ids[0], skip_special_tokens=True)}
        assert len({answer["written"] for answer in found}) > 1


def test_never_more_than_the_decoder_has_places_for(models):
    """Asked for 100 tokens, a decoder of 24 learned positions: written without an error, at most 24 words."""
    for answer in ask(models["write"], SOURCES):
        assert len(answer["written"].split()) <= LENGTH


def test_a_drawn_text_is_its_own(models):
    """Drawn in batches of one size and of another: the same. Another seed, other texts; the same text again, another
    one; and the global generator stays as it was."""
    inputs, before = [*SOURCES, SOURCES[0]], torch.get_rng_state()
    together = ask(models["write"], inputs, temperature=2.0)
    assert ask(models["write"], inputs, temperature=2.0, batch_size=2) == together
    assert ask(models["write"], inputs, temperature=2.0, seed=1) != together
    assert together[0] != together[3]
    assert torch.equal(torch.get_rng_state(), before)


def test_sentinels_are_read_and_written():
    """Gaps marked as T5 marks them: one token each, which stays in what was written; the frame does not."""
    own = train_tokenizer("wordpiece", ["abc de fgh"] * 9, 64, LENGTH)
    own.add_special_tokens({"additional_special_tokens": ["<extra_id_0>", "<extra_id_1>"]})
    ids = own("abc <extra_id_0> fgh")["input_ids"]
    sentinel = own.convert_tokens_to_ids("<extra_id_0>")
    assert ids.count(sentinel) == 1
    written = [own.bos_token_id, sentinel, *own("de", add_special_tokens=False)["input_ids"], own.eos_token_id, 0, 0]
    assert said(own, written) == "<extra_id_0> de"


def test_matched_labels_are_the_pipelines(models, pictures):
    """One template: against `zero-shot-image-classification`. The file that is no image is answered with an error."""
    pipe = transformers.pipeline("zero-shot-image-classification", models["match"], device="cpu")
    found = ask(models["match"], pictures, labels=LABELS, template=["abcde {}"])
    for path, answer in zip(pictures, found, strict=True):
        if path.endswith(".jpg"):
            assert answer == {"image": path, "error": "not an image"}
            continue
        assert_same(answer["top"], pipe(path, LABELS, hypothesis_template="abcde {}"))
        assert answer["image"] == path and answer["label"] == answer["top"][0]["label"]


@torch.no_grad()
def test_logits_of_several_templates_are_averaged(models, pictures):
    """Two templates, one label twice: against the mean of the model's logits, template by template."""
    templates = ["{}", "fgh {} de"]
    (answer,) = ask(models["match"], pictures[:1], labels=[*LABELS, LABELS[0]], template=templates, top_k=2)
    model = TriuneCLIPModel.from_pretrained(models["match"]).eval()
    processor = transformers.AutoProcessor.from_pretrained(models["match"])
    logits = 0
    for template in templates:
        texts = [template.format(label) for label in LABELS]
        inputs = processor(images=Image.open(pictures[0]), text=texts, padding=True, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        logits = logits + model(**inputs).logits[0] / 2
    scores = sorted(zip(logits.softmax(-1).tolist(), LABELS), reverse=True)[:2]
    assert_same(answer["top"], [{"label": label, "score": score} for score, label in scores])


@torch.no_grad()
def test_drawings_are_measured_by_their_hidden_patches(models, pictures, tmp_path):
    """PSNR against numpy on the model's own pixels; the mask of an image follows from seed and place, not from its
    batch; each PNG is there, and has three pictures side by side."""
    found = ask(models["draw"], pictures, output_dir=str(tmp_path / "new"))
    assert found[2] == {"image": pictures[2], "error": "not an image"}
    again = ask(models["draw"], pictures, batch_size=3)
    assert [one.get("psnr") for one in again] == [
        pytest.approx(one["psnr"]) if "psnr" in one else None for one in found
    ]
    assert ask(models["draw"], pictures[:1], seed=5)[0]["psnr"] != found[0]["psnr"]
    saved = prediction.load(models["draw"])
    for place in (0, 1, 3):
        pixels = saved.processor(images=Image.open(pictures[place]), return_tensors="pt")["pixel_values"]
        noise = torch.rand(4, generator=generator(0, place))[None]
        answer = saved.model(pixel_values=pixels, noise=noise)
        whole = denormalised(saved.processor, saved.model.reconstruction(pixels, answer.logits, answer.mask))
        errors = patchify((whole - denormalised(saved.processor, pixels)) ** 2, 4)[0].numpy()
        hidden = errors[answer.mask[0].bool().numpy()]
        assert len(hidden) == 3
        assert found[place]["psnr"] == pytest.approx(-10 * math.log10(hidden.mean()), rel=1e-4)
        with Image.open(found[place]["drawing"]) as image:
            assert image.width > 2 * image.height / 3 and np.asarray(image.convert("L")).std() > 5
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["0-a.png", "1-b.png", "3-d.png"]


# ---------------------------------------------------------------------------------------------------------------------
# The script


@pytest.fixture
def run(capsys):
    def call(*argv):
        capsys.readouterr()
        status = predict.main(list(argv))
        return status, capsys.readouterr().out.splitlines()

    return call


def test_what_people_read(models, run, pictures):
    """The lines against the answers: a verdict between a pair and its words, a written text, labels, decibels."""
    (answer,) = ask(models["pairs"], PAIRS[:1], top_k=1)
    word, verdict = answer["masks"][0][0], answer["verdict"]
    shown = [f"abc [{word['token_str']}] de | fgh abc", f"  {verdict['label']} {verdict['score']:.1%}"]
    words = f"  {word['token_str']} {word['score']:.1%}"
    assert run(models["pairs"], PAIRS[0], "--top_k", "1") == (0, [*shown, words])
    assert run(models["write"], *SOURCES) == (0, [one["written"] for one in ask(models["write"], SOURCES)])
    named = ("--labels", "abc, de fgh", "--labels", "abcde")
    (answer,) = ask(models["match"], pictures[:1], labels=LABELS)
    top = ", ".join(f"{one['label']} {one['score']:.1%}" for one in answer["top"])
    status, lines = run(models["match"], *pictures, *named)
    assert (status, lines[0], lines[2]) == (1, f"{pictures[0]}  {top}", f"{pictures[2]}  not an image")
    (answer,) = ask(models["draw"], pictures[:1])
    assert run(models["draw"], pictures[0]) == (0, [f"{pictures[0]}  {answer['psnr']:.1f} dB"])
    assert [json.loads(line) for line in run(models["draw"], pictures[0], "--json")[1]] == [answer]


def test_examples_name_what_is_needed(models):
    """What a model without inputs proposes: a mask and a TAB, labels, a place for drawings."""
    for kind, needed in (("pairs", r"[MASK] in it.\tA"), ("match", "--labels"), ("draw", "--output_dir")):
        assert needed in prediction.example(prediction.load(models[kind]))


@pytest.mark.parametrize(
    ("kind", "argv", "told"),
    [
        ("pairs", ["abc de"], "has no [MASK], which stands for a hidden word; or give two texts with a TAB between"),
        ("pairs", ["abc\tde\tfgh"], "'abc<TAB>de<TAB>fgh': give a text, or two with one TAB between them"),
        ("pairs", ["abc\t "], "or two with one TAB between them"),
        ("pairs", ["abc " * 15 + "\t" + "de " * 15], f"tokens, and the model reads {LENGTH} at once"),
        ("write", ["abc " * 30], f"tokens, and the model reads {LENGTH} at once"),
        ("write", ["abc", "--num_beams", "0"], "num_beams=0 is not allowed: it must be at least 1"),
        ("write", ["abc", "--num_beams", "2", "--temperature", "1"], "beams are not drawn"),
        ("write", ["abc", "--seed", "3"], "seed=3 is about drawing tokens: give --temperature above 0 with it"),
        ("write", ["abc", "--labels", "a, b"], "labels=['a', 'b'] has no meaning for seq2seq; its options: num_beams"),
        ("match", ["LICENSE"], "give what the image may show, at least two: --labels"),
        ("match", ["LICENSE", "--labels", "abc,"], "labels='abc': one alone is always right"),
        ("match", ["LICENSE", "--labels", "abc, abc"], "labels='abc': one alone is always right"),
        ("match", ["LICENSE", "--labels", "abc, de", "--template", "abc"], "template='abc' must have one {}"),
        ("draw", ["LICENCE"], "there is no image 'LICENCE'; did you mean 'LICENSE'?"),
        ("draw", ["LICENSE", "--top_k", "2"], "top_k=2 has no meaning for masked_image_modeling; its options: seed"),
    ],
)
def test_mistakes_are_told(models, run, monkeypatch, kind, argv, told):
    """Each in a line that names the value and what is allowed, not in a traceback."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        run(models[kind], *argv)
    assert str(stop.value).startswith("error: ") and told in str(stop.value)


@pytest.mark.parametrize(
    ("kind", "missing", "told"),
    [
        ("match", "tokenizer.json", "holds no tokenizer (tokenizer.json)"),
        ("match", "processor_config.json", "holds no image processor (processor_config.json)"),
        ("draw", "preprocessor_config.json", "holds no image processor (preprocessor_config.json)"),
        ("write", "tokenizer.json", "holds no tokenizer (tokenizer.json)"),
    ],
)
def test_a_folder_without_its_processor(models, run, tmp_path, kind, missing, told):
    """What a model of both kinds, of images or of texts lacks is named."""
    shutil.copytree(models[kind], tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(SystemExit) as stop:
        run(str(tmp_path / "model"), "abc", "--json")
    assert told in str(stop.value)


def test_the_run_says_which_of_two_tasks(models, tmp_path, monkeypatch):
    """Two tasks with one head: the first in the table, unless the run that the model lies in was another one's; a task
    with another head is not believed."""
    second = type("Second", (prediction.TASKS["seq2seq"],), {"name": "second"})
    monkeypatch.setitem(prediction.TASKS, "second", second)
    shutil.copytree(models["write"], tmp_path / "model")
    name = str(tmp_path / "model")
    config = prediction.load_config(name)
    for said_by_run, expected in ((None, "seq2seq"), ("second", "second"), ("masked_lm", "seq2seq")):
        if said_by_run:
            (tmp_path / "run.yaml").write_text(yaml.safe_dump({"task": said_by_run}))
        assert prediction.task_of(config, name) == expected


def test_every_task_is_asked_in_its_way():
    """The table of ways has a line for each task that there is."""
    assert set(prediction.TASKS) <= set(prediction.WAYS)


# ---------------------------------------------------------------------------------------------------------------------
# Measured again


FLAGS = [
    "--max_steps",
    "3",
    "--eval_steps",
    "1",
    "--warmup_steps",
    "1",
    "--learning_rate",
    "1e-2",
    "--fast_fp32",
    "no",
]
FLAGS += ["--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "7"]
TINY = "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"
STACKS = f"{{encoder: {TINY}, decoder: {TINY}}}"
TOWERS = f"{{text: {TINY}, vision: {TINY}, projection_dim: 8}}"
SAMPLES = ["--max_train_samples", "40", "--max_eval_samples", "15"]
RUNS = {
    "pretraining": ["--vocab_size", "200", "--config", TINY],
    "contrastive": ["--dataset_name", "shapes", *SAMPLES, "--vocab_size", "200", "--config", TOWERS],
    "masked_image_modeling": ["--dataset_name", "photos", *SAMPLES, "--config", STACKS],
    "seq2seq": ["--dataset_name", "copy", *SAMPLES, "--max_target_length", "18", "--config", STACKS],
    "span_corruption": ["--vocab_size", "300", "--config", STACKS],
}


def trained(task, folder, *more):
    """The run folder, without figures and card."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaving.figures, "available", lambda: False)
        patch.setattr(leaving, "complete", lambda *parts: None)
        flags = ["--task", task, "--max_seq_length", str(LENGTH), "--output_dir", str(folder)]
        training.train(parse([*flags, *FLAGS, *more]))
    reset_accelerate()
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function that trains for a task, once: its run folder."""
    folder, done = tmp_path_factory.mktemp("runs"), {}
    texts = [" ".join(f"W{row}x{place} of d{row} stands here." for place in range(3 + row % 7)) for row in range(30)]
    (folder / "texts.csv").write_text("\n".join(["text", *texts]), encoding="utf-8")
    file = ("--train_file", str(folder / "texts.csv"))
    own = dict.fromkeys(("pretraining", "span_corruption"), file)

    def run(task):
        if task not in done:
            done[task] = trained(task, folder / task, *own.get(task, ()), *RUNS[task])
        return done[task]

    return run


def metrics(record):
    assert record["full"]
    return {name: value for name, value in record.items() if name not in ("kind", "step", "seconds", "full")}


def check_numbers(folder, task, capsys):
    capsys.readouterr()
    evaluation.main([str(folder / "model"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == metrics(read(folder)[-1])
    assert found["task"] == task
    assert found["baselines"] == json.loads((folder / "environment.json").read_text())["baselines"]


@pytest.mark.parametrize("task", RUNS)
def test_the_last_numbers_of_a_run_come_out_again(task, runs, capsys):
    """A model folder alone against the last line of the metrics of its run: equal, not nearly."""
    check_numbers(runs(task), task, capsys)


def test_gaps_are_asked_for_by_their_sentinels(runs):
    """A model of span corruption is asked as such because its run says so: its source has the token of the gap, and
    what it writes is what `generate` gives, with the sentinels in it."""
    saved = prediction.load(str(runs("span_corruption") / "model"))
    assert saved.task == "span_corruption"
    text = "W1x0 of <extra_id_0> stands here."
    inputs = saved.processor(text, return_tensors="pt", return_token_type_ids=False)
    assert saved.processor.convert_tokens_to_ids("<extra_id_0>") in inputs["input_ids"]
    sentinels = [name for name in saved.processor.get_vocab() if name.startswith("<extra_id_")]
    with torch.no_grad():  # untrained, it would say something else
        saved.model.lm_head.weight[saved.processor.convert_tokens_to_ids(sentinels)] *= 50
    (answer,) = prediction.answers(saved, [text], {"max_new_tokens": 6})
    ids = saved.model.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
    assert answer["written"] == saved.processor.decode(ids[1:])
    assert "<extra_id_" in answer["written"]


def test_a_model_that_was_moved_knows_its_lengths(runs, tmp_path, capsys):
    """Away from its run, an encoder-decoder of unequal lengths with its data named: the numbers of the run."""
    folder = runs("seq2seq")
    shutil.copytree(folder / "model", tmp_path / "model")
    capsys.readouterr()
    data = ["--dataset_name", "copy", *SAMPLES, "--per_device_eval_batch_size", "7", "--fast_fp32", "no"]
    evaluation.main([str(tmp_path / "model"), *data, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == metrics(read(folder)[-1])
    assert (found["arguments"]["max_seq_length"], found["arguments"]["max_target_length"]) == (LENGTH, 18)


@pytest.mark.slow
def test_the_last_numbers_on_the_python_documentation(tmp_path, capsys):
    """The same of pairs from the bundled texts, which take long to read."""
    data = ["--dataset_name", "pydocs", *SAMPLES, "--vocab_size", "200", "--config", TINY]
    check_numbers(trained("pretraining", tmp_path, *data), "pretraining", capsys)


@pytest.mark.parametrize("task", RUNS)
def test_a_run_begins_where_the_former_ended(task, runs, tmp_path):
    """Gone on from a finished run on its data, with nothing said of the model: the numbers before the first step
    against the former's last ones."""
    former = runs(task)
    told = yaml.safe_load((former / "run.yaml").read_text())
    sources = [flag for name in ("dataset_name", "train_file") if told[name] for flag in (f"--{name}", told[name])]
    source = ["--model_name_or_path", str(former / "model")]
    samples = [*SAMPLES, "--max_target_length", "18"] if "--dataset_name" in sources else []
    later = trained(task, tmp_path, *sources, *samples, *source)
    first = next(record for record in read(later) if record["kind"] == "eval")
    assert metrics(first) == pytest.approx(metrics(read(former)[-1]), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Gone on from


def task_like(name, **fields):
    """What building asks of a task."""
    head = prediction.TASKS[name].head
    return SimpleNamespace(name=name, head=head, config_fields=lambda: json.loads(json.dumps(fields)))


def built(task, **model):
    arguments = Arguments(ModelArguments(**model), DataArguments(), TrainingArguments())
    return build_model(arguments, task, Console(main=False)).eval()


def classes(count):
    numbered = dict(enumerate("abcdefgh"[:count]))
    return {"id2label": numbered, "label2id": {name: number for number, name in numbered.items()}}


def labelled(name, count, **fields):
    task = task_like(name, **fields)
    return SimpleNamespace(**{**vars(task), "config_fields": lambda: {**fields, **classes(count)}})


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("pairs", "pretraining"),
        ("write", "seq2seq"),
        ("match", "contrastive"),
        ("draw", "masked_image_modeling"),
    ],
)
def test_the_same_task_goes_on_with_the_weights_of_the_file(models, kind, task):
    """Every tensor of the saved model, none of them fresh: against `from_pretrained`."""
    found = built(task_like(task), model_name_or_path=models[kind]).state_dict()
    expected = prediction.TASKS[task].head.from_pretrained(models[kind]).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "stack", "where"), [("draw", "encoder", "model"), ("match", "vision", "vision_model")]
)
def test_an_encoder_of_images_becomes_a_classifier(models, kind, stack, where):
    """Of MAE the encoder, of CLIP the vision tower, under a fresh head of 4 classes: sizes and pooling of the stack;
    hidden states against those that the stack computes in its own model, of all patches."""
    model = built(labelled("image_classification", 4), model_name_or_path=models[kind])
    whole = prediction.TASKS[prediction.load(models[kind]).task].head.from_pretrained(models[kind]).eval()
    own = getattr(whole.config, stack)
    assert type(model) is TriuneForImageClassification and model.classifier.out_features == 4
    assert (model.config.embedding, model.config.pooling) == (own.embedding, own.pooling)
    pixels = torch.randn(2, 3, SIZE, SIZE)
    states = model(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
    encoder = getattr(whole, where)
    expected = encoder.layers[-1](encoder.layers[0](encoder.embed(pixel_values=pixels)))
    assert torch.allclose(states, expected if torch.is_tensor(expected) else expected[0], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "place"),
    [("bert", "model"), ("pairs", "model"), ("write", "model.encoder"), ("match", "text_model")],
)
def test_an_encoder_of_texts_becomes_a_classifier(models, tmp_path, kind, place):
    """Of BERT with and without a pooler, of an encoder-decoder and of CLIP the stack that reads, under a fresh head:
    hidden states against the stack in its own model; what it pools with is there, or starts fresh. Saved, it has the
    names of a classifier."""
    model = built(labelled("sequence_classification", 3, vocab_size=20), model_name_or_path=models[kind])
    assert type(model) is TriuneForSequenceClassification and model.classifier.out_features == 3
    whole = prediction.TASKS[prediction.load(models[kind]).task].head.from_pretrained(models[kind]).eval()
    ids = torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0]])
    mask = (ids != 0).long()
    found = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    expected = whole.get_submodule(place)(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-5)
    if kind == "pairs":
        assert torch.equal(model.model.pooler.dense.weight, whole.model.pooler.dense.weight)
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("match", "image_classification"),
        ("pairs", "sequence_classification"),
        ("match", "sequence_classification"),
        ("write", "sequence_classification"),
    ],
)
def test_a_run_that_teaches_an_encoder_classes(models, tmp_path, kind, task):
    """From a folder of each kind, frozen but for the head: the run ends with a model folder that loads, whose encoder
    is that of the folder to the bit."""
    words = random.Random(0)
    rows = [" ".join(words.choices(["abc", "de", "fgh", "abcde"], k=9)) + f",{row % 2}" for row in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    texts = ["--train_file", str(tmp_path / "rows.csv"), "--validation_split_percentage", "20"]
    data = texts if task == "sequence_classification" else ["--dataset_name", "digits", *SAMPLES]
    freeze = ["--freeze", "^model[.](?!pooler)", "--no_load_best_model_at_end"]
    folder = trained(task, tmp_path / "run", *data, *freeze, "--model_name_or_path", models[kind])
    saved = prediction.load(str(folder / "model"))
    assert saved.task == task and saved.model.classifier.bias.any()  # which starts at zero
    expected = built(labelled(task, saved.model.config.num_labels), model_name_or_path=models[kind]).state_dict()
    frozen = [name for name in expected if name.startswith("model.") and "pooler" not in name]
    found = saved.model.state_dict()
    assert frozen and all(torch.equal(found[name], expected[name]) for name in frozen)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "preset", "config"),
    [
        ("contrastive", "clip-mini", "{vision: {hidden_size: 32}, text: {hidden_size: 32}}"),
        ("masked_image_modeling", "mae-mini", "{encoder: {embedding: {image_size: 32, patch_size: 8}}}"),
        ("seq2seq", "seq2seq-mini", "{stacks: {hidden_size: 32}}"),
        ("seq2seq", "t5-mini", None),
    ],
)
def test_a_preset_takes_a_step(task, preset, config, tmp_path):
    """A run of two steps from a preset on bundled data, as a recipe names it: a model of its type, which loads."""
    changed = ["--config", config] if config else []
    data = [word for word in RUNS[task] if word not in (TINY, STACKS, TOWERS, "--config")]
    folder = trained(task, tmp_path, *data, *changed, "--preset", preset, "--max_steps", "2")
    saved = prediction.load(str(folder / "model"))
    assert type(saved.model.config) is prediction.TASKS[task].head.config_class


@pytest.mark.parametrize(
    ("kind", "task", "told"),
    [
        ("bert", "contrastive", r"is a model of type 'triune', and contrastive needs one of type 'triune-clip'$"),
        ("match", "masked_image_modeling", r"of type 'triune-clip', .* needs one of type 'triune-mae'$"),
        (
            "draw",
            "masked_lm",
            r"'triune-mae', and masked_lm .* 'triune', or one with a stack that reads tokens",
        ),
        ("write", "causal_lm", "TriuneForCausalLM needs attention 'causal'"),
        ("bert", "image_classification", "TriuneForImageClassification needs embedding 'patches'"),
    ],
)
def test_what_a_task_cannot_go_on_from(models, kind, task, told):
    """A model without what the head needs is refused in a sentence that names both."""
    with pytest.raises(ValueError, match=told):
        built(task_like(task), model_name_or_path=models[kind])


def test_a_misspelt_model_to_go_on_from(models, monkeypatch):
    """A folder that is not there: the one that it is near to."""
    folder = Path(models["bert"]).parent
    shutil.copytree(models["bert"], folder / "runs" / "bert" / "model", dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    with pytest.raises(
        ValueError, match=r"model_name_or_path='runs/brt/model' is neither .* did you mean 'runs/bert/"
    ):
        built(task_like("masked_lm"), model_name_or_path="runs/brt/model")


def test_sizes_are_checked_stack_by_stack(models):
    """A tokenizer that is too large for the text tower, and for the decoder: the stack is named. Rows longer than
    rotary positions were meant for lengthen that stack alone."""
    for kind, task, stack in (("match", "contrastive", "text"), ("write", "seq2seq", "decoder")):
        with pytest.raises(ValueError, match=rf"the tokenizer has 999 tokens, .* has {stack} vocab_size=\d+"):
            built(task_like(task, **{stack: {"vocab_size": 999}}), model_name_or_path=models[kind])


def test_rows_longer_than_before(tmp_path):
    """Of an encoder-decoder, the encoder with rotary positions is lengthened and the decoder left as it is."""
    rotary = {**SMALL, "vocab_size": 30, "max_position_embeddings": 16, "position": "rotary"}
    folder = save(tmp_path, TriuneForConditionalGeneration, TriuneSeq2SeqConfig(encoder=rotary, decoder=rotary))
    task = task_like("seq2seq", encoder={"max_position_embeddings": 40}, decoder={"max_position_embeddings": 8})
    config = built(task, model_name_or_path=folder).config
    assert (config.encoder.max_position_embeddings, config.decoder.max_position_embeddings) == (40, 16)


# ---------------------------------------------------------------------------------------------------------------------
# Presets


def configured(task, preset, config=None):
    arguments = Arguments(ModelArguments(preset=preset, config=config), DataArguments(), TrainingArguments())
    return build_config(arguments, task)


TEXT_SIZES = {"vocab_size": 77, "max_position_embeddings": 20, "pad_token_id": 0}
DRAWN_SIZES = {"embedding": {"type": "patches", "image_size": 16, "patch_size": 8, "num_channels": 3}}


def test_presets_of_several_stacks_take_the_sizes_of_texts():
    """CLIP's, MAE's and an encoder-decoder's mini preset: what the data says of texts, what the user says of the rest,
    all else against the preset itself, the size of images among it."""
    clip = configured(
        task_like("contrastive", text=TEXT_SIZES, vision=DRAWN_SIZES),
        "clip-mini",
        "{vision: {hidden_size: 32, embedding: {image_size: 64}}, loss: sigmoid}",
    )
    expected = preset_of(
        TriuneCLIPConfig,
        "clip-mini",
        text=TEXT_SIZES,
        vision={"hidden_size": 32, "embedding": {"image_size": 64}},
        loss="sigmoid",
    )
    assert clip.to_dict() == expected.to_dict()
    assert (clip.vision.embedding["patch_size"], clip.vision.embedding["norm"]) == (4, "after")
    mae = configured(
        task_like("masked_image_modeling", encoder=DRAWN_SIZES), "mae-mini", "{encoder: {embedding: {patch_size: 8}}}"
    )
    assert (mae.encoder.embedding["image_size"], mae.encoder.grid) == (32, (4, 4))
    assert not mae.encoder.embedding["cls_token"] and mae.decoder.hidden_size == 64
    two = configured(task_like("seq2seq", encoder=TEXT_SIZES, decoder=TEXT_SIZES), "t5-mini")
    assert (two.encoder.vocab_size, two.decoder.max_position_embeddings) == (77, 20)
    assert two.encoder.position["type"] == "relative" and two.encoder.hidden_size == 128


@pytest.mark.parametrize(
    ("task", "preset", "told"),
    [
        (
            "contrastive",
            "vit-mini",
            "'vit-mini' is a preset of model type 'triune'; those for TriuneCLIPModel are",
        ),
        ("contrastive", "clip-mni", "'clip-mni' is no preset; .* did you mean 'clip-mini'"),
        ("masked_image_modeling", "clip-mini", "of model type 'triune-clip'; .* are mae-base, mae-large"),
        ("seq2seq", "t5-smal", "did you mean 't5-small'"),
        ("masked_lm", "mae-mini", r"of model type 'triune-mae'; those for TriuneForMaskedLM are bert-base, gpt2, mod"),
        ("masked_lm", "vit-mini", "TriuneForMaskedLM needs embedding 'tokens'"),
    ],
)
def test_a_preset_that_does_not_fit(task, preset, told):
    """One of another family, a misspelt one, one for images: those that fit are named, the nearest too."""
    with pytest.raises(ValueError, match=told):
        configured(task_like(task), preset)


def test_the_registry_has_every_model_type():
    """Each class under the name that its config.json has; the stacks that read, by hand."""
    assert {name: kind().model_type for name, kind in CONFIGS.items()} == {name: name for name in CONFIGS}
    clip = preset_of(TriuneCLIPConfig, "clip-mini")
    assert stacks_of(clip) == {"text": clip.text, "vision": clip.vision}
    assert (stack_reading(clip, "tokens"), stack_reading(clip, "patches")) == (clip.text, clip.vision)
    two = preset_of(TriuneSeq2SeqConfig, "t5-mini")
    assert stack_reading(two, "tokens") == two.encoder and stack_reading(two, "patches") is None
    one = TriuneConfig()
    assert stacks_of(one) == {"": one} and stack_reading(one, "tokens") is one
