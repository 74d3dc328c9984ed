"""What recipes are said to reach is better than what knows nothing: the committed figures against their baselines."""

import json
import math
import re
import statistics
from pathlib import Path

import pytest
from script_loading import load_script


ROOT = Path(__file__).resolve().parent.parent


def result(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


RESULTS = result("recipes")
# Images that a run is judged by; of `digits` those of the smallest fold.
HELD_OUT = {"vit": 359, "letters": 2080}


def interval(share, count, z=1.96):
    """Wilson's: where the true share lies with 95 %, if `share` of `count` were right."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return middle - half, middle + half


def test_the_interval_is_wilsons():
    """81 of 263, as in the textbook of Newcombe (1998): 0.2553 to 0.3662."""
    assert interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_language_models_read(name):
    """Every run: a loss below three quarters of what knowing the frequencies of tokens gives, and four times the
    accuracy of always saying the most frequent one."""
    for run in RESULTS[name]["runs"]:
        assert run["loss"] < 0.75 * run["baselines"]["loss"]["unigram entropy"]
        assert run["accuracy"] > 4 * run["baselines"]["accuracy"]["most frequent token"]


@pytest.mark.parametrize("name", HELD_OUT)
def test_image_models_see(name):
    """Every run: the whole interval of its accuracy above the majority class; that of the majority class is not."""
    for run in RESULTS[name]["runs"]:
        majority = run["baselines"]["accuracy"]["majority class"]
        assert interval(run["accuracy"], HELD_OUT[name])[0] > 3 * majority
        assert interval(majority, HELD_OUT[name])[0] < majority


def test_figures_of_the_checklist():
    """What a cache saves and what the two poolings reach, as the page says it, against the files; a cache pays."""
    page, cache = (ROOT / "docs" / "checklist.md").read_text(encoding="utf-8"), result("cache")
    assert cache["times_as_fast"] == pytest.approx(cache["seconds_without"] / cache["seconds_with_cache"])
    assert f"{cache['times_as_fast']:.1f} times as fast for {cache['new_tokens']} tokens" in page
    assert cache["times_as_fast"] > 2
    for kind, name in (("CLS", "vit-cls"), ("mean", "vit")):
        runs = [run["accuracy"] for run in RESULTS[name]["runs"] if run["fold"] == 0]
        mean = sum(runs) / len(runs)
        spread = math.sqrt(sum((run - mean) ** 2 for run in runs) / (len(runs) - 1))
        assert f"{kind} (`{name}`) {mean:.1%} ± {spread:.1%}" in page


BENCHMARK = load_script("benchmarks/recipes.py")


@pytest.mark.parametrize("name", BENCHMARK.MEASURED)
def test_a_result_is_ahead_of_its_baseline(name):
    """Over three seeds, by more than two spreads, against the runs' own numbers and baselines."""
    result, runs = BENCHMARK.MEASURED[name], RESULTS[name]["runs"]
    seeds = sorted({run["seed"] for run in runs})
    assert seeds == [0, 1, 2] and len(runs) == 3 * len(result.parts)
    metric, sign = result.metric, -1 if result.metric in ("loss", "bits_per_character", "word_loss") else 1
    means = [statistics.fmean(run[metric] for run in runs if run["seed"] == seed) for seed in seeds]
    if result.baseline in RESULTS:
        beside = statistics.fmean(run[metric] for run in RESULTS[result.baseline]["runs"])
    else:
        pattern = re.compile(result.baseline.replace("k-NN", r"\d+-NN"))
        beside = statistics.fmean(
            value for run in runs for other, value in run["baselines"][metric].items() if pattern.fullmatch(other)
        )
    assert sign * (statistics.fmean(means) - beside) > 2 * statistics.stdev(means)


def test_copying_and_reversing_are_learned():
    """Every run: more than 99 % of held-out strings exactly."""
    assert min(run["exact_match"] for name in ("copy", "reverse") for run in RESULTS[name]["runs"]) > 0.99


def test_hidden_patches_of_photographs():
    """Every run: at least 3 dB above the mean of what is visible."""
    for run in RESULTS["mae"]["runs"]:
        assert run["psnr"] > 3 + run["baselines"]["psnr"]["mean of the visible"]
