"""What a run leaves behind: a model folder that lacks nothing, and a summary that says what was reached; against the
records of the run, the model itself and transformers' own pipelines."""

import json
import shutil
import stat

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from small_runs import OTHERS, TEXT, train
from transformers import pipeline

from triune.training import leaving, report
from triune.training.arguments import parse
from triune.training.hub import content, facts, golden
from triune.training.prediction import answers, load


def summary(run):
    return json.loads((run / "summary.json").read_text())


@pytest.mark.parametrize("name", ["bert", "gpt", "vit"])
def test_a_model_folder_lacks_nothing(runs, name):
    """By the rules of what is published; and whoever may look into the folder may read every file."""
    model = runs / name / "model"
    assert content.lacking(model) == []
    files = [path for path in model.rglob("*") if path.is_file()]
    assert [path.name for path in files if not path.stat().st_mode & stat.S_IROTH] == []
    assert {path.relative_to(model).as_posix() for path in files} == set(content.travelling(model))
    assert "golden.safetensors" in content.travelling(model) and "README.md" in content.travelling(model)


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_of_any_task_lacks_nothing(others, name):
    """The same of the other tasks: complete, every file travels, answers of the model to what was held out are on its
    card, and the golden file is that of the weights."""
    model = others / name / "model"
    assert content.lacking(model) == []
    files = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert files == set(content.travelling(model)) and "golden.safetensors" in files
    found = facts.read(others / name)
    assert len(found.examples) == len(summary(others / name)["examples"]) > 0
    assert "With inputs that were held out" in (model / "README.md").read_text()
    assert golden.compute(model) == (model / "golden.safetensors").read_bytes()


def test_captions_are_told_apart(others):
    """Each image is compared with the captions of all examples: against transformers' pipeline."""
    found = summary(others / "clip")["examples"]
    captions = [one["label"] for one in found]
    assert len(set(captions)) == len(found) > 3
    model = str(others / "clip" / "model")
    ask = pipeline("zero-shot-image-classification", model, device="cpu")
    for one in found:
        answer = ask(f"{model}/{one['image']}", candidate_labels=captions, hypothesis_template="{}")
        assert [top["score"] for top in one["top"]] == pytest.approx([top["score"] for top in answer[:3]], rel=1e-4)


def test_pairs_have_a_verdict(others):
    """Two texts with a TAB between them and one mask; the truth is the hidden word and whether the second follows."""
    verdicts = {"follows", "strange"}
    for one in summary(others / "pretraining")["examples"]:
        assert one["text"].count("\t") == 1 and one["text"].count("[MASK]") == 1 and len(one["masks"]) == 1
        assert {one["label"].split("; ")[1], one["verdict"]["label"]} <= verdicts


@pytest.mark.parametrize("name", ["bert", "gpt", "vit"])
def test_the_summary_says_what_was_reached(runs, name):
    """Metrics of the last full evaluation, those before training, seconds: against the records; parameters: against
    the file of weights."""
    found, records = summary(runs / name), report.read(runs / name)
    full = [record for record in records if record["kind"] == "eval" and record["full"]]
    for key, record in (("first", full[0]), ("metrics", full[-1])):
        assert {name: record[name] for name in found[key]} == found[key] and "loss" in found[key]
    assert found["headline"] in found["metrics"] and found["step"] == 2
    assert found["seconds"] == pytest.approx(full[-1]["seconds"])
    weights = load_file(runs / name / "model" / "model.safetensors")
    assert found["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert found["flops"] > 0 and found["versions"]["torch"] == torch.__version__


def test_the_recipe_beside_the_model_gives_the_same_run(runs):
    """Read as a recipe it comes to the flags of the run, but for folders of files: against run.yaml."""
    again = parse([str(runs / "gpt" / "model" / "recipe.yaml")]).as_dict()
    first = yaml.safe_load((runs / "gpt" / "run.yaml").read_text())
    different = {key for key in first if first[key] != again[key]}
    assert different == {"train_file", "output_dir"} and again["train_file"] == "words.txt"
    assert "/" not in summary(runs / "gpt")["command"].replace("scripts/train.py", "")


@pytest.mark.parametrize("name", ["bert", "gpt", "vit"])
def test_no_path_of_this_machine_travels(runs, data, name):
    """The folder of the data, which every run was given, stands in no file of the model folder, nor in the summary."""
    files = [runs / name / "summary.json", *content.travelling(runs / name / "model").values()]
    assert [file.name for file in files if str(data).encode() in file.read_bytes()] == []


def test_examples_are_what_the_model_answers(runs):
    """Beginnings and images, asked again of the saved model: the same; images with the truth, saved as they are."""
    for name in ("gpt", "vit"):
        saved = load(str(runs / name / "model"))
        for one in summary(runs / name)["examples"]:
            asked = one.get("text") or str(runs / name / "model" / one["image"])
            options = {"max_new_tokens": leaving.EXAMPLE_TOKENS} if name == "gpt" else {}
            first = summary(runs / name)["examples"][0]
            (again,) = answers(saved, [asked], options)
            if name == "vit":
                assert again["top"][0]["label"] == one["top"][0]["label"] and one["label"] in ("dark", "light")
                shade = Image.open(asked).getpixel((0, 0))[0]
                assert (shade >= 150) == (one["label"] == "light")
            elif one == first:  # what is drawn depends on the place among the inputs
                assert again["continuation"] == one["continuation"]


def test_a_word_is_hidden(data, tmp_path, no_figures):
    """Of words that are tokens: each example has one mask, and with the label in its place it is held-out text."""
    run = train(tmp_path / "bert", task="masked_lm", train_file=data / "words.txt", **{**TEXT, "vocab_size": 700})
    found, text = summary(run)["examples"], (data / "words.txt").read_text().split()
    assert found
    for one in found:
        assert one["text"].count("[MASK]") == 1 and one["label"] in text
        whole = one["text"].replace("[MASK]", one["label"]).split()
        assert " ".join(whole[1:-1]) in " ".join(text)
    assert [len(one["masks"][0]) for one in found] == [5] * len(found)


def test_texts_with_a_class(data, tmp_path, no_figures):
    """The fourth task: its examples have texts, labels and answers, and its folder lacks nothing."""
    run = train(tmp_path / "run", task="sequence_classification", train_file=data / "rows.csv", **TEXT)
    assert content.lacking(run / "model") == []
    for one in summary(run)["examples"]:
        assert one["label"] == ("long" if len(one["text"]) > 100 else "short") and len(one["top"]) == 2


def test_pictures_that_the_card_shows_are_beside_it(data, tmp_path):
    """Those that the task names, with captions; every picture of the card is there."""
    run = train(tmp_path / "run", task="causal_lm", train_file=data / "words.txt", **TEXT)
    shown = summary(run)["pictures"]
    assert set(shown) == {"surprisal.png", "loss.png"}
    card = (run / "model" / "README.md").read_text()
    for name in shown:
        assert (run / "model" / "figures" / name).read_bytes() == (run / "figures" / name).read_bytes()
        assert f"](figures/{name})" in card


def test_what_was_written_on_a_card_outlives_the_model(runs, data, tmp_path, no_figures):
    """A run without its summary, which is written last, goes through its end again: weights as before, and what was
    written between the markers of the card is still there."""
    flags = {"task": "causal_lm", "train_file": data / "words.txt", **TEXT}
    run = train(tmp_path / "run", **flags)
    weights = (run / "model" / "model.safetensors").read_bytes()
    card = run / "model" / "README.md"
    marker = next(line for line in card.read_text().splitlines() if line.startswith("<!-- yours: about"))
    card.write_text(card.read_text().replace(marker, f"{marker}\n\nMine.\n"))
    (run / "summary.json").unlink()
    train(run, **flags)
    assert "\nMine.\n" in card.read_text() and (run / "summary.json").is_file()
    assert (run / "model" / "model.safetensors").read_bytes() == weights
    (run / "model" / "golden.safetensors").unlink()
    train(run, **flags)  # a run that is complete is left alone
    assert not (run / "model" / "golden.safetensors").exists()


def test_a_card_that_fails_does_not_cost_the_model(data, tmp_path, monkeypatch, capsys, no_figures):
    """Golden outputs that cannot be computed: a warning, and the model is there."""

    def fail(folder):
        raise ValueError("no golden outputs today")

    monkeypatch.setattr(golden, "write", fail)
    run = train(tmp_path / "run", task="causal_lm", train_file=data / "words.txt", **TEXT)
    assert (run / "model" / "model.safetensors").is_file() and not (run / "summary.json").exists()
    assert "the model folder is not complete: no golden outputs today" in " ".join(capsys.readouterr().out.split())
    shutil.rmtree(run)
