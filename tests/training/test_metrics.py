"""Records and metrics against torch, scikit-learn and formulas; and that nothing is written, whatever the process."""

import importlib
import math
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import evaluate
import numpy as np
import pytest
import sklearn.metrics
import torch

from triune.training import metrics
from triune.training.metrics import (
    Records,
    classification_metrics,
    collapsed,
    concatenate,
    confusion,
    language_metrics,
    record,
    top_prediction_share,
)


REPOSITORY = Path(__file__).parents[2]
MODULES = REPOSITORY / "training/metric_modules"
METRICS = {  # with columns to compute from and the result
    "cross_entropy": ({"losses": [math.log(2), math.log(8)]}, {"loss": math.log(4), "perplexity": 4.0}),
    "top_k_accuracy": ({"ranks": [0, 3, 0, 7]}, {"accuracy": 0.5, "top5_accuracy": 0.75}),
    "macro_f1": ({"predictions": [0, 0, 1, 1], "references": [0, 0, 0, 1]}, {"macro_f1": (4 / 5 + 2 / 3) / 2}),
    "confusion_matrix": (
        {"predictions": [0, 1, 1], "references": [0, 0, 1]},
        {"confusion_matrix": [[1, 1], [0, 1]]},
    ),
}


def made_up(count: int, classes: int, seed: int = 0) -> Records:
    """Answers right half of the time, of classes that differ in size, the last of which occurs nowhere."""
    draw = np.random.default_rng(seed)
    label = np.minimum(draw.geometric(0.3, count), classes - 1) - 1
    prediction = np.where(draw.random(count) < 0.5, label, draw.integers(0, classes - 1, count))
    rank = np.where(prediction == label, 0, draw.integers(1, classes, count))
    return Records(draw.exponential(2.0, count).astype(np.float32), rank, prediction, label)


def same(first: dict, second: dict) -> bool:
    """Equal to the last bit; arrays as lists."""
    return {k: np.asarray(v).tolist() for k, v in first.items()} == {
        k: np.asarray(v).tolist() for k, v in second.items()
    }


# ---------------------------------------------------------------------------------------------------------------------
# Records


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_records_of_logits(dtype):
    """Loss against torch's in float64, prediction and rank against a stable sort, for those that are not ignored."""
    logits, labels = torch.randn(50, 9).to(dtype), torch.randint(0, 9, (50,))
    labels[::7] = -100
    records, counted = record(logits, labels), labels != -100
    expected = torch.nn.functional.cross_entropy(logits[counted].double(), labels[counted], reduction="none")
    np.testing.assert_allclose(records.loss, expected, rtol=1e-5, atol=1e-6)
    order = np.argsort(-logits[counted].float().numpy(), axis=1, kind="stable")
    assert (records.prediction == order[:, 0]).all()
    assert (records.rank == [list(row).index(label) for row, label in zip(order, labels[counted])]).all()
    assert (records.label == labels[counted].numpy()).all()
    assert [column.dtype for column in records.columns] == [np.float32, np.int64, np.int64, np.int64]


def test_ties_go_to_the_smaller_class():
    """Logits of three values among nine classes, where ties are everywhere: rank against Python's sort of (-logit,
    class), and rank 0 exactly where the prediction is the label."""
    logits, labels = torch.randint(0, 3, (200, 9)).float(), torch.randint(0, 9, (200,))
    records = record(logits, labels)
    orders = [sorted(range(9), key=lambda c: (-row[c], c)) for row in logits.tolist()]
    assert records.rank.tolist() == [order.index(label) for order, label in zip(orders, labels.tolist())]
    assert ((records.rank == 0) == (records.prediction == records.label)).all()
    assert 0 < (records.rank == 0).sum() < 200


def test_a_model_that_diverged_is_not_right():
    """Logits that are not numbers: no answer counts as right, and the loss says so."""
    records = record(torch.full((4, 8), math.nan), torch.tensor([0, 1, 2, 7]))
    results = language_metrics(records)
    assert math.isnan(results["loss"]) and results["accuracy"] == 0 and results["top5_accuracy"] == 0


def test_large_logits_are_read_in_parts(monkeypatch):
    """Three rows at once against all at once, to the last bit."""
    logits, labels = torch.randn(20, 7), torch.randint(0, 7, (20,))
    labels[3] = -100
    whole = record(logits, labels)
    monkeypatch.setattr(metrics, "AT_ONCE", 21)
    for part, column in zip(record(logits, labels), whole):
        np.testing.assert_array_equal(part, column)


def test_records_without_a_label_that_counts():
    """A batch of ignored labels is an empty record, which adds nothing; an evaluation of those alone is refused."""
    empty = record(torch.randn(3, 5), torch.full((3,), -100))
    assert [column.shape for column in empty.columns] == [(0,)] * 4
    full = made_up(10, 5)
    assert all((a == b).all() for a, b in zip(concatenate([empty, full, empty]).columns, full.columns))
    assert len(concatenate([]).label) == 0
    for measure in (language_metrics, collapsed, lambda records: classification_metrics(records, 5)):
        with pytest.raises(ValueError, match="no label that counts"):
            measure(empty)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), "label 3 .* from 0 to 2, or -100"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), "label -1"),
        (torch.zeros(2, 3), torch.tensor([0]), r"\(2, 3\).*\(1,\)"),
        (torch.zeros(1, 2, 3), torch.tensor([[0, 1]]), r"\(n, classes\)"),
    ],
)
def test_records_that_cannot_be(logits, labels, message):
    """Labels that are no class, shapes that do not fit: the message names them."""
    with pytest.raises(ValueError, match=message):
        record(logits, labels)


# ---------------------------------------------------------------------------------------------------------------------
# Metrics


def test_language_metrics():
    """Against the formulas in float64, and accuracy against a count."""
    records = made_up(5000, 12)
    results = language_metrics(records, characters=7001)
    total = records.loss.astype(np.float64).sum()
    assert results == {
        "loss": pytest.approx(total / 5000, rel=1e-14),
        "perplexity": pytest.approx(np.exp(total / 5000), rel=1e-14),
        "bits_per_character": pytest.approx(total / np.log(2) / 7001, rel=1e-14),
        "accuracy": (records.prediction == records.label).mean(),
        "top5_accuracy": sum(rank <= 4 for rank in records.rank.tolist()) / 5000,
    }
    assert "bits_per_character" not in language_metrics(records)
    assert all(type(value) is float for value in results.values())


def test_metrics_of_logits():
    """From logits to the result, against torch and scikit-learn on the same logits."""
    logits = torch.randn(400, 10)
    labels = torch.where(torch.rand(400) < 0.5, logits.argmax(1), torch.randint(0, 10, (400,)))
    results = classification_metrics(record(logits, labels), 10)
    names = list(range(10))
    assert results == {
        "loss": pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-6),
        "accuracy": pytest.approx(sklearn.metrics.accuracy_score(labels, logits.argmax(1))),
        "top5_accuracy": pytest.approx(sklearn.metrics.top_k_accuracy_score(labels, logits, k=5, labels=names)),
        "macro_f1": pytest.approx(sklearn.metrics.f1_score(labels, logits.argmax(1), average="macro")),
    }


def test_top5_needs_more_than_five_classes():
    """With five classes top-5 is always right, so it is left out."""
    assert "top5_accuracy" not in classification_metrics(made_up(50, 5), 5)
    assert "top5_accuracy" in classification_metrics(made_up(50, 6), 6)


@pytest.mark.parametrize(
    ("predictions", "references"),
    [
        ([0, 0, 0, 0], [0, 1, 2, 2]),  # classes that are never predicted
        ([0, 3, 3, 1], [0, 1, 1, 1]),  # a class that is only predicted
        ([1, 2], [2, 1]),  # nothing right
        ([7], [7]),
        ([-5, 10**12, 3], [-5, 3, 3]),  # ids far apart
        (made_up(300, 40).prediction, made_up(300, 40).label),
    ],
)
def test_macro_f1(predictions, references):
    """Against scikit-learn's, where classes are absent on either side or on both."""
    ours = evaluate_module("macro_f1").compute(predictions=predictions, references=references)["macro_f1"]
    theirs = sklearn.metrics.f1_score(references, predictions, average="macro", zero_division=0)
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_confusion():
    """Against scikit-learn's, with a class that occurs nowhere; its diagonal is what is right."""
    records = made_up(500, 8)
    counts = confusion(records, 8)
    expected = sklearn.metrics.confusion_matrix(records.label, records.prediction, labels=list(range(8)))
    assert (counts == expected).all() and counts.shape == (8, 8)
    assert np.trace(counts) == (records.rank == 0).sum()
    with pytest.raises(ValueError, match=r"the class [3-9] is not allowed: it must be from 0 to 2"):
        confusion(records, 3)


@pytest.mark.parametrize("seed", range(3))
def test_any_split_gives_the_same_bits(seed):
    """Records dealt to three processes in ragged batches, one of them empty, and gathered in another order: equal to
    the single process to the last bit, for losses of very different size too."""
    records, draw = made_up(3001, 12), np.random.default_rng(seed)
    records = records._replace(loss=(records.loss * 10.0 ** draw.integers(-6, 4, 3001)).astype(np.float32))
    order = draw.permutation(3001)
    borders = np.sort(draw.integers(0, 3001, 11))
    batches = [records.take(where) for where in np.split(order, [0, *borders])]
    gathered = concatenate([concatenate(batches[rank::3]) for rank in range(3)])
    assert same(language_metrics(gathered, 9999), language_metrics(records, 9999))
    assert same(classification_metrics(gathered, 12), classification_metrics(records, 12))
    assert (confusion(gathered, 12) == confusion(records, 12)).all()
    assert collapsed(gathered) == collapsed(records)


def test_a_perplexity_beyond_floats():
    """A loss of 1000 nats has a perplexity that no float holds: infinity, and no warning or error."""
    assert language_metrics(Records(np.float32([1000]), *[np.array([0])] * 3))["perplexity"] == math.inf


def test_a_million_records():
    """In less than a second, each: the library's own storage alone takes 2 s for two columns."""
    records = made_up(10**6, 100)
    for measure in (language_metrics, lambda r: classification_metrics(r, 100), collapsed):
        started = time.process_time()
        measure(records)
        assert time.process_time() - started < 1


# ---------------------------------------------------------------------------------------------------------------------
# Collapse


def answers(predictions: dict[int, int], labels: dict[int, int]) -> Records:
    """So many predictions and labels of each class."""
    columns = [np.array(list(Counter(counts).elements())) for counts in (predictions, labels)]
    rank = (columns[0] != columns[1]).astype(np.int64)
    return Records(rank.astype(np.float32), rank, *columns)


def test_top_prediction_share():
    """Against a count, and the smaller class where two are equal."""
    assert top_prediction_share(answers({3: 7, 5: 3}, {3: 10})) == (3, 0.7)
    assert top_prediction_share(answers({5: 5, 3: 5}, {3: 10})) == (3, 0.5)


@pytest.mark.parametrize(
    ("predictions", "labels", "warns"),
    [
        ({4: 100}, {0: 50, 4: 50}, True),
        ({4: 100}, {0: 50, 1: 50}, True),  # a constant that is never right
        ({4: 96, 0: 4}, {4: 40, 0: 60}, True),
        ({4: 95, 0: 5}, {4: 40, 0: 60}, False),  # the border
        ({4: 100}, {4: 96, 0: 4}, False),  # the labels are as one-sided
        ({4: 96, 0: 4}, {4: 94, 0: 6}, False),  # as a good model does
        ({4: 100}, {4: 94, 0: 6}, True),
        ({4: 50, 0: 50}, {4: 50, 0: 50}, False),
        ({4: 10}, {0: 5, 4: 5}, False),  # too few to tell
        ({0: 100}, {0: 100}, False),  # one class
    ],
)
def test_collapse(predictions, labels, warns):
    """A warning where nearly all predictions are one class and the labels are not, and only there."""
    warning = collapsed(answers(predictions, labels))
    assert (warning is not None) == warns
    if warns:
        share = max(predictions.values()) / sum(predictions.values())
        assert f"{share:.1%} of 100 are class 4" in warning


# ---------------------------------------------------------------------------------------------------------------------
# As modules of the evaluate library


def evaluate_module(name: str, **options) -> evaluate.Metric:
    """The metric as our code builds it."""
    module = importlib.import_module(f"triune.training.metric_modules.{name}")
    (found,) = (kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, evaluate.Metric))
    return found(**options)


@pytest.mark.parametrize("name", METRICS)
def test_loaded_and_imported_agree(loaded, name):
    """evaluate.load and our own import, against results worked out by hand, from lists, arrays and tensors."""
    columns, expected = METRICS[name]
    tensors = {
        key: torch.tensor(column, dtype=torch.float64 if key == "losses" else None) for key, column in columns.items()
    }
    for metric in (loaded(name), evaluate_module(name)):
        for given in (columns, {key: np.array(column) for key, column in columns.items()}, tensors):
            result = metric.compute(**given)
            assert result.keys() == expected.keys()
            for key, value in expected.items():
                np.testing.assert_allclose(result[key], value, rtol=1e-15)


@pytest.mark.parametrize("name", METRICS)
def test_entries_may_come_one_by_one(loaded, name):
    """add, add_batch and compute in turns give what compute gives at once, and nothing stays for the next time."""
    metric, (columns, _) = loaded(name), METRICS[name]
    whole = metric.compute(**columns)
    metric.add(**{key.removesuffix("s"): column[0] for key, column in columns.items()})
    metric.add_batch(**{key: column[1:2] for key, column in columns.items()})
    assert len(metric) == 2
    rest = {key: column[2:] for key, column in columns.items()}
    assert same(metric.compute(**rest), whole) and len(metric) == 0
    assert same(metric.compute(**columns), whole)


@pytest.mark.parametrize("name", METRICS)
def test_modules_explain_themselves(loaded, name):
    """Description, arguments and the example of each, whose result is computed."""
    metric = loaded(name)
    assert metric.name == name and metric.description and metric.module_type == "metric"
    assert all(f"{feature} (list of" in metric.inputs_description for feature in metric.features)
    assert metric.inputs_description in metric.compute.__doc__
    call, result = re.search(r">>> (metric\.compute.*)\n\s+(.*)", metric.inputs_description).groups()
    assert repr(eval(call, {"metric": metric, "math": math})) == result


def test_accuracy_of_predictions(loaded):
    """The other configuration of accuracy, against scikit-learn; top-k is refused there."""
    metric, records = loaded("top_k_accuracy", "predictions"), made_up(200, 6)
    columns = {"predictions": records.prediction, "references": records.label}
    assert metric.compute(**columns) == {"accuracy": sklearn.metrics.accuracy_score(records.label, records.prediction)}
    with pytest.raises(ValueError, match="needs ranks"):
        metric.compute(**columns, top_k=(1, 5))


def test_modules_can_be_combined(loaded):
    """evaluate.combine of two, against each alone."""
    columns = METRICS["macro_f1"][0]
    parts = [loaded("macro_f1"), loaded("top_k_accuracy", "predictions")]
    expected = {key: value for part in parts for key, value in part.compute(**columns).items()}
    assert evaluate.combine(parts).compute(**columns) == expected


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cross_entropy", {"losses": []}, "nothing to measure"),
        ("cross_entropy", {}, "nothing to measure"),
        ("cross_entropy", {"losses": [1.0], "characters": 0}, "characters=0"),
        ("cross_entropy", {"losses": [[1.0]]}, "column of numbers"),
        ("cross_entropy", {"losses": ["a"]}, "column of numbers"),
        ("top_k_accuracy", {"ranks": [0.5]}, "ranks must be int64, and 0.5 is not"),
        ("top_k_accuracy", {"ranks": [math.nan]}, "nan is not"),
        ("top_k_accuracy", {"ranks": [-1]}, "rank -1"),
        ("top_k_accuracy", {"ranks": [1], "top_k": (0,)}, "top_k=.* 1 or more"),
        ("macro_f1", {"predictions": [1], "references": [1, 2]}, "1 predictions and 2 references"),
        ("macro_f1", {"predictions": [1]}, "takes predictions and references, not predictions"),
        ("confusion_matrix", {"predictions": [-1], "references": [0]}, "class -1"),
    ],
)
def test_wrong_input(name, arguments, message):
    """What a module cannot take, by name and value; the next use is not disturbed."""
    metric = evaluate_module(name)
    with pytest.raises(ValueError, match=message):
        metric.compute(**arguments)
    columns, expected = METRICS[name]
    assert metric.compute(**columns).keys() == expected.keys()


def test_wrong_setup():
    """An unknown configuration, and evaluate's own gathering over files, which is refused."""
    with pytest.raises(ValueError, match=r"config_name='top5' .* ranks, predictions"):
        evaluate_module("top_k_accuracy", config_name="top5")
    with pytest.raises(ValueError, match="num_process=2"):
        evaluate_module("macro_f1", num_process=2)


def test_random_numbers_are_left_alone():
    """The states of numpy's and torch's generators, before and after."""
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    classification_metrics(made_up(100, 10), 10)
    assert (np.random.get_state()[1] == before[0]).all() and torch.equal(torch.get_rng_state(), before[1])


WATCHED = """
import sys
seen = []
def watch(event, arguments):
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "socket.connect", "subprocess.Popen"):
        seen.append((event, arguments))
import evaluate, numpy as np
from triune.training import metrics
from triune.training.metric_modules import confusion_matrix, cross_entropy, macro_f1, top_k_accuracy
sys.addaudithook(watch)
records = metrics.Records(np.ones(50, np.float32), *[np.arange(50) % 7] * 3)
print(metrics.language_metrics(records, 9), metrics.classification_metrics(records, 7), metrics.confusion(records, 7))
assert not seen, seen
open(sys.argv[1], "w").close()
assert seen, "the watch does not see"
"""


@pytest.mark.slow
def test_nothing_is_written_by_several_processes_at_once(tmp_path):
    """Three processes with one home that cannot be made, offline: no file, no folder, no connection, no message, and
    one result. An audit hook watches, and is shown a file at the end."""
    (tmp_path / "file").touch()
    home = {"HF_HOME": str(tmp_path / "file" / "home"), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    commands = [[sys.executable, "-c", WATCHED, str(tmp_path / f"shown{rank}")] for rank in range(3)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(command, env={**os.environ, **home}, cwd=tmp_path, **pipes) for command in commands]
    outputs = [run.communicate(timeout=200) for run in runs]
    assert [run.returncode for run in runs] == [0] * 3, outputs
    assert len(set(outputs)) == 1 and outputs[0][1] == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "shown0", "shown1", "shown2"]


@pytest.mark.slow
def test_the_page_of_metrics(tmp_path):
    """The example of docs/metrics.md, run as it stands, against the output that it shows; offline, by two processes
    that make the first copy of the code at once."""
    page = (REPOSITORY / "docs/metrics.md").read_text(encoding="utf-8")
    code, shown = re.search(r"```python\n(.*?)```\n+```\n(.*?)```", page, re.DOTALL).groups()
    home = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    pipes = {"stdout": subprocess.PIPE, "text": True, "cwd": REPOSITORY, "env": home}
    runs = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    assert [run.communicate(timeout=200)[0] for run in runs] == [shown] * 2
