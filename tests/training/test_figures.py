"""Figures: what is drawn against what was given, what is computed against formulas, files against their size, and the
model and matplotlib as they were before. The figures themselves have been looked at."""

import math

import numpy as np
import pytest
import torch

from triune.configuration import preset
from triune.modeling import (
    TriuneForCausalLM,
    TriuneForImageClassification,
    TriuneForMaskedLM,
    TriuneModel,
)
from triune.training import figures
from triune.training.figures.attention import (
    draw_attention_rollout,
    draw_attention_rollout_text,
    patch_rollout,
    rollout,
    rollout_of,
)
from triune.training.figures.confusion import draw_confusion_matrix, row_shares, worst_confusions
from triune.training.figures.cross_attention import draw_cross_attention
from triune.training.figures.images import draw_image_grid, draw_patch_grid
from triune.training.figures.observing import read
from triune.training.figures.positions import (
    addend_similarity,
    draw_relative_bias,
    grid_of_grids,
    relative_bias,
    rotation_similarity,
)
from triune.training.figures.similarity import draw_similarity_matrix, draw_zero_shot_bars
from triune.training.figures.style import FAINT, ORANGE, fit, inches, spread, style
from triune.training.figures.surprise import draw_surprisal, flow, surprise_of
from triune.training.figures.training_curves import draw_curve, draw_learning_rate_and_throughput, series, smooth
from triune.training.tokenizers import MASK, train_tokenizer


matplotlib = pytest.importorskip("matplotlib")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = "It is $5 or x_1, he said."


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer("wordpiece", [TEXT] * 3, 80, 32)


def image_model(channels=1, **fields):
    patches = {"image_size": 8, "patch_size": 2, "num_channels": channels}
    return TriuneForImageClassification(preset("vit-mini", embedding=patches, num_labels=3, **SMALL, **fields))


def text_model(head=TriuneForMaskedLM, name="bert-mini", **fields):
    sizes = {"vocab_size": 80, "max_position_embeddings": 32, "bos_token_id": None, "eos_token_id": None}
    return head(preset(name, **{**SMALL, **sizes, **fields}))


def image_size(path):
    """Reading every byte of it, as a browser would."""
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


def lines_of(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines() if not line.get_label().startswith("_")}


def words_of(figure):
    return [text.get_text() for owner in (figure, *figure.axes) for text in owner.texts]


def train(step, loss, **more):
    return {"kind": "train", "step": step, "loss": loss, **more}


def evaluation(step, loss, full=False, **more):
    return {"kind": "eval", "step": step, "loss": loss, "full": full, **more}


# ---------------------------------------------------------------------------------------------------------------------
# Curves


def test_a_curve_draws_the_records():
    """Points of training, of quick and of full evaluations, and the baseline: the values that were given."""
    records = [train(step, 5 - step / 100) for step in range(50, 301, 50)]
    records += [evaluation(0, 6.0, True), evaluation(100, 4.4), evaluation(200, 3.4), evaluation(300, 2.5, True)]
    figure = draw_curve(records, "loss", {"unigram": 5.38})
    lines = lines_of(figure.axes[0])
    assert lines["training, as logged"].tolist() == [[step, 5 - step / 100] for step in range(50, 301, 50)]
    assert lines["held out, a part"].tolist() == [[100, 4.4], [200, 3.4]]
    assert lines["held out"].tolist() == [[0, 6.0], [300, 2.5]]
    assert [5.38, 5.38] in [list(line.get_ydata()) for line in figure.axes[0].get_lines()]
    words = words_of(figure)
    assert {"unigram 5.38", "held out 2.50", "Loss: 6.00 → 2.50 on held-out data"} <= set(words)
    assert any("best evaluation at step 200: 3.40" in word for word in words)


def test_what_is_not_a_number_is_told_and_left_out():
    """NaN, infinity, and the null and the words that JSON may hold: no points, their steps named."""
    values = {1: 2.0, 2: math.nan, 3: None, 4: "Infinity", 5: "NaN", 6: 1.0}
    one = series([train(step, value) for step, value in values.items()], "train", "loss")
    assert one.steps.tolist() == [1, 6] and one.values.tolist() == [2.0, 1.0] and one.lost.tolist() == [2, 3, 4, 5]
    figure = draw_curve([train(step, value) for step, value in values.items()], "loss", {})
    assert any("not a number at step 2, 3, 4, …" in word for word in words_of(figure))
    assert lines_of(figure.axes[0])["training"].shape == (2, 2)


def test_a_resumed_run_draws_each_step_once():
    """Steps that stand twice: the later record, in the order of steps."""
    records = [train(10, 3.0), train(20, 2.0), train(30, 9.0), train(20, 2.1), train(30, 1.5)]
    one = series(records, "train", "loss")
    assert one.steps.tolist() == [10, 20, 30] and one.values.tolist() == [3.0, 2.1, 1.5]


def test_smoothing():
    """A straight line stays straight inside, noise shrinks, few points stay as they are, as numpy's average has it."""
    line = np.linspace(3, 1, 200)
    assert np.allclose(smooth(line)[20:-20], line[20:-20])
    noise = np.random.default_rng(0).normal(size=500)
    assert smooth(noise).std() < 0.4 * noise.std()
    assert np.allclose(smooth(np.array([1.0, 5.0, 2.0])), [1.0, 5.0, 2.0])
    assert smooth(np.array([4.0])).tolist() == [4.0]
    values, width = np.random.default_rng(1).normal(size=100), 2.0
    weights = np.exp(-0.5 * ((np.arange(100) - 50) / width) ** 2) * (abs(np.arange(100) - 50) <= 6)
    assert smooth(values)[50] == pytest.approx(np.average(values, weights=weights))


@pytest.mark.parametrize(
    "places, expected",
    [
        ([0.1, 0.5, 0.9], [0.1, 0.5, 0.9]),
        ([0.52, 0.5], [0.56, 0.46]),
        ([0.0, 0.0], [0.0, 0.1]),
        ([1.0, 0.3, 0.99, 1.0], [0.9, 0.3, 0.8, 1.0]),
    ],
)
def test_labels_are_spread(places, expected):
    """By hand: a gap of 0.1, the order and the middle kept, nothing outside."""
    assert spread(places, 0.1) == pytest.approx(expected)


def test_many_labels_keep_their_gap():
    """Random places: neighbours at least the gap apart, in the same order."""
    places = np.random.default_rng(0).random(9)
    moved = np.array(spread(places, 0.08))
    assert (np.diff(moved[np.argsort(places)]) > 0.08 - 1e-9).all()
    assert moved.min() > -1e-9 and moved.max() < 1 + 1e-9


def test_the_close_up_shows_what_is_compared():
    """Evaluations at 98 to 99 % beside a baseline at 98.6 %: the axis leaves out the start and the majority class,
    whose label points there; with nothing to compare it shows all."""
    records = [evaluation(step, 1.0, True, accuracy=value) for step, value in enumerate((0.1, 0.95, 0.98, 0.99))]
    figure = draw_curve(records, "accuracy", {"majority class": 0.101, "1-NN": 0.986})
    low, high = figure.axes[0].get_ylim()
    assert 0.9 < low < 0.98 and 0.99 < high < 1.01
    assert "majority class 10.1% ↓" in words_of(figure) and "1-NN 98.6%" in words_of(figure)
    low, high = draw_curve(records, "accuracy", {}).axes[0].get_ylim()
    assert low < 0.1 and high > 0.99


@pytest.mark.parametrize("records", [[train(1, 2.0)], [evaluation(0, 2.0)], [train(1, math.nan)]])
def test_one_record_is_enough(records, tmp_path):
    """A file for the loss; none for accuracy, of which there is no record."""
    paths = figures.curves(records, {"accuracy": {"guess": 0.5}, "loss": {"unigram": math.nan}}, tmp_path)
    assert [path.name for path in paths] == ["loss.png"]
    assert image_size(paths[0]) == (1600, 920)


def test_curves_of_the_metrics_that_have_a_baseline(tmp_path):
    """Loss always, perplexity not; without records nothing is written."""
    records = [evaluation(0, 2.0, perplexity=7.4, accuracy=0.1), evaluation(9, 1.0, perplexity=2.7, accuracy=0.5)]
    paths = figures.curves(records, {"accuracy": {"guess": 0.1}}, tmp_path / "new")
    assert paths == [tmp_path / "new" / "loss.png", tmp_path / "new" / "accuracy.png"]
    assert figures.curves([], {"loss": {"unigram": 5.0}}, tmp_path / "none") == []


def test_learning_rate_and_throughput(tmp_path):
    """Both lines as given, the median named; one record, and none, are drawn too."""
    records = [train(step, 1.0, learning_rate=step / 1e4, throughput=1000.0 * step) for step in (1, 2, 4)]
    figure = draw_learning_rate_and_throughput(records, "images")
    rate, speed = (axes.get_lines()[0].get_xydata().tolist() for axes in figure.axes)
    assert rate == [[1, 1e-4], [2, 2e-4], [4, 4e-4]] and speed == [[1, 1000], [2, 2000], [4, 4000]]
    assert "dashed: the median, 2,000 images per second" in words_of(figure)
    for some in (records[:1], []):
        assert image_size(figures.learning_rate_and_throughput(some, tmp_path / "x.png", "tokens"))[0] == 1600


# ---------------------------------------------------------------------------------------------------------------------
# Confusions


def test_confusion_matrix_draws_counts_and_shares():
    """Every count and its share of the row in its cell, colours by the root of the share, the worst named first."""
    matrix = np.array([[8, 2, 0], [1, 9, 0], [3, 0, 1]])
    figure = draw_confusion_matrix(matrix, ["cat", "dog", "$x_1$"])
    axes = figure.axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {
        (0.5, 0.5): "8\n80%",
        (1.5, 0.5): "2\n20%",
        (0.5, 1.5): "1\n10%",
        (1.5, 1.5): "9\n90%",
        (0.5, 2.5): "3\n75%",
        (2.5, 2.5): "1\n25%",
    }
    right, wrong = (np.ma.filled(image.get_array(), 0) for image in axes.images)
    assert np.allclose((right + wrong) ** 2, matrix / matrix.sum(1, keepdims=True))
    assert np.count_nonzero(np.diag(wrong)) == 0
    assert worst_confusions(matrix) == [(2, 0), (0, 1), (1, 0)]
    assert "Confusion matrix: 18 of 24 right (75.0%)" in words_of(figure)
    assert "$x_1$ → cat" in words_of(figure) and "3 of 4 (75%)" in words_of(figure)


@pytest.mark.parametrize("count", [2, 26, pytest.param(100, marks=pytest.mark.slow)])
def test_confusion_matrix_of_many_and_absent_classes(count, tmp_path):
    """Long names, and a class of which there is none: a valid file, not much higher than it is wide."""
    names = [f"a class with quite a long name, number {index}" for index in range(count)]
    matrix = np.eye(count, dtype=int) * 5
    matrix[0] = 0
    assert np.isnan(row_shares(matrix)[0]).all()
    wide, high = image_size(figures.confusion_matrix(matrix, names, tmp_path / "x.png"))
    assert wide >= 1600 and high < wide * 1.2


def test_confusion_matrix_of_nothing():
    """Before the first evaluation: no division by zero, no confusion named."""
    words = words_of(draw_confusion_matrix(np.zeros((2, 2), int), "ab"))
    assert {"No confusions", "Confusion matrix: 0 of 0 right (0.0%)"} <= set(words)


def test_confusion_matrix_must_fit_its_names():
    """The shape that was given and the one that is needed."""
    with pytest.raises(ValueError, match=r"of 3 classes has the shape \(3, 3\), got \(2, 2\)"):
        draw_confusion_matrix(np.eye(2), "abc")


def test_shortened_names_differ_at_the_end():
    """Never longer than allowed; beginning and end kept."""
    assert figures.shorten("class number 17", 10) == "class … 17"
    for most in range(3, 20):
        assert len(figures.shorten("x" * 30 + "17", most)) <= most
    assert figures.shorten("x" * 30 + "17", 12).endswith("17")
    assert figures.shorten("two\nlines", 20) == "two lines"


# ---------------------------------------------------------------------------------------------------------------------
# Images


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 12), (4, 5, 5)])
def test_image_grid_draws_the_images(shape):
    """Pixels as given (grey three times, other channels as their mean), captions below, wrong ones in orange."""
    images = [torch.rand(shape) for _ in range(5)]
    figure = draw_image_grid(images, ["a", "b", "$c", "d", "e"], {1}, "Samples")
    axes = figure.axes[0]
    for drawn, image in zip(axes.images, images, strict=True):
        expected = image if shape[0] == 3 else image.mean(0, keepdim=True).expand(3, -1, -1)
        assert np.allclose(drawn.get_array(), expected.permute(1, 2, 0).numpy(), atol=1e-6)
        left, right, bottom, top = drawn.get_extent()
        assert (right - left) / (bottom - top) == pytest.approx(shape[2] / shape[1])
    captions = {text.get_text(): text.get_color() for text in axes.texts}
    assert list(captions) == ["a", "b", "$c", "d", "e"]
    assert [name for name, colour in captions.items() if colour == ORANGE] == ["b"]


def test_a_dollar_is_a_dollar(tmp_path):
    """A caption that would be broken mathematics, were it taken for that, is drawn as it stands."""
    assert image_size(figures.image_grid([torch.rand(1, 4, 4)], [r"$\frac$"], tmp_path / "x.png"))[0] == 1600


def test_image_grid_without_images(tmp_path):
    """An empty preview is a figure that says so; images and titles must be as many."""
    assert image_size(figures.image_grid([], [], tmp_path / "x.png"))[0] == 1600
    with pytest.raises(ValueError, match="2 images and 1 titles"):
        figures.image_grid([torch.rand(1, 4, 4)] * 2, ["a"], tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"\(channels, height, width\), got \(4, 4\)"):
        figures.image_grid([torch.rand(4, 4)], ["a"], tmp_path / "x.png")


def test_patch_grid_cuts_as_slices_do():
    """Patches of the picture beside the image: each tile the slice of the image that it should be."""
    image = torch.rand(3, 4, 6)
    whole, pieces = (drawn.get_array() for drawn in draw_patch_grid(image, 2).axes[0].images)
    assert np.allclose(whole, image.permute(1, 2, 0).numpy())
    tile = 24 + 2 * (24 // 12)
    for row in range(2):
        for column in range(3):
            inside = pieces[row * tile + 2 : (row + 1) * tile - 2, column * tile + 2 : (column + 1) * tile - 2]
            expected = image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].permute(1, 2, 0).numpy()
            assert np.allclose(inside[::12, ::12], expected)


@pytest.mark.parametrize("patch_size", [0, 3])
def test_patches_must_divide_the_image(patch_size, tmp_path):
    """The size of the image and of the patch."""
    with pytest.raises(ValueError, match=f"4x4 pixels does not divide into patches of {patch_size}"):
        figures.patch_grid(torch.rand(1, 4, 4), patch_size, tmp_path / "x.png")
    assert image_size(figures.patch_grid(torch.rand(1, 4, 4), 2, tmp_path / "x.png")) == (1600, 970)


# ---------------------------------------------------------------------------------------------------------------------
# Room for words

PICTURES, LINES = [torch.rand(3, 4, 4)] * 4, [evaluation(0, 2.0, accuracy=0.1), evaluation(10**7, 1.0, accuracy=0.5)]
TABLE = np.full((4, 4), 3)
WORDY = {  # of four names
    "curve": lambda names: draw_curve(LINES, "loss", dict(zip(names, (1.0, 1.2, 1.9, 5.0)))),
    "close-up": lambda names: draw_curve(LINES, "accuracy", dict(zip(names, (0.001, 0.49, 0.45, 0.5)))),
    "note": lambda names: draw_curve([train(10**9 + at, math.nan) for at in range(9)] + LINES, "loss", {}),
    "confusions": lambda names: draw_confusion_matrix(TABLE, names),
    "images": lambda names: draw_image_grid(PICTURES, names, set(), names[0]),
    "rollout": lambda names: draw_attention_rollout_text(TABLE / 12, names),
    "cross-attention": lambda names: draw_cross_attention([TABLE / 12] * 3, [names] * 3, [names] * 3),
    "similarity": lambda names: draw_similarity_matrix(TABLE / 12, PICTURES, names),
    "zero-shot": lambda names: draw_zero_shot_bars(TABLE / 12, PICTURES, names, range(4)),
}


def extent_of(figure):
    """What is drawn on a figure when it is saved: left, top, right and bottom, of 1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(200)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box, (width, height) = figure.get_tightbbox(canvas.get_renderer()), figure.get_size_inches()
    return box.x0 / width, 1 - box.y1 / height, box.x1 / width, 1 - box.y0 / height


@pytest.mark.parametrize("name", ["x", "unigram entropy + coin", "mean of the visible neighbours " * 4, "W" * 90])
@pytest.mark.parametrize("draw", WORDY.values(), ids=WORDY)
def test_no_word_leaves_the_figure(draw, name):
    """Names short and long, narrow and wide: all that is drawn lies within the picture."""
    with style():
        left, top, right, bottom = extent_of(draw([f"{name}{number}" for number in range(4)]))
    assert -1e-9 < left < right < 1 + 1e-9 and -1e-9 < top < bottom < 1 + 1e-9


def test_a_long_baseline_takes_its_room_from_the_axes():
    """A short label leaves the axes as they are, a longer one makes them narrower and is written whole, and one that
    would take half of them is shortened in its middle: the value stays."""
    with style():
        short, longer, longest = (
            draw_curve([train(1, 3.0), train(9, 2.0)], "loss", {name: 2.5}) for name in ("coin", "a " * 20, "w" * 99)
        )
    widths = [figure.axes[0].get_position().width * 8 for figure in (short, longer, longest)]
    assert widths[0] == pytest.approx(5.2) and 2.6 < widths[1] < 5 and widths[2] == pytest.approx(2.6)
    assert f"{'a ' * 20}2.50".replace("  ", " ") in words_of(longer)
    assert any(word.startswith("www") and word.endswith("w 2.50") and "…" in word for word in words_of(longest))


def test_words_fit_where_they_are_shortened_to():
    """Never wider than the room, never much narrower; what fits stays."""
    with style():
        for name in ("il" * 40, "W" * 40, "a class with a name", "x"):
            for room in (0.2, 0.7, 2.0):
                shown = fit(name, room, 9)
                assert inches(shown, 9) <= room
                assert shown == name or inches(shown, 9) > room - 0.15
    assert fit("two\nlines", 9.0, 9) == "two lines"


def test_names_and_pictures_do_not_overlap():
    """Zero-shot: wide names end before their bars and begin behind the picture."""
    with style():
        figure = draw_zero_shot_bars(TABLE / 12, PICTURES, ["W" * 60] * 4, range(4))
        extent_of(figure)
        sheet, *bars = figure.axes
        for drawn, axes in zip(sheet.images, bars, strict=True):
            names = [label.get_window_extent() for label in axes.get_yticklabels()]
            assert min(name.x0 for name in names) > drawn.get_window_extent().x1
            assert max(name.x1 for name in names) < axes.get_window_extent().x0
            assert axes.get_position().width > 0


def test_maps_of_cross_attention_stay_on_a_page():
    """Of ten high maps those that a page has room for, of one that is higher than a page this one; the darkest colour
    is the largest share."""
    with style():
        for count, drawn in ((10, 4), (60, 1)):
            words = ["w"] * count
            figure = draw_cross_attention([np.full((count, 30), 1 / 30)] * 10, [["w"] * 30] * 10, [words] * 10)
            images = [image for image in figure.axes[0].images if image.get_array().shape == (count, 30)]
            assert len(images) == drawn and all(image.norm.vmax == pytest.approx(1 / 30) for image in images)
            assert "3%" in words_of(figure)


# ---------------------------------------------------------------------------------------------------------------------
# Attention


def test_rollout_by_hand():
    """Two layers, two heads: the mean of the heads and the identity, half each, multiplied in the order of layers."""
    first = torch.tensor([[[[1.0, 0.0], [0.2, 0.8]], [[0.6, 0.4], [0.0, 1.0]]]])
    second = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]]]])
    expected = torch.tensor([[0.75, 0.25], [0.25, 0.75]]) @ torch.tensor([[0.9, 0.1], [0.05, 0.95]])
    assert torch.allclose(rollout([first, second])[0].float(), expected)


@pytest.mark.parametrize("model", [image_model(), text_model(), text_model(TriuneForCausalLM, "gpt2-mini")])
def test_rollout_rows_sum_to_one(model):
    """Of real attentions; a causal model has nothing from later tokens."""
    name = model.main_input_name if model.config.embedding["type"] == "tokens" else "pixel_values"
    inputs = torch.rand(2, 1, 8, 8) if name == "pixel_values" else torch.randint(5, 80, (2, 9))
    total = rollout_of(model, **{name: inputs})
    assert torch.allclose(total.sum(-1), torch.ones(total.shape[:2], dtype=total.dtype))
    if model.config.attention["type"] == "causal":
        assert total.triu(1).abs().max() == 0


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_patch_rollout_follows_the_pooling(pooling):
    """The row of CLS, or the mean of the patches' rows, without CLS's own share; in multiples of the mean."""
    model = image_model(pooling=pooling)
    pixels = torch.rand(2, 1, 8, 8)
    total = rollout_of(model, pixel_values=pixels)
    row = total[:, 0, 1:] if pooling == "cls" else total[:, 1:, 1:].mean(1)
    expected = (row / row.mean(1, keepdim=True)).view(2, 4, 4)
    assert torch.allclose(patch_rollout(model, pixels), expected)


def test_rollout_needs_the_attention_of_the_model_in_evaluation():
    """Dropout off, eager kernel on, and afterwards everything as it was: kernel, and the mode of each module; also
    after an error."""
    model = image_model(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train()
    model.set_attn_implementation("sdpa")
    model.classifier.eval()
    before = {name: module.training for name, module in model.named_modules()}
    pixels = torch.rand(1, 1, 8, 8)
    assert torch.equal(patch_rollout(model, pixels), patch_rollout(model, pixels))
    with pytest.raises(ValueError, match="pixel_values"):
        patch_rollout(model, torch.rand(1, 2, 8, 8))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.config._attn_implementation == "sdpa"
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("channels, shown", [(1, (8, 8)), (3, (8, 8)), (1, (20, 20))])
def test_attention_rollout_is_drawn_over_the_images(channels, shown, tmp_path):
    """Images of one and three channels, also larger than the model reads them; darker where there is more."""
    images = [torch.zeros(channels, *shown)] * 3
    path = figures.attention_rollout(
        image_model(channels), torch.rand(3, channels, 8, 8), images, tmp_path / "attention.png"
    )
    assert image_size(path)[0] == 1600
    maps = torch.ones(1, 4, 4)
    maps[0, 1, 2] = 3.0
    over = draw_attention_rollout(maps, images[:1]).axes[0].images[1].get_array()
    light = over.mean(-1)
    side = shown[0] // 4
    assert np.argwhere(light < light.max() - 1e-6).min(0).tolist() == [side, 2 * side]
    assert np.argwhere(light < light.max() - 1e-6).max(0).tolist() == [2 * side - 1, 3 * side - 1]


def test_attention_rollout_of_no_images(tmp_path):
    """An empty preview is a figure that says so."""
    path = figures.attention_rollout(image_model(), torch.empty(0, 1, 8, 8), [], tmp_path / "x.png")
    assert image_size(path)[0] == 1600


@pytest.mark.parametrize("head, name", [(TriuneForMaskedLM, "bert-mini"), (TriuneForCausalLM, "gpt2-mini")])
def test_attention_rollout_of_text(head, name, tokenizer, tmp_path):
    """The rollout without its diagonal, by its root; long, short and no text."""
    matrix = np.random.default_rng(0).random((4, 4))
    drawn = draw_attention_rollout_text(matrix, ["[CLS]", "$a", " ", "b"]).axes[0].images[0].get_array()
    off = ~np.eye(4, dtype=bool)
    assert np.allclose(drawn[off] ** 2, matrix[off]) and np.ma.getmaskarray(np.ma.masked_invalid(drawn))[~off].all()
    model = text_model(head, name)
    for text in (TEXT * 20, "x", ""):
        image_size(figures.attention_rollout_text(model, tokenizer, text, tmp_path / "x.png"))


# ---------------------------------------------------------------------------------------------------------------------
# Surprise


def test_surprisal_of_a_causal_model_is_its_loss(tokenizer):
    """Bits of each token: their mean is the loss that the model itself gives, the first is not scored."""
    model = text_model(TriuneForCausalLM, "gpt2-mini").eval()
    reading = read(model, tokenizer, TEXT)
    reading = reading._replace(special=np.zeros_like(reading.special))
    surprise = surprise_of(model, reading)
    assert np.isnan(surprise.bits[0]) and np.isfinite(surprise.bits[1:]).all()
    loss = model(input_ids=reading.ids, labels=reading.ids).loss.item()
    assert surprise.bits[1:].mean() * math.log(2) == pytest.approx(loss, rel=1e-5)


def test_surprisal_of_a_masked_model_masks_one_token_at_a_time(tokenizer):
    """Against a loop that masks each place and reads off its probability; what frames the text is not scored."""
    model = text_model().eval()
    reading = read(model, tokenizer, TEXT)
    surprise = surprise_of(model, reading, MASK)
    length = reading.ids.shape[1]
    assert np.isnan(surprise.bits[[0, length - 1]]).all()
    for place in range(1, length - 1):
        masked = reading.ids.clone()
        masked[0, place] = MASK
        with torch.no_grad():
            scores = model(input_ids=masked).logits[0, place].log_softmax(-1)
        assert surprise.bits[place] == pytest.approx(-scores[reading.ids[0, place]].item() / math.log(2), rel=1e-4)
        assert surprise.guesses[place] == scores.argmax()


def test_text_flows():
    """Words of given widths on lines of 10: a full line, a break, and a word that is too long for any."""
    places = flow([4, 4, 4, 1, 20, 2], [False, False, False, True, False, False], 10)
    assert places == [(0, 0), (0, 4), (1, 0), (1, 4), (2, 0), (3, 0)]


def test_surprisal_draws_each_token():
    """Tokens and guesses in order, the mean in the title, colours deeper with the bits."""
    bits = np.array([math.nan, 1.0, 6.0])
    figure = draw_surprisal(["[CLS]", "$x", "↵"], bits, ["", "", "guess"], 64, "causal")
    words = words_of(figure)
    assert "Surprisal: 3.50 bits a token, where a blind guess costs 6.00" in words
    assert [word for word in words if word in ("[CLS]", "$x", "↵", "guess")] == ["[CLS]", "$x", "↵", "guess"]
    unknown, low, high = (patch.get_facecolor()[0] for patch in figure.axes[0].collections)
    assert matplotlib.colors.to_hex(unknown).upper() == FAINT
    assert matplotlib.colors.to_hex(high).upper() == ORANGE
    assert low[:3].mean() > high[:3].mean()


@pytest.mark.parametrize("head, name", [(TriuneForMaskedLM, "bert-mini"), (TriuneForCausalLM, "gpt2-mini")])
def test_surprisal_files(head, name, tokenizer, tmp_path):
    """A long text is cut to what the model reads, a text of no tokens is a figure that says so, and a script that the
    font lacks is no warning."""
    model = text_model(head, name)
    for text in (TEXT * 20, "", "\n", "漢字"):
        assert image_size(figures.surprisal(model, tokenizer, text, tmp_path / "x.png"))[0] == 1600
    assert len(read(model, tokenizer, TEXT * 20).tokens) == 32


# ---------------------------------------------------------------------------------------------------------------------
# Positions


def test_similarity_of_learned_positions():
    """Of a text: numpy's cosines of the table's rows. Of an image: those of the patches, CLS left out."""
    model = text_model()
    table = model.model.positions.table.weight.detach().double().numpy()
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    assert np.allclose(addend_similarity(model), table @ table.T)
    model = image_model()
    table = model.model.positions.table.weight.detach().double().numpy()[1:]
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    assert np.allclose(addend_similarity(model), table @ table.T)


def test_grid_of_grids():
    """Map (row, column) of the picture is that row of the similarity, as a grid; lines of nothing between them."""
    similarity = np.random.default_rng(0).random((6, 6))
    shown = grid_of_grids(similarity, (2, 3))
    assert shown.shape == (2 * 3 - 1, 3 * 4 - 1)
    for row in range(2):
        for column in range(3):
            tile = shown[3 * row : 3 * row + 2, 4 * column : 4 * column + 3]
            assert np.array_equal(tile, similarity[3 * row + column].reshape(2, 3))
    assert np.isnan(shown).sum() == shown.size - 36


def test_similarity_of_rotary_positions():
    """By distance: the mean of the cosines of distance times frequency, for each kind of layer its own."""
    position = {"type": "rotary", "theta": 1000.0, "local_theta": 100.0}
    kinds = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4}
    lines = rotation_similarity(text_model(position=position, **kinds))
    assert list(lines) == ["full attention", "sliding attention"]
    for theta, values in zip((1000.0, 100.0), lines.values()):
        frequencies = theta ** -(np.arange(0, 16, 2) / 16)
        assert np.allclose(values, np.cos(np.arange(32)[:, None] * frequencies).mean(1), atol=1e-5)


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_bias_of_relative_positions(attention):
    """By distance: what the hook adds in the middle of a text, at the same distance."""
    model = text_model(TriuneModel, attention=attention, position="relative", pooling="mean")
    torch.nn.init.normal_(model.positions.table.weight)
    bias = relative_bias(model)
    hook = model.positions.bias(torch.zeros(1, 32, 32), None, 0)[0].detach().numpy()
    assert bias.shape == (2, 32 if attention == "causal" else 63)
    for distance in (-12, -3, 0) if attention == "causal" else (-12, -3, 0, 2, 15):
        assert np.allclose(bias[:, 31 + distance], hook[:, 14, 14 + distance])
    drawn = draw_relative_bias(bias, attention == "causal").axes[0].get_lines()[1].get_xydata()
    assert drawn[[0, 31], 0].tolist() == [-31, 0] and np.allclose(drawn[:, 1], bias[1])


@pytest.mark.parametrize("kind", ["learned", "sinusoidal", "rotary", "relative"])
@pytest.mark.parametrize("build", [text_model, image_model])
def test_position_files(kind, build, tmp_path):
    """A file for every kind that there is, of text and of images."""
    assert image_size(figures.position_similarity(build(position=kind), tmp_path / "x.png"))[0] == 1600


def test_no_positions_no_figure(tmp_path):
    """None is returned, and nothing written."""
    assert figures.position_similarity(text_model(position="none"), tmp_path / "x.png") is None
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# matplotlib


def test_matplotlib_stays_as_it_was(tmp_path):
    """A user's settings before and after; the same figure whatever they are; pyplot is told of no figure."""
    import matplotlib.pyplot as plt

    records = [train(1, 2.0), train(2, 1.0)]
    plain = figures.curves(records, {}, tmp_path / "plain")[0].read_bytes()
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30, "savefig.dpi": 20}):
        before = dict(matplotlib.rcParams)
        assert figures.curves(records, {}, tmp_path / "other")[0].read_bytes() == plain
        assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def test_without_matplotlib(monkeypatch, tmp_path):
    """`available` is false, and a figure that is asked for all the same says what to install."""
    assert figures.available()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not figures.available()
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "triune\[plots\]"'):
        figures.curves([train(1, 2.0)], {}, tmp_path)
