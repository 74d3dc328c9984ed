"""BLEU and chrF against values computed by hand, against the definition in other words, and against sacreBLEU where it
is installed."""

import math
import random
from collections import Counter
from pathlib import Path

import pytest
import sacrebleu

from triune.training.metric_modules.bleu import Bleu, tokens_13a
from triune.training.metric_modules.chrf import ChrF
from triune.training.metrics import text_metrics


MODULES = Path(__file__).parents[2] / "training/metric_modules"
CAT = ("the cat sat on the mat", "the cat sat on a mat")


def bleu(predictions, references, **options):
    return Bleu().compute(predictions=predictions, references=references, **options)


def chrf(predictions, references, **options):
    return ChrF().compute(predictions=predictions, references=references, **options)["chrf"]


# ---------------------------------------------------------------------------------------------------------------------
# BLEU


TOKENS = {
    "Costs 1,000.5 (or so).": "Costs 1,000.5 ( or so ) .",
    "a 3-4 win, it's well-known": "a 3 - 4 win , it's well-known",
    "&quot;R&amp;D&quot; &lt;x&gt;": '" R & D " < x >',
    "U.S. 50% $5 a/b": "U . S . 50 % $ 5 a / b",
    "cut-\noff\nline<skipped>": "cutoff line",
    "...": ". . .",
}


@pytest.mark.parametrize("text", TOKENS)
def test_tokens(text):
    """13a against its rules, applied by hand: marks apart, points and commas unless between digits, hyphens behind
    digits, entities read."""
    assert " ".join(tokens_13a(text)) == TOKENS[text]


def test_bleu_by_hand():
    """Six words of which five are right, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours; lengths equal."""
    found = bleu([CAT[0]], [CAT[1]])
    assert found["precisions"] == pytest.approx([500 / 6, 60, 50, 100 / 3])
    assert found["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert found["brevity_penalty"] == 1


def test_words_count_as_often_as_in_the_reference():
    """Papineni's example: seven times `the`, of which the reference has two."""
    assert bleu(["the the the the the the the"], ["the cat is on the mat"])["precisions"][0] == pytest.approx(200 / 7)


def test_bleu_is_of_the_corpus():
    """Counts are summed before anything is divided: not the mean over sentences; a short corpus is punished."""
    found = bleu(["a b c d e", "a b c d"], ["a b c d e", "a b c x y z"])
    rights, mades = (5 + 3, 4 + 2, 3 + 1, 2 + 0), (5 + 4, 4 + 3, 3 + 2, 2 + 1)
    penalty = math.exp(1 - 11 / 9)
    assert found["brevity_penalty"] == pytest.approx(penalty)
    product = math.prod(right / made for right, made in zip(rights, mades))
    assert found["bleu"] == pytest.approx(100 * penalty * product**0.25)


def test_smoothing():
    """The first precision without a hit is 1 / 2 of one n-gram, the next 1 / 4; without any hit all is 0; without
    n-grams of four words the score is 0."""
    found = bleu(["a x b y z"], ["a q b r s"])
    assert found["precisions"] == pytest.approx([40, 100 / 2 / 4, 100 / 4 / 3, 100 / 8 / 2])
    assert bleu(["a b c d"], ["w x y z"])["bleu"] == 0
    assert bleu(["a b c"], ["a b c"])["bleu"] == 0
    assert bleu([""], ["a b c d"]) == {"bleu": 0.0, "precisions": [0.0] * 4, "brevity_penalty": 0.0}


def test_several_references():
    """An n-gram counts as often as in the reference that has it most often; the length is that of the nearest one, of
    two as near the shorter."""
    one = bleu(["a a b c d"], [["a b c d e f", "a a x y z w v u"]])
    assert one["precisions"][:2] == pytest.approx([100, 100])
    assert one["brevity_penalty"] == pytest.approx(math.exp(1 - 6 / 5))
    assert bleu(["a b c d e"], [["a b c d", "a b c d e f"]])["brevity_penalty"] == 1


def test_case_and_spaces():
    """`lowercase` and `tokenize=False`."""
    assert bleu(["The Cat Sat Down."], ["the cat sat down."], lowercase=True)["bleu"] == pytest.approx(100)
    assert bleu(["The Cat Sat Down."], ["the cat sat down."])["bleu"] < 40
    assert bleu(["f(x) g(x) h(x) i(x)"], ["f(x) g(x) h(x) j(x)"], tokenize=False)["precisions"][0] == 75


# ---------------------------------------------------------------------------------------------------------------------
# chrF


def test_chrf_by_hand():
    """`ab` and `ac`: one letter of two is right, no pair is, longer ones do not exist: precision = recall = 1 / 4."""
    assert chrf(["ab"], ["ac"]) == pytest.approx(25)
    assert chrf(["abcdefg"], ["abcdefg"]) == pytest.approx(100)
    assert chrf(["abc"], ["xyz"]) == 0 == chrf([""], ["abc"])


def test_recall_counts_more():
    """The half of a text against its double: F with beta = 2 of the means of precision and recall, in both ways."""
    precision, recall = 1.0, (3 / 6 + 2 / 5 + 1 / 4) / 3
    assert chrf(["abc"], ["abcdef"]) == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))
    precision, recall = (3 / 6 + 2 / 5 + 1 / 4) / 3, 1.0
    assert chrf(["abcdef"], ["abc"]) == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))


def test_spaces_do_not_count_and_case_does():
    """Against the same letters otherwise spaced."""
    assert chrf(["a bc d"], ["ab cd"]) == pytest.approx(100)
    assert chrf(["ABCD"], ["abcd"]) == 0 < chrf(["ABCD"], ["abcd"], lowercase=True)


def test_words_of_chrf_plus_plus():
    """`go home.` for `go away.`: letters against a count of their own; of the words go home . two of three are right,
    of the pairs none."""
    said, meant = "gohome.", "goaway."
    shares = []
    for n in range(1, 7):
        own, its = (Counter(text[at : at + n] for at in range(len(text) - n + 1)) for text in (said, meant))
        shares.append(sum((own & its).values()) / sum(own.values()))
    assert chrf(["go home."], ["go away."]) == pytest.approx(100 * sum(shares) / 6)
    words = [2 / 3, 0 / 2]
    assert chrf(["go home."], ["go away."], word_order=2) == pytest.approx(100 * sum(shares + words) / 8)


def test_the_best_reference_counts():
    """Of two references that which suits better, whatever their order."""
    assert chrf(["abcd"], [["xyz", "abcd"]]) == pytest.approx(100) == chrf(["abcd"], [["abcd", "xyz"]])


# ---------------------------------------------------------------------------------------------------------------------
# Both


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_loaded_by_evaluate(name, loaded):
    """evaluate.load with the path gives what the class gives; texts added one by one, what they give together."""
    metric = loaded(name)
    together = metric.compute(predictions=[*CAT], references=[CAT[1], [*CAT]])
    metric.add(prediction=CAT[0], reference=CAT[1])
    metric.add_batch(predictions=[CAT[1]], references=[[*CAT]])
    own = {"bleu": Bleu, "chrf": ChrF}[name]().compute(predictions=[*CAT], references=[CAT[1], [*CAT]])
    assert metric.compute() == together == own and 50 < own[name] < 100


def test_both_together():
    """`text_metrics` against the two by themselves."""
    expected = {"bleu": bleu([CAT[0]], [CAT[1]])["bleu"], "chrf": chrf([CAT[0]], [CAT[1]])}
    assert text_metrics([CAT[0]], [CAT[1]]) == expected


@pytest.mark.parametrize("metric", [Bleu, ChrF])
def test_what_is_refused(metric):
    """Numbers, columns that do not fit, predictions without a reference, nothing at all."""
    name = metric().name
    with pytest.raises(
        ValueError, match=f"{name} takes as many references as predictions, not 1 predictions and 2 ref"
    ):
        metric().compute(predictions=["a"], references=["a", "b"])
    with pytest.raises(ValueError, match="predictions must be texts, and 3 is a int"):
        metric().compute(predictions=[3], references=["a"])
    with pytest.raises(ValueError, match="references must not be empty"):
        metric().compute(predictions=["a"], references=[[]])
    with pytest.raises(ValueError, match="must be lists of texts, not one text: 'abc'"):
        metric().compute(predictions="abc", references=["abc"])
    with pytest.raises(ValueError, match="nothing to measure"):
        metric().compute(predictions=[], references=[])
    with pytest.raises(ValueError, match="word_order=-1"):
        chrf(["a"], ["a"], word_order=-1)


def test_against_sacrebleu():
    """Made-up corpora with one to three references: equal to sacreBLEU's."""
    draw = random.Random(0)
    words = [
        "the",
        "cat",
        "1,000.5",
        "3-4",
        "(or",
        "so).",
        "&quot;x&amp;",
        "it's",
        "U.S.",
        "-",
        "...",
        "$5",
        "é,",
        "[a]",
    ]
    for references in (1, 2, 3) * 20:
        answers = [[" ".join(draw.choices(words, k=draw.randint(0, 9))) for _ in range(references)] for _ in range(4)]
        said = [" ".join(w if draw.random() < 0.7 else draw.choice(words) for w in a[0].split(" ")) for a in answers]
        columns = [list(column) for column in zip(*answers)]
        assert bleu(said, answers)["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, columns).score)
        for order in (0, 2):
            expected = sacrebleu.corpus_chrf(said, columns, word_order=order).score
            assert chrf(said, answers, word_order=order) == pytest.approx(expected)
