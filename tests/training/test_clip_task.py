"""The contrastive task: drawn scenes and what is held out of them, boards of held-out pairs, its metrics, files of a
user, a run from its beginning to the folder that the pipeline reads."""

import csv
import math
from collections import Counter

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from triune.configuration import merged
from triune.configuration.configuration_triune_clip import TriuneCLIPConfig
from triune.modeling import TriuneCLIPModel
from triune.training import run
from triune.training.arguments import options_of, parse
from triune.training.collators import IGNORED
from triune.training.data import shapes
from triune.training.data.shapes import ALONE, NUMBERS, SIZE, THINGS, Scene, caption, draw, split_scenes
from triune.training.figures.similarity import similarity_matrix, zero_shot_bars
from triune.training.metrics import record
from triune.training.sampling import Key, Plan
from triune.training.tasks import TASKS
from triune.training.tasks.contrastive import Contrastive


CONFIG = (
    "text: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, attention: causal}\n"
    "vision: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, "
    "embedding: {type: patches, image_size: 16, patch_size: 8}}\n"
    "projection_dim: 8"
)
FLAGS = ("--task", "contrastive", "--max_seq_length", "20", "--config", CONFIG)


def made(*flags: str, data=("--dataset_name", "shapes")) -> tuple[Contrastive, TriuneCLIPConfig]:
    arguments = parse([*FLAGS, *data, *flags])
    task = TASKS["contrastive"](arguments)
    fields = merged(task.config_fields(), options_of("config", arguments.model.config))
    config = TriuneCLIPConfig(**fields)
    task.prepare(config)
    return task, config


@pytest.fixture(scope="module")
def task_and_model():
    task, config = made()
    torch.manual_seed(0)
    model = TriuneCLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return task, model


# ---------------------------------------------------------------------------------------------------------------------
# Scenes


def test_the_data_says_of_how_many_classes(task_and_model):
    """Those that are shown, of those that a model chooses among, by counting the things of drawings."""
    line, (_, _, unseen) = task_and_model[0].describe()[0], split_scenes()
    assert f"; {10 * len(unseen)} images of {len({scene.first for scene in unseen})} of {len(THINGS)} classes;" in line
    assert "; 200 images of 20 of 40 classes;" in line


def test_what_is_held_out_was_never_seen():
    """By counting: no two things of a held-out scene share a training scene, all four arrangements of a pair are held
    out, every thing is seen, and the things of the zero-shot images never stand alone in training."""
    train, held_out, unseen = split_scenes()
    together = {frozenset((scene.first, scene.second)) for scene in train if scene.second is not None}
    asked = Counter(frozenset((scene.first, scene.second)) for scene in held_out)
    assert len(held_out) == len(set(held_out)) == 100 and set(asked.values()) == {4}
    assert not together & set(asked)
    assert len(together) + len(asked) == math.comb(len(THINGS), 2)
    captions = {caption(scene) for scene in held_out}
    assert len(captions) == 100 and not captions & {caption(scene) for scene in train}
    assert {thing for pair in together for thing in pair} == set(range(len(THINGS)))
    alone = {scene.first for scene in train if scene.arrangement == ALONE}
    assert alone | {scene.first for scene in unseen} == set(range(len(THINGS)))
    assert len(alone) == len(unseen) == len(THINGS) // 2 and not alone & {scene.first for scene in unseen}


def test_captions_say_what_is_drawn():
    """The middle of the pixels of each colour: against the words of the caption."""
    torch.manual_seed(0)
    red, blue = THINGS.index(("red", "square")), THINGS.index(("blue", "cross"))
    for arrangement, axis in (("left of", 1), ("above", 0)):
        scene = Scene(red, arrangement, blue)
        assert caption(scene) == f"a red square {arrangement} a blue cross"
        images = draw([scene] * 50, torch.rand(50, NUMBERS)).float()
        places = torch.arange(SIZE).float()
        middles = []
        for channel, other in ((0, 2), (2, 0)):
            weight = (images[:, channel] - images[:, other]).clamp(min=0) > 40
            share = weight.float().sum(2 - axis)
            middles.append((share * places).sum(1) / share.sum(1))
        assert (middles[0] + 4 < middles[1]).all()
    assert caption(Scene(THINGS.index(("orange", "ring")), ALONE)) == "an orange ring"


def test_forms_have_their_areas():
    """Pixels that a thing covers: against the area of a circle, a square, a triangle, a cross and a ring."""
    numbers = torch.full((1, NUMBERS), 0.5)
    numbers[0, 0] = 0.0  # a black background
    radius = sum(shapes.RADIUS) / 2
    side, high, bar = 2 * 0.86, 0.75 + 1.1, 2 * 0.36
    areas = {
        "circle": math.pi,
        "square": side**2,
        "triangle": high**2 * math.tan(math.pi / 6),
        "cross": 2 * 2 * bar - bar**2,
        "ring": math.pi * (1 - 0.56**2),
    }
    for form, area in areas.items():
        image = draw([Scene(THINGS.index(("white", form)), ALONE)], numbers).float()
        covered = float(image[0, 0].sum() / image.max())
        assert covered == pytest.approx(area * radius**2, rel=0.06), form
    for colour, expected in shapes.COLOURS.items():
        image = draw([Scene(THINGS.index((colour, "square")), ALONE)], numbers)
        assert image[0, :, 16, 16].tolist() == pytest.approx([0.9 * value for value in expected], abs=1)


# ---------------------------------------------------------------------------------------------------------------------
# Samples and boards


def test_samples_follow_from_their_keys(task_and_model):
    """The same key gives the same sample, another epoch another drawing: against itself; nothing of global state."""
    task, _ = task_and_model
    batches = []
    for seed, epoch in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(seed)
        batches.append(task.collate([task.train[Key(epoch, index)] for index in range(8)]))
    for name in ("pixel_values", "input_ids"):
        assert torch.equal(batches[0][name], batches[1][name])
    assert not torch.equal(batches[0]["pixel_values"], batches[2]["pixel_values"])
    assert task.count(batches[0]) == task.units(batches[0]) == 8


def test_captions_come_in_all_templates(task_and_model):
    """Of one scene over many epochs: each template; and the tokenizer knows every word."""
    task, _ = task_and_model
    expected = {template.format(caption(task.data.train.scenes[0])) for template in shapes.TEMPLATES}
    assert {task.train[Key(epoch, 0)].caption for epoch in range(30)} == expected
    ids = task.read([*expected, *task.prompts()])["input_ids"]
    assert not (ids == task.tokenizer.unk_token_id).any()


def test_metrics_are_those_of_the_vectors(task_and_model):
    """Retrieval both ways, its loss and zero-shot accuracy from the model's vectors, in numpy: against what an
    evaluation records and measures."""
    task, model = task_and_model
    board = task.evaluation(full=True)
    assert len(board) == 1
    batch = task.collate([board[0]])
    labels = batch.pop("labels")
    with torch.no_grad():
        out = model(**batch)
        found = task.measure(record(*task.pairs(out.logits, labels)))
    logits = (out.image_embeds @ out.text_embeds.T).double().numpy() * math.exp(float(model.logit_scale.detach()))
    own, right = logits[:100, :100], np.arange(100)
    prompts = logits[100:, 100:].reshape(len(logits) - 100, len(THINGS), len(shapes.TEMPLATES)).mean(-1)
    to_text, to_image = (own.argmax(1) == right).mean(), (own.argmax(0) == right).mean()
    losses = [np.log(np.exp(own).sum(axis)) - np.diag(own) for axis in (0, 1)]
    assert found["image_to_text_at_1"] == pytest.approx(to_text)
    assert found["text_to_image_at_1"] == pytest.approx(to_image)
    assert found["retrieval_at_1"] == pytest.approx((to_text + to_image) / 2)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    named = prompts.argmax(1) == task.data.classes.labels.numpy()
    assert found["zero_shot_accuracy"] == pytest.approx(named.mean())
    baselines = task.baselines()
    assert baselines["retrieval_at_1"]["chance"] == 0.01 and baselines["loss"]["chance"] == math.log(100)
    assert baselines["zero_shot_accuracy"]["chance"] == 1 / len(THINGS)


def test_a_model_that_knows_is_right(task_and_model):
    """Logits that say which things there are, and which way round or not: all right, and one in four."""
    task, _ = task_and_model
    scenes = task.data.validation.scenes
    things = [frozenset((scene.first, scene.second)) for scene in scenes]
    knows = torch.eye(100)
    guesses = torch.tensor([[float(a == b) for b in things] for a in things])
    asked = task.data.classes
    zero_shot = torch.nn.functional.one_hot(asked.labels, len(THINGS)).float()
    known = task.baselines()["retrieval_at_1"]["which things, not how they stand"]
    for own, expected in ((knows, 1.0), (guesses, known)):
        logits = torch.full((100 + len(asked.labels), 100 + len(THINGS) * 3), -9.0)
        logits[:100, :100], logits[100:, 100:] = own, zero_shot.repeat_interleave(3, dim=1)
        labels = torch.cat([torch.arange(200), 200 + asked.labels])[None]
        found = task.measure(record(*task.pairs(logits, labels)))
        assert (
            found["retrieval_at_1"]
            == expected
            == task.baselines()["retrieval_at_1"].get("which things, not how they stand", 0)
            or expected == 1.0
        )
        assert found["retrieval_at_1"] == expected and found["zero_shot_accuracy"] == 1.0


def test_evaluation_reads_what_the_saved_processor_gives(task_and_model, tmp_path):
    """Pixels of held-out images: against the saved image processor on the image as Pillow has it."""
    task, _ = task_and_model
    task.processor.save_pretrained(tmp_path)
    loaded = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    batch = task.collate([task.evaluation(full=True)[0]])
    place = task.evaluation(full=True)[0].places[3]
    pixels = task.data.validation.pixels([task.data.validation.held_out(place)[0]], (SIZE, SIZE))[0]
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    assert torch.allclose(loaded(image, return_tensors="pt")["pixel_values"][0], batch["pixel_values"][3], atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(caption(task.data.validation.scenes[place]))["input_ids"] == (
        batch["input_ids"][3][batch["attention_mask"][3] > 0].tolist()
    )


# ---------------------------------------------------------------------------------------------------------------------
# Files


@pytest.fixture
def table(tmp_path):
    """60 images of files, 20 captions of three images each."""
    torch.manual_seed(0)
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "text"])
        for index in range(60):
            Image.fromarray(torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8).numpy()).save(
                tmp_path / f"{index}.png"
            )
            rows.writerow([f"{index}.png", f"number {index // 3} of the lot"])
    return tmp_path / "pairs.csv"


def test_any_table_of_images_and_captions(table):
    """A CSV file: a caption is on one side, every pair keeps its own image, and boards are as large as there is."""
    task, _ = made("--validation_split_percentage", "20", data=("--train_file", str(table)))
    train, held_out = task.data.train, task.data.validation
    assert len(train) == 48 and len(held_out) == 12 and task.board == 12
    assert not set(train.captions) & set(held_out.captions)
    for side in (train, held_out):
        pixels, words = side.held_out(5)
        number = int(words.split()[1])
        files = [np.asarray(Image.open(table.parent / f"{3 * number + place}.png")) for place in range(3)]
        assert any(np.array_equal(pixels.permute(1, 2, 0).numpy(), file) for file in files)
    batch = task.collate([task.evaluation(full=True)[0]])
    assert batch["pixel_values"].shape == (12, 3, 16, 16) and batch["labels"].shape == (1, 24)
    assert set(task.baselines()) == {"loss", "retrieval_at_1", "image_to_text_at_1", "text_to_image_at_1"}


def test_boards_stand_apart(table):
    """Two boards in a batch, one of them filled up: each against its own alone."""
    task, config = made("--validation_split_percentage", "40", data=("--train_file", str(table)))
    task.board = 8
    boards = task.evaluation(full=True)
    assert [len(board.places) for board in boards.boards] == [8, 8, 8]
    assert len(task.evaluation(full=False)) == 1
    torch.manual_seed(0)
    model = TriuneCLIPModel(config).eval()
    batch = task.collate([boards[0], boards[1]])
    labels = batch.pop("labels")
    labels[1] = IGNORED
    with torch.no_grad():
        both = task.pairs(model(**batch).logits, labels)
        alone = task.collate([boards[0]])
        one = task.pairs(model(**{name: alone[name] for name in batch}).logits, alone["labels"])
    assert both[0].shape == (32, 16)
    torch.testing.assert_close(both[0][:16], one[0], atol=1e-5, rtol=1e-5)
    assert len(record(*both).label) == 16


def test_a_batch_holds_all_arrangements_of_its_pairs(task_and_model):
    """Each epoch is in another order, in which the four scenes of two things follow each other: by counting."""
    task, _ = task_and_model
    plan = Plan(samples=len(task.train), per_device=16)
    orders = [task.order(plan)(len(task.train), 0, epoch) for epoch in range(2)]
    assert all(sorted(order) == list(range(len(task.train))) for order in orders)
    assert not np.array_equal(*orders)
    scenes = [task.data.train.scenes[place] for place in orders[0]]
    for first in range(0, len(scenes), 4):
        block = scenes[first : first + 4]
        assert len(set(block)) == 4
        assert block[0].second is None or len({frozenset((one.first, one.second)) for one in block}) == 1


@pytest.mark.parametrize(
    ("flags", "data", "says"),
    [
        (("--horizontal_flip", "0.5"), ("--dataset_name", "shapes"), "horizontal_flip=0.5: captions of shapes say"),
        (("--label_smoothing_factor", "0.1"), ("--dataset_name", "shapes"), "label_smoothing_factor=0.1"),
        ((), ("--train_dir", "pictures"), "train_dir: a folder has no captions"),
        ((), (), r"images come from one of --dataset_name .* \(bundled pairs: shapes\)"),
    ],
)
def test_mistakes_are_named(flags, data, says):
    """The flag, its value and what is possible."""
    with pytest.raises(ValueError, match=says):
        made(*flags, data=data)


# ---------------------------------------------------------------------------------------------------------------------
# A run


def test_a_run_leaves_what_the_pipeline_reads(as_found, no_figures, tmp_path):
    """Two steps with the text tower frozen: its weights against a model of the same seed; the zero-shot pipeline of
    the model folder against the model's own logits."""
    steps = ("--max_steps", "2", "--warmup_steps", "0", "--per_device_train_batch_size", "8", "--optim", "adamw")
    frozen = ("--freeze", "^text_(model|projection)", "--output_dir", str(tmp_path))
    metrics = run.train(parse([*FLAGS, "--dataset_name", "shapes", *steps, *frozen]))
    assert 3 < metrics["loss"] < 7
    model = TriuneCLIPModel.from_pretrained(tmp_path / "model").eval()
    torch.manual_seed(0)
    before = dict(TriuneCLIPModel._from_config(model.config).named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("text_"), name
    names, picture = ["a red circle", "a blue square", "a white ring"], Image.new("RGB", (40, 30), "red")
    ask = transformers.pipeline("zero-shot-image-classification", str(tmp_path / "model"), device="cpu")
    found = {entry["label"]: entry["score"] for entry in ask(picture, names, hypothesis_template="a picture of {}")}
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "model")
    texts = [f"a picture of {name}" for name in names]
    with torch.no_grad():
        inputs = processor(text=texts, images=picture, padding=True, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        wanted = model(**inputs).logits.softmax(-1)[0].tolist()
    assert [found[name] for name in names] == pytest.approx(wanted, rel=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def test_figures_of_the_task(task_and_model, tmp_path):
    """Both PNG files, and the preview: as many lines as images."""
    task, model = task_and_model
    drawn = task.figures(model, None, tmp_path)
    assert [path.name for path in drawn] == ["similarity.png", "zero_shot.png"]
    for path in drawn:
        with Image.open(path) as image:
            assert image.width >= 1500 and 50 < np.asarray(image.convert("L")).mean() < 254
    assert set(task.pictures) >= {path.name for path in drawn}
    preview = task.preview(model)
    captions = {caption(scene) for scene in task.data.validation.scenes}
    assert len(preview) == 4 and all(line.split(" > ")[0] in captions for line in preview)
    assert preview == task.preview(model)


def test_figures_want_what_fits(tmp_path):
    """Similarities and chances of another shape than images and texts are refused, with the shapes."""
    images = [torch.rand(3, 4, 4)] * 2
    with pytest.raises(ValueError, match=r"have the shape \(2, 2\), got \(2, 3\)"):
        similarity_matrix(torch.rand(2, 3), images, ["a", "b"], tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"have the shape \(2, 3\), got \(2, 2\) and 2 labels"):
        zero_shot_bars(torch.rand(2, 2), images, ["a", "b", "c"], [0, 1], tmp_path / "x.png")
