"""Pages of models: against the numbers that they are made from, huggingface_hub's own classes and a schema of what the
Hub accepts, a Markdown renderer that is not ours, a reader of YAML 1.2, and Python that runs what they say to paste."""

import ast
import copy
import html.parser
import importlib.util
import io
import json
import random
import re
import shutil
import string
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import card_schema
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.vit import ViTImageProcessorPil

from triune import modeling
from triune.configuration import preset
from triune.configuration.configuration_triune import HEADS
from triune.training.hub import card, facts, kept, markdown, metadata


ROOT = Path(__file__).resolve().parents[2]
NAME = "ada/triune-bert"

# ---------------------------------------------------------------------------------------------------------------------
# Runs, as training leaves them

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {**SMALL, "vocab_size": 99, "max_position_embeddings": 32, "pad_token_id": 0}
LABELS = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
PATCHES = {**SMALL, "embedding": {"image_size": 16, "patch_size": 4}}
CONFIGS = {
    "TriuneModel": ("bert-mini", TEXT),
    "TriuneForMaskedLM": ("bert-mini", TEXT),
    "TriuneForCausalLM": ("gpt2-mini", {**TEXT, "bos_token_id": 2, "eos_token_id": 3}),
    "TriuneForImageClassification": ("vit-mini", {**PATCHES, **LABELS}),
    "TriuneForSequenceClassification": ("bert-mini", {**TEXT, **LABELS}),
    "TriuneForTokenClassification": ("bert-mini", {**TEXT, **LABELS}),
}
TASKS = {
    "masked_lm": "TriuneForMaskedLM",
    "causal_lm": "TriuneForCausalLM",
    "image_classification": "TriuneForImageClassification",
    "sequence_classification": "TriuneForSequenceClassification",
}
TOP = [{"label": "yes", "score": 0.9}, {"label": "no", "score": 0.1}]
EXAMPLES = {
    "masked_lm": {
        "text": "the [MASK] block",
        "label": "word",
        "filled": "the word block",
        "masks": [[{"token_str": "word", "score": 0.87}, {"token_str": "open", "score": 0.05}]],
    },
    "causal_lm": {"text": "the with", "continuation": " statement of\nsecrets", "tokens": 3, "ended": False},
    "image_classification": {"image": "samples/0.png", "label": "no", "score": 0.9, "top": TOP},
    "sequence_classification": {"text": "a held out text", "label": "no", "score": 0.9, "top": TOP},
}
METRICS = {"loss": 2.1236, "perplexity": 8.3613, "accuracy": 0.5254, "top5_accuracy": 0.7412}
SUMMARY = {
    "recipe": "bert",
    "command": "accelerate launch scripts/train.py recipes/bert.yaml --seed 1",
    "finished": "2026-11-21",
    "metrics": METRICS,
    "first": {"loss": 6.1211, "perplexity": 455.36, "accuracy": 0.0999, "top5_accuracy": 0.1313},
    "baselines": {"loss": {"unigram entropy": 5.3765}, "accuracy": {"most frequent token": 0.0371}},
    "headline": "accuracy",
    "step": 650,
    "weights_of_step": 600,
    "reason": "all steps done",
    "seconds": 79.1,
    "units": 1331200,
    "unit": "tokens",
    "replaced": 3,
    "skipped": 0,
    "parameters": 853120,
    "flops": 2.3e13,
    "hardware": "AMD EPYC 7B13, 2 cores",
    "precision": "bf16",
    "threads": 2,
    "world": 1,
    "data": {
        "name": "pydocs",
        "fingerprint": "ebb6e3ed",
        "description": ["pydocs: 1,840,332 characters", "512 tokens"],
    },
    "versions": {"triune": "0.1.0", "torch": "2.13.0"},
    "pictures": {"surprisal.png": "How surprising a passage is", "loss.png": "Loss over time"},
}


def config_of(head):
    name, fields = CONFIGS[head]
    config = preset(name, **fields)
    config.architectures = [head]
    return config


def write_run(folder, task="masked_lm", settings=None, config=None, **changes):
    """A run folder with all that a page is made from."""
    (folder / "model").mkdir(parents=True)
    summary = {**SUMMARY, "task": task, "examples": [EXAMPLES[task]], **changes}
    content = {**config_of(TASKS[task]).to_dict(), **(config or {})}
    (folder / "model" / "config.json").write_text(json.dumps(content))
    (folder / "summary.json").write_text(json.dumps(summary))
    given = {"task": task, "dataset_name": "pydocs", "output_dir": "/home/ada/runs", **(settings or {})}
    (folder / "run.yaml").write_text(yaml.safe_dump(given))
    return folder


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


# ---------------------------------------------------------------------------------------------------------------------
# Reading pages with other people's code

RENDERER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


class Page(html.parser.HTMLParser):
    """Tags, links, visible text and the rows of tables of a page, as a browser has them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.comments, self.rows, self.text = [], [], [], [], ""
        self.feed(RENDERER.render(ModelCard(text, ignore_metadata_errors=True).text))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("href", "src")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.text += "\n" if tag in ("p", "li", "pre", "h1", "h2", "td") else ""

    def handle_data(self, data):
        self.text += data
        if self.rows and self.tags[-1] in ("td", "th", "code", "strong"):
            self.rows[-1][-1] += data

    def handle_comment(self, data):
        self.comments.append(data.strip())


def rows_of(text):
    """First cell -> the other cells, of all tables."""
    return {row[0]: row[1:] for row in Page(text).rows if row}


def head_of(text):
    return ModelCard(text).data.to_dict()


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


# ---------------------------------------------------------------------------------------------------------------------
# What it says


def test_numbers_are_those_of_the_files(run):
    """The tables of a page, read back from HTML, against numbers formatted here."""
    rows = rows_of(card.render(facts.read(run), NAME))
    assert rows["accuracy ↑"] == ["52.5%", "10.0%", "most frequent token 3.7%"]
    assert rows["loss ↓"] == ["2.124", "6.121", "unigram entropy 5.376"]
    assert rows["top-5 accuracy ↑"] == ["74.1%", "13.1%", ""]
    assert rows["seen"] == [f"1.33M tokens, {1331200 / 79.1 / 1000:.1f}k a second"]
    assert rows["steps"] == ["650 (all steps done); the weights are those of step 600, which was best"]
    assert rows["compute"] == ["23.0 TFLOP forward and backward; energy was not measured"]
    assert rows["left out"] == ["3 samples that could not be read, each replaced by another"]
    assert rows["the [MASK] block"] == ["word 87.0%, open 5.0%", "word"]


def test_the_page_says_how_and_for_what(run):
    """Each thing that the issue asks of a page, by the words that it must have."""
    text = card.render(facts.read(run), NAME, revision="v1.0")
    shown = Page(text).text
    assert "853,120 parameters · 2 layers of 32 · 4 heads · learned positions · layernorm" in shown
    assert blocks(text, "bash") == [SUMMARY["command"] + "\n"]
    assert yaml.safe_load(blocks(text, "yaml")[0]) == {"task": "masked_lm", "dataset_name": "pydocs"}
    assert "figures/surprisal.png" in Page(text).links and "How surprising a passage is" in shown
    for word in ("golden.safetensors", "AMD EPYC 7B13, 2 cores, 2 threads", "ebb6e3ed", "torch 2.13.0", "79 seconds"):
        assert word in shown, word
    assert "nothing but documentation of Python" in shown and "at most 32 tokens" in shown
    assert "@misc{triune-bert," in text and "author = {ada}" in text and "year = {2026}" in text


def test_a_better_baseline_is_named(tmp_path):
    """Where something simpler reaches as much, the page says so; where nothing does, it is silent."""
    others = {"accuracy": {"SVC": 0.9917, "1-NN": 0.98, "luck": 0.1}}
    run = write_run(tmp_path / "a", metrics={"accuracy": 0.9917}, baselines=others, headline="accuracy")
    assert "By accuracy it is no better than SVC (99.2%)." in card.render(facts.read(run), NAME)
    run = write_run(tmp_path / "b", metrics={"loss": 3.0}, baselines={"loss": {"a": 2.9, "b": 3.1}}, headline="loss")
    assert "By loss it is no better than a (2.900)." in card.render(facts.read(run), NAME)
    assert "no better" not in card.render(facts.read(write_run(tmp_path / "c")), NAME)


def test_snippets_are_python_and_pin_the_revision(run):
    """Every Python block parses; each call that loads something names the revision, and the two kinds of name differ."""
    for revision, names in (("v1.0", {"v1.0"}), (None, {"main"})):
        text = card.render(facts.read(run), NAME, revision=revision)
        assert card.revision(text) == revision
        assert ("# better: a commit id" in text) == (revision is None)
        for block in blocks(text, "python"):
            given = {
                node.value
                for node in ast.walk(ast.parse(block))
                if isinstance(node, ast.Constant) and node.value in ("v1.0", "main")
            }
            assert given == names
            loads = re.findall(r"(?:from_pretrained|pipeline|hf_hub_download)\((.*)\)", block)
            assert loads and all("revision=revision" in call for call in loads)
            assert all("trust_remote_code=True" in call for call in loads if "golden" not in call) or (
                "import triune.modeling" in block
            )
    local = card.render(facts.read(run), f"./{run.name}/model")
    assert "revision=" not in local and card.revision(local) is None


@pytest.mark.parametrize("head", CONFIGS)
def test_snippets_run(head, tmp_path):
    """Every Python block of a page runs as it is pasted, for each head; the golden outputs are those of the model."""
    config = config_of(head)
    folder = tmp_path / "run" / "model"
    getattr(modeling, head)(config).save_pretrained(folder)
    if config.embedding["type"] == "tokens":
        words = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "[MASK]", *"the word block with is open Once upon a time".split()]
        tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, "[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]", "eos_token": "[EOS]"}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    else:
        ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
        Image.new("RGB", (16, 16), (200, 30, 90)).save(folder / "picture.png")
    task = next((task for task, fits in TASKS.items() if fits == head), None)
    if task == "image_classification":
        (folder / "samples").mkdir()
        shutil.copyfile(folder / "picture.png", folder / "samples" / "0.png")
    if task:
        (tmp_path / "run" / "summary.json").write_text(json.dumps({**SUMMARY, "examples": [EXAMPLES[task]]}))
    from triune.training.hub import golden

    golden.write(folder)
    for examples in (True, False):
        text = card.render(facts.read(tmp_path / "run"), str(folder), examples=examples)
        said = io.StringIO()
        with redirect_stdout(said):
            for block in blocks(text, "python"):
                exec(block.replace("a picture of yours.png", str(folder / "picture.png")), {})
        assert len(blocks(text, "python")) == (3 if head == "TriuneModel" else 4)
        assert float(said.getvalue().splitlines()[-1]) == 0.0


def test_without_examples_nothing_held_out_is_shown(tmp_path):
    """No text, label, sample or picture of held-out data, on any task; what was measured on them stays."""
    for task, example in EXAMPLES.items():
        pictures = {"surprisal.png": "x", "held_out.png": "y", "never_seen.png": "z", "loss.png": "Loss over time"}
        run = write_run(tmp_path / task, task, pictures=pictures)
        shown, hidden = (card.render(facts.read(run), NAME, examples=wanted) for wanted in (True, False))
        for word in (example.get("text", "samples/"), example.get("continuation", "samples/").strip().split("\n")[0]):
            assert word in shown and word not in hidden
        assert "widget" in head_of(shown) and "widget" not in head_of(hidden)
        assert [link for link in Page(hidden).links if "figures" in link] == ["figures/loss.png"]
        assert "model-index" in head_of(hidden) and rows_of(hidden)["accuracy ↑"] == rows_of(shown)["accuracy ↑"]
        again = card.render(facts.read(run), NAME, former=shown, examples=False)
        assert again == hidden
    assert [card.shows_data(path) for path in ("samples/0.png", "figures/held_out.png", "figures/any.png")] == [
        True
    ] * 3
    assert [card.shows_data(path) for path in ("figures/loss.png", "config.json", "figures.py")] == [False] * 3


def test_a_model_folder_without_a_run(tmp_path):
    """Saved by `save_pretrained`: parameters as torch counts them, and no word on what is not known."""
    model = modeling.TriuneForCausalLM(config_of("TriuneForCausalLM"))
    model.save_pretrained(tmp_path / "mine")
    found = facts.read(tmp_path / "mine")
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    text = card.render(found, NAME)
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert headings == ["Use it", "What it is not for", "Verify it", "Licence and citation"]
    assert found.title == "mine" and f"{found.parameters:,} parameters" in text
    assert not card_schema.problems(head_of(text)) and "model-index" not in head_of(text)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert facts.read(tmp_path / "sharded").parameters == found.parameters


@pytest.mark.parametrize("task", TASKS)
def test_no_page_asks_for_more(task, tmp_path):
    """No place is left to be filled in, whatever is missing in the summary: nothing is "None", "nan" or to do."""
    keys = [key for key in SUMMARY if key != "metrics"]
    for place, left_out in enumerate([[], *([key] for key in keys), keys]):
        run = write_run(tmp_path / str(place), task, **dict.fromkeys(left_out))
        text = card.render(facts.read(run), NAME)
        assert not re.search(r"More Information Needed|TODO|\b(None|nan|NaN|null|inf)\b|Undefined", text), left_out
        assert not card_schema.problems(head_of(text))
    diverged = write_run(tmp_path / "diverged", task, metrics={"loss": None, "accuracy": 0.1})
    assert rows_of(card.render(facts.read(diverged), NAME))["loss ↓"][0] == "not finite"


# ---------------------------------------------------------------------------------------------------------------------
# What the Hub reads


@pytest.mark.parametrize("task", TASKS)
def test_metadata_is_what_the_hub_accepts(task, tmp_path):
    """By the schema, and by huggingface_hub's classes, which give the measured values back."""
    text = card.render(facts.read(write_run(tmp_path / "run", task)), NAME)
    found = head_of(text)
    assert card_schema.problems(found) == []
    assert ModelCardData(**found).to_dict() == found == head_of(str(ModelCard(text)))
    name, results = model_index_to_eval_results(found["model-index"])
    ids = {"loss": "loss", "perplexity": "perplexity", "accuracy": "accuracy", "top5_accuracy": "top5_accuracy"}
    assert name == "triune-bert" and {one.metric_type: one.metric_value for one in results} == {
        ids[metric]: value for metric, value in METRICS.items()
    }
    by_type = {one.metric_type: one for one in results}
    assert by_type["accuracy"].metric_args == {"baselines": {"most frequent token": 0.0371}}
    assert {one.task_type for one in results} == {found["pipeline_tag"]} == {HEADS[TASKS[task]].pipeline_tag}
    assert found["library_name"] == "transformers" and found["license"] == "apache-2.0" and found["language"] == "en"
    assert {"triune", "custom_code"} <= set(found["tags"]) and found["metrics"] == ["perplexity", "accuracy"]
    (example,) = found["widget"]
    expected = {
        "masked_lm": ("the [MASK] block", [{"label": "word", "score": 0.87}, {"label": "open", "score": 0.05}]),
        "causal_lm": ("the with", {"text": " statement of\nsecrets"}),
        "sequence_classification": ("a held out text", TOP),
        "image_classification": (f"https://huggingface.co/{NAME}/resolve/main/samples/0.png", TOP),
    }[task]
    assert (example.get("text", example.get("src")), example["output"]) == expected


def test_the_schema_refuses():
    """What is known to be wrong, one thing at a time; and the licences here are those that the schema lists."""
    wrong = {
        "license": "apache-2",
        "pipeline_tag": "mask-filling",
        "language": "english",
        "tags": "triune",
        "metrics": [3],
        "datasets": ["/home/ada/data"],
        "widget": [{"text": "a", "output": [{"label": "x"}]}],
        "model-index": [{"name": "a", "results": [{"task": {"type": "t"}, "metrics": []}]}],
    }
    for name, value in wrong.items():
        assert card_schema.problems({name: value}), name
    assert card_schema.problems({"license": "other"})
    assert metadata.LICENSES == card_schema.LICENSES


def test_only_data_of_the_hub_is_named(tmp_path, monkeypatch):
    """Bundled sets, files and folders are no data sets of the Hub; nor is a saved run a base model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    cases = {
        "ada/words": ["ada/words"],
        "glue": ["glue"],
        "pydocs": None,
        "digits": None,
        "here": None,
        "/home/ada/secret.csv": None,
        "../words": None,
    }
    for place, (name, expected) in enumerate(cases.items()):
        found = facts.read(write_run(tmp_path / str(place), settings={"dataset_name": name}))
        assert head_of(card.render(found, NAME)).get("datasets") == expected, name
    cases = {"ada/base": "ada/base", "runs/bert": None, "runs/bert/model": None, "/home/ada/bert": None}
    for place, (name, expected) in enumerate(cases.items()):
        found = facts.read(write_run(tmp_path / f"base{place}", settings={"model_name_or_path": name}))
        text = card.render(found, NAME)
        assert head_of(text).get("base_model") == expected and "/home/ada" not in text, name
        assert "trained further" in text


def test_licence_and_language_are_checked(run):
    """Those that the Hub knows are taken, others refused with the nearest one."""
    found = facts.read(run)
    text = card.render(found, NAME, license="cc-by-4.0", language="de,en")
    assert head_of(text)["license"] == "cc-by-4.0" and head_of(text)["language"] == ["de", "en"]
    assert "The weights: `cc-by-4.0`" in text
    other = head_of(card.render(found, NAME, license="other"))
    assert card_schema.problems(other) == [] and other["license_name"] == "other"
    with pytest.raises(ValueError, match=r"license='apache2' .* did you mean 'apache-2.0'\?"):
        card.render(found, NAME, license="apache2")
    with pytest.raises(ValueError, match="language='english'"):
        card.render(found, NAME, language="english")
    with pytest.raises(ValueError, match="revision='a b'"):
        card.render(found, NAME, revision="a b")


# ---------------------------------------------------------------------------------------------------------------------
# Several seeds


def test_spread_is_numpys(tmp_path):
    """Mean and standard deviation over three runs against numpy, on the page; with folds, over the means of seeds."""
    values = [0.5254, 0.531, 0.5181]
    runs = [
        write_run(tmp_path / str(seed), settings={"seed": seed}, metrics={**METRICS, "accuracy": value})
        for seed, value in enumerate(values)
    ]
    found = facts.read(runs[0], runs[1:])
    assert found.seeds.count == 3
    assert np.allclose(found.seeds.metrics["accuracy"], (np.mean(values), np.std(values, ddof=1)))
    rows = rows_of(card.render(found, NAME))
    assert rows["on held-out data"][2] == "mean ± sd of 3 seeds"
    assert rows["accuracy ↑"][2] == f"{np.mean(values):.1%} ± {np.std(values, ddof=1):.1%}"
    assert rows["loss ↓"][2] == "2.124 ± 0.000"
    folds = np.random.default_rng(0).random((3, 5))
    measured = [(seed, {"accuracy": value}) for seed, part in enumerate(folds.tolist()) for value in part]
    spread = facts.over_seeds(measured)
    assert (spread.count, spread.parts) == (3, 5)
    assert np.allclose(spread.metrics["accuracy"], (folds.mean(), folds.mean(1).std(ddof=1)))


def test_other_runs_are_refused(tmp_path):
    """Another setting, other data, the same seed, no evaluation: each named."""
    first = write_run(tmp_path / "first")
    other = write_run(tmp_path / "other", settings={"seed": 1, "learning_rate": 0.5})
    data = write_run(tmp_path / "data", settings={"seed": 1}, data={"name": "pydocs", "fingerprint": "ffff"})
    same = write_run(tmp_path / "same")
    empty = write_run(tmp_path / "empty", settings={"seed": 1}, metrics={})
    for run, message in (
        (other, "learning_rate: None -> 0.5"),
        (data, "data: 'ebb6e3ed' -> 'ffff'"),
        (same, "has seed 0, as .*first has"),
        (empty, "has no evaluation"),
    ):
        with pytest.raises(ValueError, match=message):
            facts.read(first, [run])


# ---------------------------------------------------------------------------------------------------------------------
# What people wrote

NOTES = {
    "about": "\n  **Mine.** <b>html</b> {{ braces }} | pipes\n\n# Title of my own\n```\ncode\n```\n",
    "uses": "One line, no blank ones around.\n",
    "limits": "\n\n\n* three blank lines above\ttab  \n",
}


def with_notes(text):
    for name, note in NOTES.items():
        text = re.sub(rf"(<!-- yours: {name} .*?-->\n)\n(<!-- end)", lambda found: found[1] + note + found[2], text)
    return text


def test_what_people_wrote_is_kept(run):
    """Verbatim, over several makings with other facts; what is between is made again."""
    found = facts.read(run)
    page = with_notes(card.render(found, NAME))
    assert card.hand_written(page) == NOTES
    changed = replace(found, parameters=7, summary={**found.summary, "command": "another"})
    again = card.render(changed, "ada/other", revision="v2", former=page)
    assert card.hand_written(again) == NOTES
    assert "7 parameters" in again and "another" in again and "ada/other" in again
    back = card.render(found, NAME, former=again)
    assert back == page and card.render(found, NAME, former=page) == page


def test_metadata_of_people_stands(run):
    """What is theirs to decide goes before what is known; unknown fields stay; tags are united; numbers are made anew."""
    found = facts.read(run)
    page = ModelCard(card.render(found, NAME))
    theirs = {
        "license": "mit",
        "language": ["en", "de"],
        "thumbnail": "https://example.org/a.png",
        "new_version": "ada/better",
        "co2_eq_emissions": {"emissions": 0.5, "source": "a meter"},
        "extra_gated_prompt": "Tell us: why?",
        "my_own_field": {"a": [1, "1e3", None]},
    }
    for name, value in theirs.items():
        page.data[name] = value
    page.data.tags.append("mine")
    page.data.pipeline_tag = "text-generation"
    page.data.eval_results[0].metric_value = 99.0
    again = head_of(card.render(found, NAME, former=str(page)))
    assert {name: again[name] for name in theirs} == theirs
    assert again["tags"][-1] == "mine" and again["pipeline_tag"] == "fill-mask"
    assert again["model-index"] == head_of(card.render(found, NAME))["model-index"]
    assert head_of(card.render(found, NAME, former=str(page), license="bsd"))["license"] == "bsd"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("<!-- end of yours -->", "", 1), "'uses' begins here, and 'about' has not ended"),
        (lambda text: text.replace("<!-- yours: uses", "<!-- yours: about"), "'about' begins a second time"),
        (lambda text: text.replace("<!-- yours: uses", "<!-- yours: use"), "no part 'use'.*did you mean 'uses'"),
        (lambda text: re.sub("<!-- yours: about.*\n", "", text), "a part ends here, and none has begun"),
        (lambda text: text[: text.rindex("<!-- end of yours")], "'limits' begins here and has no end"),
    ],
)
def test_broken_markers_are_refused(run, change, message):
    """With the number of the line, counted here from the top of the file, and nothing is written."""
    page = change(with_notes(card.render(facts.read(run), NAME)))
    with pytest.raises(ValueError, match=message) as error:
        card.render(facts.read(run), NAME, former=page)
    line = int(re.search(r"README.md, line (\d+):", str(error.value))[1])
    assert page.splitlines()[line - 1].startswith("<!-- ")


def test_changes_outside_of_the_parts_are_refused(run):
    """A word changed, a paragraph added at the end; but other line ends, metadata and blank lines change nothing."""
    found = facts.read(run)
    page = with_notes(card.render(found, NAME))
    for changed in (page.replace("Use it", "Use them"), page + "\nMore of mine.\n", page.replace("Made by", "By")):
        with pytest.raises(ValueError, match="changed outside of the parts"):
            card.render(found, NAME, former=changed)
    same = page.replace("\n\n## ", "\n\n\n\n## ").replace("license: apache-2.0", "license: mit")
    assert card.hand_written(card.render(found, NAME, former=same)) == NOTES
    for ending in ("\r\n", "\n"):
        windows = card.render(found, NAME, former="\ufeff" + page.replace("\n", ending))
        assert {name: part.replace("\r\n", "\n") for name, part in card.hand_written(windows).items()} == NOTES


def test_pages_of_others(run):
    """A page that somebody wrote is kept whole, with its metadata; a form that nobody has filled in is not."""
    found = facts.read(run)
    theirs = "---\nlicense: mit\nmine: 1\n---\n# My model\n\nIt is *good*.\n\n---\n\n<details>more</details>\n"
    page = card.render(found, NAME, former=theirs)
    assert card.hand_written(page)["about"].strip() == theirs.split("---\n", 2)[2].strip()
    assert head_of(page)["license"] == "mit" and head_of(page)["mine"] == 1
    form = str(ModelCard.from_template(ModelCardData(tags=["mine"])))
    summary = "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has "
    pushed = str(ModelCard.from_template(ModelCardData(), model_summary=f"{summary}been automatically generated."))
    for stub in (form, pushed, "", "---\nlicense: mit\n---\n"):
        assert not any(part.strip() for part in card.hand_written(card.render(found, NAME, former=stub)).values())
    filled_in = form.replace("## Uses", "## Uses\n\nFor crosswords.")
    assert "For crosswords." in card.hand_written(card.render(found, NAME, former=filled_in))["about"]
    with pytest.raises(ValueError, match="line 3"):
        card.render(found, NAME, former="---\nlicense: mit\ntags: [a\n---\n# A\n")


def test_a_finished_run_gets_its_page(run, monkeypatch):
    """`write` takes the summary before it is a file, names the folder as seen from here, and keeps what is there."""
    monkeypatch.chdir(run.parent)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").unlink()
    file = card.write(run, summary)
    text = file.read_text()
    assert file == run / "model" / "README.md" and 'name = "./run/model"' in text and "\n# run\n" in text
    assert str(run.parent) not in text
    file.write_text(with_notes(text))
    monkeypatch.chdir("/")
    assert card.hand_written(card.write(run, summary).read_text()) == NOTES
    assert str(run.parent).lstrip("/") in file.read_text()


# ---------------------------------------------------------------------------------------------------------------------
# Hostile strings

NASTY = [
    *("---", "...", "--- \nlicense: mit", "```", "~~~", "````", "`", "``a``", "|", "a|b", "\\", "\\|", "a\\", "|---|"),
    *(
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "</code></pre><b>",
        "<!-- x",
        "-->",
        "<?php",
        "<![CDATA[",
    ),
    *("](javascript:alert(1))", "[x](javascript:alert(1))", "![x](https://evil.example/a.png)", "[a]: javascript:b"),
    *("<javascript:alert(1)>", "javascript:alert(1)", "https://evil.example", "www.evil.example", "a@evil.example"),
    *("{{7*7}}", "{% raw %}", "{#", "${7*7}", "$$x$$", "\\(x\\)", "#{7}", "%s", "%(a)s", "{0}", "{facts}"),
    *("a\u2028b", "a\u2029b", "a\x85b", "a\x00b", "\x1b[31mred", "\u202eevil", "\u2066a\u2069", "\ufeffa", "a\u200bb"),
    *("\ud800", "a\udfffb", "\U000e0041", "\uffff", "日本", "é", "🤗", "👩\u200d💻", "ﷺ", "a\u0301"),
    *("\n# heading", "a\n===", "a\n---", "# a", "- a", "* a", "+ a", "1. a", "1) a", "> a", "    a", "\ta", "a  \nb"),
    *(
        "yes",
        "No",
        "on",
        "null",
        "~",
        "1e3",
        "0x1f",
        "0o17",
        "1_000",
        "12:30",
        "2026-01-01",
        ".inf",
        "1.0",
        "-0",
        "=",
        "<<",
    ),
    *(
        "@",
        "%a",
        ": ",
        "a: b",
        "a #b",
        "- - a",
        "? a",
        "!tag a",
        "&a b",
        "*a",
        "'",
        '"',
        "''",
        "[",
        "{",
        ",",
        "&amp;",
        "&#60;",
    ),
    *(
        "**a",
        "__a__",
        "_a",
        "*a*",
        "~~a~~",
        "![",
        "[^1]",
        ":smile:",
        "'''",
        '"""',
        "';import os;'",
        '"+__import__("os")+"',
    ),
    *(
        "<!-- yours: about -->",
        "\n<!-- end of yours -->\n",
        "<!-- Made by Triune x; revision: a; sum: b -->",
        "../../x",
        "a" * 500,
    ),
]


def random_text(source):
    letters = string.printable + "‮\u2028\x00\ud800é日🤗`|\\<>&[](){}#*_~:-=!\"'\n" * 2
    return "".join(source.choice(letters) for _ in range(source.randrange(1, 40)))


def nasty_texts(source):
    """Endless: those of the list, each of them also inside other text, and random ones."""
    while True:
        text = source.choice([*NASTY, random_text(source)])
        text = source.choice([text, text + "x", "x" + text, text * 2, text + source.choice(NASTY)])
        if markdown.one_line(text):
            yield text


def spoiled(value, texts):
    """The same shape with other strings."""
    if isinstance(value, dict):
        return {key: spoiled(one, texts) for key, one in value.items()}
    if isinstance(value, list):
        return [spoiled(one, texts) for one in value]
    return next(texts) if isinstance(value, str) else value


def renamed(values, texts):
    return {next(texts): value for value in values.values()}


def hostile_run(folder, task, texts):
    """A run in which everything that a user can choose is nasty."""
    summary = spoiled(copy.deepcopy({**SUMMARY, "examples": [EXAMPLES[task]] * 2}), texts)
    summary |= {"headline": "accuracy", "pictures": {name: next(texts) for name in SUMMARY["pictures"]}}
    summary["baselines"] = {name: renamed(values, texts) for name, values in SUMMARY["baselines"].items()}
    summary["versions"] = {next(texts): next(texts) for _ in range(2)}
    summary["metrics"] = {**METRICS, next(texts): 0.5}
    for example in summary["examples"]:
        example |= {"image": "samples/0.png"} if "image" in example else {}
    names = {"id2label": {0: next(texts), 1: next(texts)}}
    names["label2id"] = {label: place for place, label in names["id2label"].items()}
    plain = (text.encode("utf-8", "replace").decode() for text in texts)
    settings = {"dataset_name": next(plain), "train_file": next(plain), "text_column": next(plain)}
    labels = names if "Classification" in TASKS[task] else {}
    return write_run(folder, task, settings, labels, **summary), summary


def skeleton(text):
    """What a page is built of, without its words."""
    tokens = RENDERER.parse(ModelCard(text, ignore_metadata_errors=True).text)
    inner = [child for token in tokens for child in token.children or ()]
    words = {"text", "code_inline", "softbreak"}
    return [token.type for token in tokens], [child.type for child in inner if child.type not in words]


class Core(yaml.SafeLoader):
    """YAML 1.2, the core schema, as the Hub reads it; PyYAML has 1.1."""


Core.yaml_implicit_resolvers = {}
for tag, pattern, first in (
    ("null", r"null|Null|NULL|~|", "nN~\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    Core.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))


def visible(value):
    if isinstance(value, dict):
        return {visible(key): visible(one) for key, one in value.items()}
    if isinstance(value, list):
        return [visible(one) for one in value]
    return markdown.visible(value) if isinstance(value, str) else value


@pytest.mark.parametrize("task", TASKS)
def test_hostile_strings_change_no_page(task, tmp_path):
    """Some thousand nasty strings: HTML has the elements, links and comments of a harmless page and no other; YAML of
    both versions gives the same values back; the page can be read and made again."""
    source = random.Random(task)
    texts = nasty_texts(source)
    harmless = (f"word{place}" for place in range(10**6))
    tame = card.render(facts.read(hostile_run(tmp_path / "tame", task, harmless)[0]), NAME)
    for place in range(12):
        run, summary = hostile_run(tmp_path / str(place), task, texts)
        found = facts.read(run)
        text = card.render(found, NAME)
        text.encode()  # no half of a character
        assert skeleton(text) == skeleton(tame), summary
        assert Page(text).links == Page(tame).links
        assert [comment.split(";")[0] for comment in Page(text).comments] == [
            comment.split(";")[0] for comment in Page(tame).comments
        ]
        block = text.split("\n---\n")[0].removeprefix("---\n")
        expected = visible(card.metadata(found, NAME).to_dict())
        assert yaml.safe_load(block) == yaml.load(block, Loader=Core) == expected == head_of(text)
        assert card_schema.problems({**expected, "datasets": ["a"]}) == []
        shown = " ".join(Page(text).text.split())
        for words in (
            summary["hardware"],
            summary["examples"][0].get("text", "word"),
            summary["data"]["description"][0],
        ):
            assert markdown.one_line(words) in shown or words == "word"
        assert card.render(found, NAME, former=text) == text
        for python in blocks(text, "python"):
            ast.parse(python)


def test_yaml_gives_every_string_back():
    """Each nasty string as key, value and in a list, read by YAML 1.1 and 1.2."""
    source = random.Random(0)
    texts = [*NASTY, *(random_text(source) for _ in range(300))]
    data = {"values": texts, "keys": dict.fromkeys(map(markdown.visible, texts), 1), "number": 1e-8, "word": "ok"}
    written = markdown.as_yaml(data)
    assert yaml.safe_load(written) == yaml.load(written, Loader=Core) == visible(data)
    assert not re.search(r"^---|^\.\.\.", written, flags=re.MULTILINE)


def test_a_line_of_markdown_shows_what_was_given():
    """`inline` and `code` of nasty strings, rendered at every kind of place, show the string and make nothing else."""
    source = random.Random(1)
    for text in [*NASTY, *(random_text(source) for _ in range(200))]:
        line = markdown.one_line(text)
        for made in (markdown.inline(text), markdown.code(text)):
            for place in ("{}", "# {}", "- {}", "> {}", "a\n{}", "| a | b |\n|---|---|\n| {} | end |", "*{}* x"):
                page = Page(f"---\na: 1\n---\n{place.format('x' + made if '*' in place else made)}\n")
                allowed = {
                    "p",
                    "h1",
                    "ul",
                    "li",
                    "blockquote",
                    "table",
                    "thead",
                    "tbody",
                    "tr",
                    "th",
                    "td",
                    "em",
                    "code",
                }
                assert set(page.tags) <= allowed, (text, place)
                assert line in page.text.replace("\n", " "), (text, place)
                assert ("table" in page.tags) == ("|" in place) and ("h1" in page.tags) == ("#" in place)
                assert page.links == [] and page.comments == []


def test_templates_are_safe_by_default(tmp_path):
    """A template that forgets to escape: strings are escaped, Markdown is not, None and what is missing are errors."""
    (tmp_path / "page.md").write_text("{{ text }} {{ made }} {{ text | code }}\n")
    template = markdown.environment(tmp_path).get_template("page.md")
    written = template.render(text="<b>*", made=markdown.Markdown("*ok*"))
    assert written == "&lt;b&gt;\\* *ok* `<b>*`\n"
    with pytest.raises(ValueError, match="cannot show None"):
        template.render(text=None, made="")
    with pytest.raises(Exception, match="'made' is undefined"):
        template.render(text="")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": [1]}, "metrics=.* a mapping of names to numbers"),
        ({"metrics": {"loss": "2"}}, "metrics="),
        ({"seconds": "long"}, "seconds='long' is not allowed"),
        ({"examples": [{"image": "/etc/passwd", "top": []}]}, "examples="),
        ({"examples": [{"image": "samples/{name}.png", "top": []}]}, "examples="),
        ({"pictures": {"../../secret.png": "x"}}, "pictures="),
        ({"baselines": {"loss": 3}}, "baselines=3"),
        ({"data": {"description": "a line"}}, "data="),
    ],
)
def test_wrong_summaries_are_refused(tmp_path, change, message):
    """With the file, the field and what it must be."""
    with pytest.raises(ValueError, match=message) as error:
        facts.read(write_run(tmp_path / "run", **change))
    assert "summary.json: " in str(error.value) and "\n" not in str(error.value)


def test_wrong_files_are_refused(tmp_path):
    """Not JSON, no model, another model, an unknown head, an unknown flag: each with the name of the file."""
    cases = {
        "summary.json": [("{", "is not JSON"), ("[]", "must hold a mapping"), ("\xff", "is not JSON")],
        "model/config.json": [
            ("{", "is not JSON"),
            ('{"model_type": "bert"}', "no Triune model"),
            ('{"model_type": "triune", "hidden_size": "wide"}', "no Triune model"),
            ('{"model_type": "triune", "architectures": ["BertModel"]}', "must name one of TriuneModel"),
        ],
        "run.yaml": [
            ("a: [", "is no YAML"),
            ("learning_rat: 1", "no flag 'learning_rat'; did you mean"),
            ("- a", "must hold"),
        ],
    }
    for place, (file, wrong) in enumerate(cases.items()):
        run = write_run(tmp_path / str(place))
        for content, message in wrong:
            (run / file).write_bytes(content.encode("latin-1"))
            with pytest.raises(ValueError, match=message) as error:
                facts.read(run)
            assert Path(file).name in str(error.value)
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        facts.read(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# The pages that are committed


def script():
    spec = importlib.util.spec_from_file_location("cards_script", ROOT / "scripts" / "cards.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_pages_are_what_is_made():
    """Every page in hub_cards/, the collection's too, is what `python scripts/cards.py` writes from the files there."""
    pages = script().pages()
    for file, text in pages.items():
        assert file.read_text(encoding="utf-8") == text, f"{file}: run python scripts/cards.py"
        for link in Page(text).links:
            inside = link.partition("#")[0]
            assert inside.startswith("https://") or inside == "LICENSE" or (file.parent / inside).is_file(), link
        assert inside_words(text) == []
    folders = {path.parent for path in (ROOT / "hub_cards").rglob("*") if path.is_file()}
    assert {folder for folder in folders if folder.parent == ROOT / "hub_cards"} == {file.parent for file in pages} - {
        ROOT / "hub_cards"
    }


def inside_words(text):
    """Places that somebody has to fill in; outside of what a model said, which may be anything."""
    body = ModelCard(text, ignore_metadata_errors=True).text
    told = re.sub(r"## What it does\n.*?(?=\n## )|^```python\n.*?^```$", "", body, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"More Information Needed|TODO|\b(?:None|nan|NaN|inf)\b|/home/|/tmp/|/work/", told)


def test_runs_become_pages(tmp_path):
    """Three runs: their pages and the collection's, with numbers and pictures; a second time nothing changes, notes
    stay, and nothing of where the runs lay remains."""
    cards = script()
    for place, task in enumerate(("image_classification", "masked_lm", "causal_lm")):
        run = write_run(tmp_path / f"run{place}", task, recipe=("vit", "bert", "none of them")[place])
        for folder, names in (("figures", SUMMARY["pictures"]), ("samples", ["0.png"])):
            (run / "model" / folder).mkdir()
            for name in names:
                Image.new("RGB", (4, 4)).save(run / "model" / folder / name)
        cards.take_over(("vit", "bert", "gpt")[place], run, tmp_path / "cards")
    folder = tmp_path / "cards"
    pages = cards.pages(folder)
    assert [file.parent.name for file in pages] == ["bert", "gpt", "vit", "cards"]
    for file, text in pages.items():
        file.write_text(text)
        assert all(
            (file.parent / link).is_file() for link in Page(text).links if link != "LICENSE" and "://" not in link
        )
        assert "/home/ada" not in text and str(tmp_path) not in text
    assert "/home/ada" not in (folder / "bert" / "run.yaml").read_text()
    rows = rows_of(pages[folder / "README.md"])
    measured = json.loads((ROOT / "benchmarks" / "results" / "recipes.json").read_text())["bert"]["summary"][
        "accuracy"
    ]
    spread = f"3 seeds: {measured['mean']:.1%} ± {measured['spread']:.1%}"
    assert rows["triune-bert"][3:5] == [f"accuracy 52.5%; {spread}", "most frequent token 3.7%"]
    assert rows["triune-gpt"][3] == "accuracy 52.5%" and "5 folds" in rows["triune-vit"][3]
    assert cards.pages(folder) == pages
    noted = folder / "bert" / "README.md"
    noted.write_text(with_notes(noted.read_text()))
    assert card.hand_written(cards.pages(folder)[noted]) == NOTES
    for word in ("bert", "Bert=x", "=x", "../a=x"):
        with pytest.raises(ValueError, match="is not name=run"):
            list(cards.asked([word]))


def test_the_parts_are_on_every_page(run):
    """Each part that may be written on, once, and empty at first."""
    assert card.hand_written(card.render(facts.read(run), NAME)) == dict.fromkeys(kept.PARTS, "\n")
