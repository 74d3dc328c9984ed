"""Which caption belongs to which image, as CLIP is trained: drawn scenes, or any images with a text each.

A training sample is an image and a text of what it shows; the others of the batch, in all processes, are what it
must not be taken for. With `gradient_accumulation_steps` each forward pass has its own others: a step is then not that
of the large batch.

Evaluation asks boards of 100 held-out pairs: of each image which of the 100 captions is its own, and of each caption
which image. Where the data names classes, images of them are classified by prompts that the model was never trained
to tell apart (zero-shot); the logits of the templates of a class are averaged.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import CLIPProcessor

from triune.configuration.configuration_triune import nearest
from triune.configuration.configuration_triune_clip import TriuneCLIPConfig
from triune.modeling.modeling_triune_clip import TriuneCLIPModel
from triune.training import figures
from triune.training.arguments import Arguments, DataArguments
from triune.training.augmentation import Augment
from triune.training.data import shapes
from triune.training.data.image_sources import SOURCES, DecodedImages, Listing, check_source, checked
from triune.training.data.images import resized
from triune.training.figures.similarity import similarity_matrix, zero_shot_bars
from triune.training.image_processor import ENOUGH, build_processor, load_processor, measured, normalised, processed
from triune.training.metrics import Records, some
from triune.training.sampling import Key, Plan, generator, permutation
from triune.training.tasks.task import Batch, Example, Task
from triune.training.tokenizers import load_or_train_tokenizer


BOARD, BOARDS = 100, 10  # pairs that are told apart at once; boards of a full evaluation
DRAWINGS = 10  # of each class, for zero-shot classification
HELD_OUT = 1  # what sets the random numbers of held-out drawings apart from those of training
IMAGE_SIZE = 64  # of files, unless the recipe says otherwise
PREVIEWS, SHOWN_PAIRS, SHOWN_IMAGES, EXAMPLES = 4, 16, 6, 8


class Classes(NamedTuple):
    """Images of classes that a model names by their prompts."""

    names: Sequence[str]
    templates: Sequence[str]
    pictures: list  # as `pixels` of the pairs takes them
    labels: torch.Tensor


# ---------------------------------------------------------------------------------------------------------------------
# Data: len(), drawn(index, random) -> (picture, caption), pixels(pictures, size) -> uint8 (n, 3, height, width)


class Scenes:
    """Drawn scenes; a picture is a scene and the numbers that decide its drawing, and is drawn with its batch."""

    def __init__(self, scenes: Sequence[shapes.Scene]):
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def drawn(self, index: int, random: torch.Generator) -> tuple[Any, str]:
        """The caption has one of the templates around it."""
        scene, numbers = self.scenes[index], torch.rand(shapes.NUMBERS + 1, generator=random)
        template = shapes.TEMPLATES[int(numbers[-1] * len(shapes.TEMPLATES))]
        return (scene, numbers[:-1]), template.format(shapes.caption(scene))

    def held_out(self, index: int) -> tuple[Any, str]:
        picture, _ = self.drawn(index, generator(0, HELD_OUT, index))
        return picture, shapes.caption(self.scenes[index])

    def texts(self) -> list[str]:
        templates = len(self.scenes) * shapes.TEMPLATES
        return [template.format(shapes.caption(scene)) for scene, template in zip(self.scenes, templates)]

    @staticmethod
    def pixels(pictures: Sequence, size: tuple[int, int]) -> torch.Tensor:
        scenes, numbers = zip(*pictures)
        return torch.stack([resized(image, size) for image in shapes.draw(scenes, torch.stack(numbers))])


class Captioned:
    """Images of files, each with its caption."""

    def __init__(self, images: DecodedImages, captions: Sequence[str]):
        self.images, self.captions = images, captions

    def __len__(self) -> int:
        return len(self.captions)

    def held_out(self, index: int) -> tuple[Any, str]:
        return self.images[index][0], self.captions[index]

    def drawn(self, index: int, random: torch.Generator) -> tuple[Any, str]:
        return self.held_out(index)

    def texts(self) -> list[str]:
        return list(self.captions)

    @staticmethod
    def pixels(pictures: Sequence, size: tuple[int, int]) -> torch.Tensor:
        return torch.stack([resized(image, size) for image in pictures])


class PairData(NamedTuple):
    train: Scenes | Captioned
    validation: Scenes | Captioned
    source: str
    fingerprint: str
    size: int
    classes: Classes | None = None
    baselines: dict[str, float] | None = None  # of retrieval, beside chance
    alike: int = 1  # so many training pairs, one after another, are best told from each other


def drawn_scenes(data: DataArguments) -> PairData:
    if data.horizontal_flip:
        raise ValueError(f"horizontal_flip={data.horizontal_flip}: captions of shapes say what is left of what")
    train, held_out, unseen = shapes.split_scenes()
    alone = Scenes([scene for scene in unseen for _ in range(DRAWINGS)])
    classes = Classes(
        [shapes.name_of(thing) for thing in range(len(shapes.THINGS))],
        shapes.TEMPLATES,
        [alone.held_out(index)[0] for index in range(len(alone))],
        torch.tensor([scene.first for scene in alone.scenes]),
    )
    sides = (Scenes(train[: data.max_train_samples]), Scenes(held_out[: data.max_eval_samples]))
    return PairData(
        *sides,
        source="shapes",
        fingerprint=shapes.fingerprint(),
        size=shapes.SIZE,
        classes=classes,
        baselines={"which things, not how they stand": 1 / shapes.WAYS},
        alike=shapes.WAYS,
    )


BUNDLED = {"shapes": drawn_scenes}


def captioned_files(data: DataArguments) -> PairData:
    """Tables of files, or a data set of `datasets`: `image_column`, and the caption in `text_column`. The captions
    take the place that classes have elsewhere."""
    flag = check_source(data)
    if flag == "train_dir":
        raise ValueError("train_dir: a folder has no captions; give --train_file, a table with image and text columns")
    read = dataclasses.replace(data, label_column=data.text_column)
    train, validation, _, source = SOURCES[flag](read)
    if validation is None:
        train, validation = split_off(train, data.validation_split_percentage)
    digest, sides = hashlib.sha256(), []
    for listing, most in ((train, data.max_train_samples), (validation, data.max_eval_samples)):
        listing = listing.take(sorted(permutation(len(listing.classes), 0, 0)[:most].tolist()))
        look = checked(listing.contents)
        digest.update(repr(list(zip(listing.classes, look.digests))).encode())
        # each image is a class of its own, so that one that cannot be read is refused and not replaced
        each = torch.arange(len(listing.classes))
        own = DecodedImages(listing.contents, each, listing.classes, look.broken, limited=not data.verify_data)
        sides.append(Captioned(own, listing.classes))
    return PairData(*sides, source, digest.hexdigest(), IMAGE_SIZE)


def split_off(listing: Listing, percentage: float) -> tuple[Listing, Listing]:
    """A share of the captions, with all images of each: a caption is on one side."""
    captions = sorted(set(listing.classes))
    count = round(len(captions) * percentage / 100)
    if not 0 < count < len(captions):
        raise ValueError(
            f"validation_split_percentage={percentage} of {len(captions)} captions leaves no pairs to train on, or "
            "none to test on"
        )
    held_out = {captions[place] for place in permutation(len(captions), 0, 0)[:count].tolist()}
    places = range(len(listing.classes))
    sides = ([place for place in places if (listing.classes[place] in held_out) == side] for side in (False, True))
    return tuple(listing.take(side) for side in sides)


def load_pairs(data: DataArguments) -> PairData:
    if data.dataset_name in BUNDLED:
        return BUNDLED[data.dataset_name](data)
    try:
        return captioned_files(data)
    except ValueError as error:
        guess = nearest(data.dataset_name, BUNDLED) if data.dataset_name else ""
        raise ValueError(f"{error} (bundled pairs: {', '.join(BUNDLED)}{guess})") from error


# ---------------------------------------------------------------------------------------------------------------------
# Samples


class TrainingSample(NamedTuple):
    picture: Any
    caption: str
    numbers: torch.Tensor  # of its augmentation


class TrainingPairs(Dataset):
    def __init__(self, pairs: Scenes | Captioned, augment: Augment, pixels: int, seed: int):
        self.pairs, self.augment, self.pixels, self.seed = pairs, augment, pixels, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: Key) -> TrainingSample:
        random = generator(self.seed, *key)
        picture, caption = self.pairs.drawn(key.index, random)
        return TrainingSample(picture, caption, self.augment.draw(random, self.pixels))


def in_blocks(size: int, count: int, seed: int, epoch: int) -> np.ndarray:
    """An order of an epoch in which neighbours stay together, so many at a time."""
    blocks = permutation(-(-count // size), seed, epoch)
    order = (size * blocks[:, None] + np.arange(size)).ravel()
    return order[order < count]


class Board(NamedTuple):
    """Pairs, by their places, that are told apart."""

    places: list[int]


class Boards(Dataset):
    def __init__(self, boards: list[Board]):
        self.boards = boards

    def __len__(self) -> int:
        return len(self.boards)

    def __getitem__(self, index: int) -> Board:
        return self.boards[index]


# ---------------------------------------------------------------------------------------------------------------------


class Contrastive(Task):
    """match images and captions (CLIP, SigLIP)"""

    name = "contrastive"
    head = TriuneCLIPModel
    unit = "images"
    best_metric = "retrieval_at_1"
    greater_is_better = True
    headline = "retrieval_at_1"
    pictures: ClassVar[dict[str, str]] = {
        "similarity.png": "Held-out images and captions, and how alike the model finds them",
        "zero_shot.png": "Classes by their prompts: what the model takes images for",
        **Task.pictures,
    }

    def __init__(self, arguments: Arguments):
        super().__init__(arguments)
        data, smoothing = arguments.data, arguments.training.label_smoothing_factor
        if smoothing:
            raise ValueError(f"label_smoothing_factor={smoothing}: pairs have no labels to smooth")
        self.seed = arguments.training.seed
        self.augment, self.data = Augment.of(data), load_pairs(data)
        self.fingerprint = self.data.fingerprint
        self.board = min(BOARD, len(self.data.validation))
        if self.board < 2:
            raise ValueError(f"{self.data.source}: one held-out pair, or none, tells nothing; it takes at least 2")
        self.tokenizer = load_or_train_tokenizer(arguments.model, self.data.train.texts(), data.max_seq_length)

    def describe(self) -> list[str]:
        data, classes = self.data, self.data.classes
        zero_shot = ""
        if classes:
            held_out = len(set(classes.labels.tolist()))
            zero_shot = f"; {len(classes.labels)} images of {held_out} of {len(classes.names)} classes"
        return [
            f"{data.source}: {len(data.train):,} pairs of an image and a caption, held out {len(data.validation):,}"
            f"{zero_shot}; sha256 {self.fingerprint[:12]}"
        ]

    # -- the model's configuration

    def config_fields(self) -> dict[str, Any]:
        tokenizer, length = self.tokenizer, self.arguments.data.max_seq_length
        ends = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
        ends["eos_token_id"] = tokenizer.eos_token_id
        embedding = {"type": "patches", "image_size": self.data.size, "patch_size": 8, "num_channels": 3}
        return {
            "text": {"vocab_size": len(tokenizer), "max_position_embeddings": length, **ends},
            "vision": {"embedding": embedding},
        }

    def prepare(self, config: TriuneCLIPConfig) -> None:
        entry, length = config.vision.embedding, self.arguments.data.max_seq_length
        if config.text.position["type"] == "learned" and config.text.max_position_embeddings < length:
            raise ValueError(
                f"max_seq_length={length} is longer than the {config.text.max_position_embeddings} positions of the "
                "text tower"
            )
        if entry["num_channels"] != 3:
            raise ValueError(f"vision embedding num_channels={entry['num_channels']}: images are read with 3 (RGB)")
        size = entry["image_size"]
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.train = TrainingPairs(self.data.train, self.augment, 3 * self.size[0] * self.size[1], self.seed)
        saved = self.arguments.model.model_name_or_path
        self.images = (load_processor(saved) if saved else None) or self.measured_processor()
        self.processor = CLIPProcessor(self.images, self.tokenizer)

    def measured_processor(self):
        train = self.data.train
        places = permutation(len(train), 0, 0)[:ENOUGH].tolist()  # the same in every run
        pictures = [train.held_out(place)[0] for place in places]
        return build_processor(self.size, *measured(train.pixels(pictures, self.size)))

    # -- batches

    def evaluation(self, full: bool) -> Dataset:
        count = len(self.data.validation) // self.board
        order = permutation(len(self.data.validation), 0, 0).tolist()
        boards = [Board(sorted(order[self.board * place : self.board * (place + 1)])) for place in range(count)]
        return Boards(boards[: BOARDS if full else 1])

    def collate(self, samples: list) -> Batch:
        if isinstance(samples[0], TrainingSample):
            pictures, captions, numbers = zip(*samples)
            pixels = self.augmented(self.data.train.pixels(pictures, self.size), torch.stack(numbers))
            batch = {"pixel_values": normalised(self.images, pixels), **self.read(captions)}
            return {**batch, "labels": torch.arange(len(samples))}
        pairs = [[self.data.validation.held_out(place) for place in board.places] for board in samples]
        asked = self.data.classes
        prompts = self.prompts() if asked else []
        pictures = [picture for board in pairs for picture in [*(own for own, _ in board), *self.class_pictures()]]
        captions = [text for board in pairs for text in [*(own for _, own in board), *prompts]]
        labels = torch.arange(2 * self.board)
        if asked:
            labels = torch.cat([labels, 2 * self.board + asked.labels])
        return {
            "pixel_values": processed(self.images, list(self.data.validation.pixels(pictures, self.size))),
            **self.read(captions),
            "labels": labels.repeat(len(samples), 1),
        }

    def augmented(self, pixels: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        if self.augment.crops:
            pixels = torch.stack([self.augment.crop(image, own, self.size) for image, own in zip(pixels, numbers)])
        return self.augment.batch(pixels.float() / 255, numbers)

    def read(self, captions: Sequence[str]) -> Batch:
        length = self.arguments.data.max_seq_length
        found = self.tokenizer(list(captions), padding=True, truncation=True, max_length=length, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    def prompts(self) -> list[str]:
        return [template.format(name) for name in self.data.classes.names for template in self.data.classes.templates]

    def class_pictures(self) -> list:
        return self.data.classes.pictures if self.data.classes else []

    def order(self, plan: Plan) -> Callable[[int, int, int], np.ndarray]:
        """Scenes that differ only in how the same things stand are in one batch: that is what has to be learned."""
        order = super().order(plan)
        return order if self.data.alike == 1 else partial(in_blocks, self.data.alike)

    # -- learning

    def units(self, batch: Batch) -> int:
        return len(batch["pixel_values"])

    def loss(self, model, batch: Batch, count: torch.Tensor | float) -> torch.Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return model(**inputs, return_loss=True, num_items_in_batch=count).loss

    # -- measuring: the classes of an answer are the captions, then the images, then the named classes

    def pairs(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of boards, one after another along both sides of the logits (images, texts)."""
        images, texts = (side // len(labels) for side in logits.shape)
        boards = [
            self.answers(logits[images * place :, texts * place :][:images, :texts]) for place in range(len(labels))
        ]
        return torch.cat(boards), labels.flatten()

    def answers(self, logits: torch.Tensor) -> torch.Tensor:
        """One row for each question; what is no candidate of it has no chance."""
        size, asked = self.board, self.data.classes
        own = logits[:size, :size]
        parts = [own, own.t()]
        if asked:
            parts.append(logits[size:, size:].unflatten(1, (len(asked.names), -1)).mean(-1))
        found = logits.new_full((sum(map(len, parts)), sum(part.shape[1] for part in parts)), -math.inf)
        row = column = 0
        for part in parts:
            found[row : row + len(part), column : column + part.shape[1]] = part
            row, column = row + len(part), column + part.shape[1]
        return found

    def measure(self, records: Records) -> dict[str, float]:
        """Retrieval among the pairs of a board, and its loss; the share of zero-shot images that are named right."""
        kind, right = np.minimum(some(records).label // self.board, 2), records.rank == 0
        retrieval = kind < 2
        found = {
            "loss": math.fsum(records.loss[retrieval]) / retrieval.sum(),
            "retrieval_at_1": right[retrieval].mean(),
            "image_to_text_at_1": right[kind == 0].mean(),
            "text_to_image_at_1": right[kind == 1].mean(),
        }
        if self.data.classes:
            found["zero_shot_accuracy"] = right[kind == 2].mean()
        return {name: float(value) for name, value in found.items()}

    def baselines(self) -> dict[str, dict[str, float]]:
        retrieval = {"chance": 1 / self.board, **(self.data.baselines or {})}
        names = ("retrieval_at_1", "image_to_text_at_1", "text_to_image_at_1")
        found = {"loss": {"chance": math.log(self.board)}, **dict.fromkeys(names, retrieval)}
        if self.data.classes:
            found["zero_shot_accuracy"] = {"chance": 1 / len(self.data.classes.names)}
        return found

    # -- showing

    @torch.no_grad()
    def logits(self, model, pictures: Sequence, captions: Sequence[str]) -> torch.Tensor:
        device = next(model.parameters()).device
        pixels = processed(self.images, list(self.data.validation.pixels(pictures, self.size)))
        texts = {name: value.to(device) for name, value in self.read(captions).items()}
        return model(pixel_values=pixels.to(device), **texts).logits.float().cpu()

    def preview(self, model) -> list[str]:
        """Held-out images, each by its caption, and what the model takes it for among all captions of the board."""
        board = self.evaluation(full=True)[0]
        pairs = [self.data.validation.held_out(place) for place in board.places]
        asked = permutation(len(pairs), 0, 0)[:PREVIEWS].tolist()
        captions = [caption for _, caption in pairs]
        chances = self.logits(model, [pairs[place][0] for place in asked], captions).softmax(-1)
        lines = []
        for place, row in zip(asked, chances):
            guess = int(row.argmax())
            verdict = "ok" if captions[guess] == captions[place] else captions[guess]
            lines.append(f"{captions[place]} > {verdict} {float(row[guess]):.0%}")
        return lines

    def examples(self) -> list[Example]:
        """Neighbours, whose captions tell them apart and are the labels to choose from; in a list of labels commas
        stand between them."""
        found: dict[str, Any] = {}
        for place in range(min(SHOWN_PAIRS, len(self.data.validation))):
            picture, caption = self.data.validation.held_out(place)
            if "," not in caption and len(self.tokenizer(caption).input_ids) <= self.arguments.data.max_seq_length:
                found.setdefault(" ".join(caption.split()), picture)
        captions = list(found)[:EXAMPLES]
        if len(captions) < 2:
            return []
        images = self.data.validation.pixels([found[caption] for caption in captions], self.size)
        return list(map(Example, images, captions))

    @torch.no_grad()
    def figures(self, model, records: Records, folder: Path) -> list[Path]:
        if not figures.available():
            return []
        validation = self.data.validation
        pairs = [validation.held_out(place) for place in range(min(SHOWN_PAIRS, len(validation)))]
        pictures, captions = zip(*pairs)
        scale = math.exp(min(float(model.logit_scale), math.log(model.config.max_logit_scale)))
        bias = 0.0 if model.logit_bias is None else float(model.logit_bias)
        alike = (self.logits(model, pictures, captions) - bias) / scale
        drawn = [similarity_matrix(alike, self.shown(pictures), captions, folder / "similarity.png")]
        classes = self.data.classes
        if classes:
            step = max(1, len(classes.pictures) // SHOWN_IMAGES)
            some = slice(None, step * SHOWN_IMAGES, step)
            logits = self.logits(model, classes.pictures[some], self.prompts())
            chances = logits.unflatten(1, (len(classes.names), -1)).mean(-1).softmax(-1)
            labels = classes.labels[some].tolist()
            path = folder / "zero_shot.png"
            drawn.append(zero_shot_bars(chances, self.shown(classes.pictures[some]), classes.names, labels, path))
        return drawn

    def shown(self, pictures: Sequence) -> list[torch.Tensor]:
        return list(self.data.validation.pixels(pictures, self.size).float() / 255)
