"""Pairs of texts: names and strings against what they are made from, batches against the tokenizer, what is written
against a loop by hand, metrics and baselines against their definitions, and a run from its beginning to its end."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate_state import reset_accelerate
from two_processes import run_in_two

from triune.configuration.configuration_triune_seq2seq import TriuneSeq2SeqConfig
from triune.training import evaluation, leaving, run
from triune.training.arguments import parse
from triune.training.collators import IGNORED
from triune.training.data.function_names import named_functions, without_name, words_of
from triune.training.data.text import normalised
from triune.training.data.text_pairs import BUNDLED, LONGEST, SHORTEST, load_paired_text, names
from triune.training.figures.cross_attention import cross_attention, cross_attention_maps
from triune.training.metric_modules.bleu import Bleu
from triune.training.metric_modules.chrf import ChrF
from triune.training.metrics import Written, concatenate, nothing
from triune.training.sampling import Key, Plan
from triune.training.tasks import TASKS
from triune.training.tasks.seq2seq import start_of


STACK = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
CONFIG = json.dumps({"encoder": STACK, "decoder": STACK})
COLOURS, THINGS = ("red", "blue", "green", "white"), ("car", "house", "tree", "bird", "boat")
PAIRS = [(f"the {thing} is {colour}", f"{colour} {thing}") for colour in COLOURS for thing in THINGS]

pytestmark = pytest.mark.usefixtures("as_found")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.csv"
    path.write_text("text,target\n" + "".join(f"{source},{target}\n" for source, target in PAIRS))
    return str(path)


def flags(file, *more):
    size = (
        "--vocab_size",
        "120",
        "--tokenizer_type",
        "wordpiece",
        "--max_seq_length",
        "12",
        "--max_target_length",
        "6",
    )
    return ("--task", "seq2seq", "--train_file", file, "--validation_split_percentage", "30", *size, *more)


def make(file, *more):
    return TASKS["seq2seq"](parse([*flags(file, *more)]))


def build(task, **fields):
    torch.manual_seed(0)
    own = task.config_fields()
    stacks = {name: {**own[name], **STACK} for name in ("encoder", "decoder")}
    config = TriuneSeq2SeqConfig(**{**own, **stacks, **fields})
    task.prepare(config)
    model = task.head(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5)
    return model


@pytest.fixture(scope="module")
def task(table):
    return make(table)


@pytest.fixture(scope="module")
def model(task):
    return build(task)


# ---------------------------------------------------------------------------------------------------------------------
# Names of functions


def test_a_name_is_its_words():
    """Snake case, camel case, capitals in a row, digits."""
    said = {"is_file": "is file", "assertIsNone": "assert is none", "_HTTPServer2": "http server 2", "abs": "abs"}
    assert {name: words_of(name) for name in said} == said


@pytest.mark.parametrize(
    ("name", "docstring", "left"),
    [
        ("join", "join(a, *p) -> str\n\nJoin two paths,\nor more.\n\nMore.", "Join two paths, or more."),
        ("_mid", "x = mod.mid(a, b=(1, 2)) -- the middle", "the middle"),
        ("close", "Close the file; close() twice is fine.", "Close the file; it twice is fine."),
        ("close", "Like 'close', or file.close, to close it.", "Like 'it', or it, to close it."),
        ("is_file", "What is_file says of a file.", "What it says of a file."),
        ("_path_hooks", "Search sys.path_hooks.", "Search it."),
        ("mul", "mul(a, b) -> a * b", "a * b"),
        ("get_config_var", "One of get_config_vars().", "One of get_config_vars()."),
        ("f", "f(x)", ""),
    ],
)
def test_a_docstring_does_not_say_the_name(name, docstring, left):
    """By hand: what shows a call, names in code and in quotes; a word of the language stays."""
    assert without_name(docstring, name) == left


@pytest.fixture(scope="module")
def named():
    return names()


def test_names_of_the_library(named):
    """Functions that every Python has, against their source; no special methods; no name that stands in its own
    docstring as it would be called."""
    found = named_functions()
    pairs = {(one.module, one.name): one.docstring for one in found}
    assert pairs["shutil", "copyfile"].startswith("Copy data from src to dst")
    assert pairs["os", "makedirs"].startswith("Super-mkdir; create a leaf directory")
    assert not [one for one in found if one.name in ("init", "repr") and one.module == "collections"]
    assert not [one for one in found if f" {one.name.replace(' ', '_')}(" in f" {one.docstring}"]
    assert len(found) > 4000 and len(named.train) > 3000 and len(named.validation) > 300


def test_whole_modules_are_held_out(named):
    """No docstring on both sides, by its normalised text; those that are held out are all those of some modules."""
    train, validation = ({normalised(pair.source) for pair in side} for side in (named.train, named.validation))
    assert not train & validation and len(validation) == len(named.validation)
    assert all(text == text.lower() for pair in (*named.train, *named.validation) for text in pair)
    modules = {}
    for one in named_functions():
        modules.setdefault(one.module, set()).add(normalised(one.docstring))
    held_out = [texts for texts in modules.values() if texts <= validation]
    assert set().union(*held_out) == validation and 20 < len(held_out) < len(modules) / 3


# ---------------------------------------------------------------------------------------------------------------------
# Strings and tables


@pytest.mark.parametrize(("name", "change"), [("copy", str), ("reverse", lambda text: text[::-1])])
def test_strings(name, change):
    """Targets against what the name says; all lengths, held out as many of each; no string on both sides; the same
    again."""
    data, again = BUNDLED[name](), BUNDLED[name]()
    assert data.fingerprint == again.fingerprint and data.metrics == ("exact_match",)
    assert all(pair.target == change(pair.source) for side in (data.train, data.validation) for pair in side)
    sources = [pair.source for pair in data.validation]
    assert not set(sources) & {pair.source for pair in data.train} and len(data.train) > 40_000
    counts = np.bincount([len(text) for text in sources])
    assert set(np.flatnonzero(counts)) == set(range(SHORTEST, LONGEST + 1))
    assert 95 < counts[SHORTEST:].min() and counts.max() == 100


def test_tables_are_split_by_sources(table, tmp_path):
    """Two columns by any names, from CSV and JSON lines alike; a source with several targets is on one side; blank
    rows are left out; a source of the validation file is taken out of the training text."""
    rows = [{"en": f"one {number % 10}", "de": f"eins {number}"} for number in range(40)] + [{"en": "x", "de": " "}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ("--text_column", "en", "--target_column", "de", "--validation_split_percentage", "30")
    data = load_paired_text(parse(["--train_file", str(file), *columns]).data)
    assert len(data.train) == 28 and len(data.validation) == 12 and data.removed == 0
    assert not {pair.source for pair in data.train} & {pair.source for pair in data.validation}
    few = tmp_path / "few.csv"
    few.write_text("text,target\nthe CAR is  red,x\n")
    data = load_paired_text(parse(["--train_file", table, "--validation_file", str(few)]).data)
    assert (len(data.train), data.removed, data.validation[0].target) == (len(PAIRS) - 1, 1, "x")
    data = load_paired_text(parse(["--train_file", table, "--max_train_samples", "7"]).data)
    assert len(data.train) == 7 and {tuple(pair) for pair in data.train} <= set(PAIRS)


MISTAKES = {
    "no such column": (
        ("--target_column", "traget"),
        r"target_column='traget' is not a column .* did you mean 'target'",
    ),
    "one column": (("--target_column", "text"), r"text_column and target_column are both 'text'"),
    "a stream": (("--streaming",), r"streaming=True: pairs of texts are read at once"),
    "one source": (("--validation_split_percentage", "99"), r"none can be held out: give --validation_file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told(mistake, table):
    """One sentence that names the flag."""
    more, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        load_paired_text(parse(["--train_file", table, *more]).data)


def test_what_is_no_table_is_told(tmp_path):
    """A text file has no columns; a bundled set takes no files; a name that is none is guessed."""
    text = tmp_path / "a.txt"
    text.write_text("words")
    with pytest.raises(ValueError, match=r"a.txt has no columns: texts with targets come from CSV"):
        load_paired_text(parse(["--train_file", str(text)]).data)
    with pytest.raises(ValueError, match=r"validation_file='a.csv' does not go with dataset_name='copy'"):
        load_paired_text(parse(["--dataset_name", "copy", "--validation_file", "a.csv"]).data)
    with pytest.raises(ValueError, match=r"bundled pairs: names, copy, reverse; did you mean 'reverse'"):
        load_paired_text(parse(["--dataset_name", str(tmp_path / "missing" / "revers")[-6:]]).data)


# ---------------------------------------------------------------------------------------------------------------------
# Batches


def test_a_batch_is_what_the_tokenizer_makes(task):
    """Sources framed, targets with an end and no beginning, padded; labels ignored where padded; the decoder reads
    them one place later behind its first token."""
    tokenizer = task.processor
    samples = [task.train[Key(0, index)] for index in range(5)]
    batch = task.collate(samples)
    pairs = task.data.train[:5]
    longest = max(len(tokenizer(pair.target).input_ids) - 1 for pair in pairs)
    assert batch["labels"].shape == batch["decoder_input_ids"].shape == (5, longest)
    for row, pair in enumerate(pairs):
        read = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        assert read.tolist() == tokenizer(pair.source).input_ids
        label = batch["labels"][row][batch["labels"][row] != IGNORED].tolist()
        assert label == tokenizer(pair.target).input_ids[1:] and label[-1] == tokenizer.eos_token_id
        before = [tokenizer.bos_token_id, *label[:-1]]
        assert batch["decoder_input_ids"][row, : len(label)].tolist() == before
    assert task.count(batch) == sum(len(sample.target) for sample in samples)
    assert task.units(batch) == task.count(batch) + sum(len(sample.source) for sample in samples)


def test_long_texts_are_cut(table):
    """At both lengths; a target that is cut still ends, and the data line says how many are."""
    short = make(table, "--max_seq_length", "4", "--max_target_length", "2")
    sample = short.train[Key(0, 0)]
    assert len(sample.source) == 4 and len(sample.target) == 2 and sample.target[-1] == short.processor.eos_token_id
    assert "100.0% of the targets are cut at max_target_length=2" in short.describe()[1]


def test_a_tokenizer_without_a_beginning():
    """T5's: a target begins with padding."""
    assert start_of(SimpleNamespace(bos_token_id=None, pad_token_id=0)) == 0
    assert start_of(SimpleNamespace(bos_token_id=5, pad_token_id=0)) == 5


def test_pairs_of_like_length(table):
    """With group_by_length the samples of a step differ less in length than at random; every one comes once."""
    task = make(table, "--group_by_length")
    plan = Plan(samples=len(task.train), per_device=2)
    order = task.order(plan)(len(task.train), 0, 0)
    assert sorted(order) == list(range(len(task.train)))
    assert (task.order(plan)(len(task.train), 0, 0) == order).all()


def test_a_model_that_is_too_small_is_refused(task):
    """The stack, the field and the flag."""
    fields = task.config_fields()
    fields["decoder"]["max_position_embeddings"] = 5
    with pytest.raises(ValueError, match="max_target_length=6 is longer than the 5 positions of the decoder"):
        task.prepare(TriuneSeq2SeqConfig(**fields))
    fields = task.config_fields()
    for name in ("encoder", "decoder"):
        fields[name]["vocab_size"] -= 1
    with pytest.raises(ValueError, match="vocabulary mismatch: encoder vocab_size="):
        task.prepare(TriuneSeq2SeqConfig(**fields))


# ---------------------------------------------------------------------------------------------------------------------
# What is written


class Alone:
    """What `answers` asks of accelerate, in one process."""

    num_processes, process_index, device = 1, 0, torch.device("cpu")


@torch.no_grad()
def by_hand(task, model, source):
    """Token by token, the likeliest each time, without a cache."""
    said = [start_of(task.processor)]
    for _ in range(task.target_length):
        logits = model(input_ids=source[None], decoder_input_ids=torch.tensor([said]), use_cache=False).logits
        said.append(int(logits[0, -1].argmax()))
        if said[-1] == task.processor.eos_token_id:
            break
    return task.processor.decode(said, skip_special_tokens=True)


def test_what_is_written_is_the_likeliest_token_by_token(task, model):
    """`generate` on padded batches against a loop over each source by itself; beside it the whole target."""
    records = evaluation.answers(task, model, Alone(), 4, full=True)
    places = task.asked().places
    assert len(records.written) == len(places) == len(task.data.validation) == 6
    for place, written in zip(places, records.written):
        assert written.said == by_hand(task, model, task.held_out[place].source)
        assert written.right == task.data.validation[place].target
    assert len({written.said for written in records.written}) > 1


def test_beams(table, task, model):
    """With num_beams: what transformers' beam search makes of the same batch, and not what is written without."""
    batch = task.collate([task.held_out[place] for place in range(len(task.held_out))])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    ids = model.generate(**inputs, max_new_tokens=task.target_length, num_beams=4)
    expected = [" ".join(text.split()) for text in task.processor.batch_decode(ids, skip_special_tokens=True)]
    assert make(table, "--num_beams", "4").write(model, batch) == expected != task.write(model, batch)


def test_a_quick_evaluation_writes_nothing(task, model, monkeypatch):
    """`generate` is not called, and no metric of texts is there; in a full one they are."""
    full = task.measure(evaluation.answers(task, model, Alone(), 4, full=True))
    monkeypatch.setattr(type(model), "generate", lambda *_, **__: pytest.fail("a quick evaluation writes"))
    quick = evaluation.answers(task, model, Alone(), 4, full=False)
    assert quick.written == () and not {"exact_match", "bleu", "chrf"} & set(task.measure(quick))
    assert {"exact_match", "bleu", "chrf", "loss", "accuracy"} <= set(full)


def test_processes_write_each_text_once(task, model):
    """Three processes, whose last batches are filled up, against one: the same texts, each once; and the same loss."""
    alone = evaluation.answers(task, model, Alone(), 2, full=True)
    parts = []
    for rank in range(3):
        place = SimpleNamespace(num_processes=3, process_index=rank, device=torch.device("cpu"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluation, "gather_object", list)
            parts.append(evaluation.answers(task, model, place, 4, full=True))
    together = concatenate(parts)
    assert sorted(together.written) == sorted(alone.written)
    assert task.measure(together) == pytest.approx(task.measure(alone), rel=1e-5)


def test_metrics_of_texts(task):
    """Against the metric modules by themselves, and exact match by counting."""
    written = (Written("red car", "red car"), Written("blue", "blue house"), Written("a bird", "white bird"))
    records = task_records(task)._replace(written=written)
    found, texts = task.measure(records), dict(zip(("predictions", "references"), map(list, zip(*written))))
    assert found["exact_match"] == 1 / 3
    assert (found["bleu"], found["chrf"]) == (Bleu().compute(**texts)["bleu"], ChrF().compute(**texts)["chrf"])


def task_records(task):
    ones = np.ones(4, np.int64)
    return nothing()._replace(loss=np.ones(4, np.float32), rank=ones, prediction=ones, label=ones)


def test_baselines(task):
    """The unigram entropy of the held-out targets by numpy; the guesses on a pair by hand."""
    known, asked = (
        torch.cat([one.targets[place] for place in range(len(one))]).numpy()
        for one in (task.train.encoded, task.held_out)
    )
    counts = np.bincount(known, minlength=len(task.processor)) + 1
    found = task.baselines()
    assert found["loss"]["unigram entropy"] == pytest.approx(-np.log(counts / counts.sum())[asked].mean())
    assert found["accuracy"]["most frequent token"] == pytest.approx((asked == counts.argmax()).mean())
    assert set(found["chrf"]) == {"source as it is", "first word", "rarest word", "most frequent target"}
    right = [pair.target for pair in task.data.validation]
    first = ChrF().compute(predictions=["the"] * len(right), references=right)["chrf"]
    assert found["chrf"]["first word"] == first and found["exact_match"]["source as it is"] == 0


def test_the_preview_says_what_was_right(task, model, monkeypatch):
    """Of a model that writes every target, and of one that writes nothing."""
    shown = [task.data.validation[place] for place in task.some_held_out(4)]
    monkeypatch.setattr(task, "write", lambda model, batch: [pair.target for pair in shown])
    assert task.preview(model) == [f"{pair.source} -> {pair.target} [ok]" for pair in shown]
    monkeypatch.setattr(task, "write", lambda model, batch: [""] * 4)
    assert task.preview(model) == [f"{pair.source} ->  [was {pair.target}]" for pair in shown]
    assert [tuple(example) for example in task.examples()] == [tuple(pair) for pair in shown]


def test_the_figure_shows_the_weights(task, model, tmp_path):
    """The map against the attention of the model's own output, averaged; a PNG for texts of any length."""
    sample = task.held_out[0]
    read = torch.tensor([start_of(task.processor), *sample.target[:-1].tolist()])
    weights = cross_attention(model, sample.source, read)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(input_ids=sample.source[None], decoder_input_ids=read[None], output_attentions=True)
    model.set_attn_implementation("sdpa")
    expected = sum(layer[0].mean(0) for layer in out.cross_attentions) / len(out.cross_attentions)
    assert np.allclose(weights, expected) and np.allclose(weights.sum(-1), 1)
    labels = (["ab"] * weights.shape[1], ["cd"] * weights.shape[0])
    wide = (np.ones((1, 90)) / 90, ["word"] * 90, ["w"])
    path = cross_attention_maps(*zip((weights, *labels), wide, (weights, *labels)), tmp_path / "map.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert cross_attention_maps([], [], [], tmp_path / "none.png").is_file()


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def trained(folder, *more):
    often = ("--save_steps", "3", "--eval_steps", "3", "--warmup_steps", "1", "--logging_steps", "3")
    small = ("--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "3", "--config", CONFIG)
    found = run.train(parse([*more, *often, *small, "--output_dir", str(folder)]))
    reset_accelerate()
    return found


def test_a_run_goes_on_as_if_nothing_had_been(table, tmp_path, monkeypatch, no_figures):
    """Six steps in one go against six that stop after the third and go on: weights to the bit, and all metrics; full
    evaluations have the metrics of texts, others have not."""
    monkeypatch.setattr(leaving, "complete", lambda *_: None)
    words = (*flags(table), "--max_steps", "6")
    whole = trained(tmp_path / "whole", *words)
    (checkpoint,) = (tmp_path / "whole" / "checkpoints").glob("step-*3")
    again = trained(tmp_path / "halves", *words, "--resume_from_checkpoint", str(checkpoint))
    assert whole == again and {"exact_match", "bleu", "chrf"} <= set(whole) and math.isfinite(whole["loss"])
    head = TASKS["seq2seq"].head
    states = [head.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "halves")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    records = map(json.loads, (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines())
    written = [(line["step"], "chrf" in line) for line in records if line["kind"] == "eval"]
    assert written == [(0, True), (3, False), (6, False), (6, True)]


def measured(rank, file, folder):
    from accelerate import Accelerator

    task = make(file)
    found = evaluation.answers(task, build(task), Accelerator(cpu=True), 4, full=True)
    if rank == 0:
        (folder / "metrics.json").write_text(json.dumps(task.measure(found)))


@pytest.mark.slow
def test_two_processes_write_what_one_does(table, task, model, tmp_path):
    """Metrics of two gloo processes against those of one."""
    from functools import partial

    run_in_two(partial(measured, file=table, folder=tmp_path), tmp_path)
    alone = task.measure(evaluation.answers(task, model, Alone(), 4, full=True))
    assert json.loads((tmp_path / "metrics.json").read_text()) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_a_small_model_learns_to_reverse(tmp_path, monkeypatch, no_figures):
    """300 steps of the recipe's model: three of four strings that it has never seen, where the source as it stands is
    right once in a hundred times."""
    monkeypatch.setattr(leaving, "complete", lambda *_: None)
    found = run.train(parse(["recipes/reverse.yaml", "--max_steps", "300", "--output_dir", str(tmp_path)]))
    assert found["exact_match"] > 0.75
