"""Images from anywhere, behind one small protocol: bundled sets, folders of classes, tables and Hub data sets.

    images = load_images(arguments.data)             # ImageSets: train and validation, each an ImageSet
    pixels, replaced = images.train[17]              # uint8 (channels, height, width) of any size
    label = images.train.labels[17]

Bundled images are tensors. All others stay files (or rows), and are decoded when they are asked for. Each file's bytes
are read once at the beginning: their SHA-256 is the fingerprint of the data and finds files that stand on both sides,
which are taken out of train, and their headers show which are no images. A header may be sound and the rest not: that
is found when the image is needed. An image that cannot be read is replaced by the next one of its class, so that its
label stays true.
"""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from triune.configuration.configuration_triune import nearest
from triune.training.arguments import DataArguments
from triune.training.data.bundled import digits, letters
from triune.training.data.files import (
    SPLIT_SEED,
    VALIDATION_SPLITS,
    check_columns,
    find_files,
    in_order,
    one_line,
    quietly,
)
from triune.training.data.images import (
    DEEP,
    ImageData,
    Images,
    decode,
    fingerprint,
    opened,
    resized,
    with_channels,
)
from triune.training.data.photos import photos
from triune.training.sampling import permutation


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
BUNDLED: dict[str, Callable[[DataArguments], ImageData]] = {
    "digits": lambda data: digits(fold=data.fold),
    "letters": lambda data: letters(),
    "photos": lambda data: photos(),
}
SPLIT_NAMES = {"train", "training", "eval", *VALIDATION_SPLITS}
GREY = {"1", "L", *DEEP}  # Pillow's modes of one channel
UNREADABLE_COUNT, UNREADABLE_SHARE = 10, 0.01  # more than both: the data set is broken


# ---------------------------------------------------------------------------------------------------------------------
# Sets of images


class StoredImages:
    """Images in memory, all of one size."""

    few = 20_000  # of so many, all may be gone through

    def __init__(self, images: Images, names: Sequence[str]):
        self.images, self.names = images, tuple(names)

    @property
    def labels(self) -> torch.Tensor:
        return self.images.labels

    @property
    def unreadable(self) -> int:
        return 0

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, bool]:
        return self.images.pixels[index], False

    def faults(self) -> Iterator[str]:
        return iter(())

    def prepared(self, size: tuple[int, int], channels: int) -> "StoredImages":
        """In so many channels and at this size, once and for all."""
        wanted = (channels, *size)
        if tuple(self.images.pixels.shape[1:]) == wanted:
            return self
        pixels = torch.stack([resized(with_channels(image, channels), size) for image in self.images.pixels])
        return StoredImages(Images(pixels, self.labels), self.names)

    def gathered(self, most_side: int) -> Images:
        """All of them, as one tensor."""
        return self.images


class DecodedImages:
    """Images that are files; a file is decoded when it is asked for."""

    few = 2_000

    def __init__(
        self,
        contents: "Contents",
        labels: torch.Tensor,
        names: Sequence[str],
        broken: dict[int, str],
        limited: bool = True,  # whether many broken ones are an error
    ):
        self.contents, self.labels, self.names, self.limited = contents, labels, tuple(names), limited
        self.channels = 3
        self.broken = dict(broken)  # place -> reason: those whose header is none, and what is found later
        self.refuse_broken()

    @property
    def unreadable(self) -> int:
        """As far as is known: in this process, until now."""
        return len(self.broken)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, bool]:
        for place in self.candidates(index):
            pixels = self.decoded(place)
            if pixels is not None:
                return pixels, place != index
        name = self.names[int(self.labels[index])]
        raise ValueError(f"none of the images of class {name!r} can be read: {self.examples()}")

    def candidates(self, index: int) -> Iterator[int]:
        """The image itself, then those after it in its class, and on from the first."""
        yield index
        same = (self.labels == self.labels[index]).nonzero().flatten()
        yield from same[same > index].tolist()
        yield from same[same < index].tolist()

    def decoded(self, place: int) -> torch.Tensor | None:
        if place in self.broken:
            return None
        content = self.contents[place]  # outside: a file that has gone is no broken image
        try:
            return decode(content, self.channels)
        except Exception as error:  # Pillow raises whatever the bytes lead it to
            self.broken[place] = reason(error)
            self.refuse_broken()
            return None

    def refuse_broken(self) -> None:
        """A few are replaced, many are an error."""
        count, total = len(self.broken), len(self)
        many = count == total or (count > UNREADABLE_COUNT and count > UNREADABLE_SHARE * total)
        if many and self.limited:
            raise ValueError(f"{count:,} of {total:,} images cannot be read: {self.examples()}")

    def faults(self) -> Iterator[str]:
        """Every image that cannot be read, and why."""
        for place in range(len(self)):
            self.decoded(place)
            if place in self.broken:
                yield f"{self.contents.where(place)}: {self.broken[place]}"

    def examples(self) -> str:
        shown = [f"{self.contents.where(place)} ({why})" for place, why in sorted(self.broken.items())[:3]]
        return ", ".join(shown) + (", ..." if len(self.broken) > 3 else "")

    def prepared(self, size: tuple[int, int], channels: int) -> "DecodedImages":
        """In so many channels; what size they get is for the reader to say."""
        other = DecodedImages(self.contents, self.labels, self.names, self.broken, self.limited)
        other.channels = channels
        return other

    def gathered(self, most_side: int) -> Images:
        """All of them as one tensor, squares of `most_side`."""
        pixels = torch.stack([resized(self[index][0], (most_side, most_side)) for index in range(len(self))])
        return Images(pixels, self.labels)


ImageSet = StoredImages | DecodedImages


def reason(error: Exception) -> str:
    first = (str(error) or type(error).__name__).splitlines()[0]
    return "not an image" if "cannot identify image file" in first else first


@dataclass(frozen=True)
class ImageSets:
    """Images to train on and held-out images."""

    train: ImageSet
    validation: ImageSet
    names: tuple[str, ...]  # of the classes
    source: str
    fingerprint: str
    shape: tuple[int, int, int] | None = None  # channels, height and width, where all images have the same
    bundled: bool = False
    removed: int = 0  # files that were taken out of train: they also stand in validation

    def describe(self) -> str:
        """One line for the console."""
        shape = "" if self.shape is None else " of {} x {} x {}".format(*self.shape)
        some = ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")
        unreadable = self.train.unreadable + self.validation.unreadable
        notes = [
            *([f"taken out of train {self.removed:,} that also stand in validation"] if self.removed else []),
            *([f"unreadable {unreadable:,}, replaced by others of their class"] if unreadable else []),
        ]
        return "; ".join(
            [
                f"{self.source}: {len(self.train):,} images{shape} in {len(self.names)} classes ({some})",
                f"held out {len(self.validation):,}",
                *notes,
                f"sha256 {self.fingerprint[:12]}",
            ]
        )

    def prepared(self, size: tuple[int, int], channels: int) -> "ImageSets":
        train, validation = (part.prepared(size, channels) for part in (self.train, self.validation))
        return replace(self, train=train, validation=validation)


# ---------------------------------------------------------------------------------------------------------------------
# Where bytes come from


class Files:
    """The bytes of files under a folder."""

    def __init__(self, folder: Path, paths: Sequence[str]):
        self.folder, self.paths = folder, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> bytes:
        return (self.folder / self.paths[place]).read_bytes()

    def where(self, place: int) -> str:
        return str(self.paths[place])

    def take(self, places: Sequence[int]) -> "Files":
        return Files(self.folder, [self.paths[place] for place in places])


class Rows:
    """The bytes in the image column of a table of `datasets`, or of the files that it names."""

    def __init__(self, table, column: str, folder: Path):
        self.table, self.column, self.folder = table, column, folder

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, place: int) -> bytes:
        image = self.table[place][self.column] or {}
        if image.get("bytes") is not None:
            return image["bytes"]
        return (self.folder / image["path"]).read_bytes() if image.get("path") else b""

    def where(self, place: int) -> str:
        return f"row {place}"

    def take(self, places: Sequence[int]) -> "Rows":
        return Rows(self.table.select(places), self.column, self.folder)


Contents = Files | Rows


class Listing(NamedTuple):
    """Images and what they show, before anything is read."""

    contents: Contents
    classes: list[str]

    def take(self, places: Sequence[int]) -> "Listing":
        return Listing(self.contents.take(places), [self.classes[place] for place in places])


# ---------------------------------------------------------------------------------------------------------------------
# Folders: one for each class


def list_folder(flag: str, path: str) -> tuple[Listing, list[str]]:
    """The images below each folder, at any depth, in the order of their paths; and the names of the folders."""
    folder = Path(path)
    if not folder.is_dir():
        beside = sorted(str(found) for found in folder.parent.glob("*") if found.is_dir())
        raise ValueError(f"{flag}={path!r} is no folder{nearest(path, beside)}")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < 2:
        raise ValueError(
            f"{flag}={path!r} must hold a folder of images for each of at least two classes; its folders: "
            f"{', '.join(names) or 'none'}"
        )
    if SPLIT_NAMES.issuperset(map(str.lower, names)):
        raise ValueError(
            f"{flag}={path!r} holds the folders {', '.join(names)}, which are splits and no classes: give each of "
            f"them its flag, as in --train_dir {folder / names[-1]} --validation_dir {folder / names[0]}"
        )
    found = {name: images_below(folder, name) for name in names}
    for name, paths in found.items():
        if not paths:
            raise ValueError(f"{flag}={path!r}: the folder {name!r} holds no image ({', '.join(SUFFIXES)})")
    pairs = [(path, name) for name, paths in found.items() for path in paths]
    return Listing(Files(folder, [path for path, _ in pairs]), [name for _, name in pairs]), names


def images_below(folder: Path, name: str) -> list[str]:
    paths = (path.relative_to(folder) for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path.as_posix() for path in paths if not path.name.startswith("."))


def from_folders(data: DataArguments) -> tuple[Listing, Listing | None, list[str], str]:
    train, names = list_folder("train_dir", data.train_dir)
    if data.validation_dir is None:
        return train, None, names, data.train_dir
    validation, others = list_folder("validation_dir", data.validation_dir)
    for name in others:
        if name not in names:
            raise ValueError(
                f"validation_dir={data.validation_dir!r} holds the class {name!r}, which train_dir does not"
                f"{nearest(name, names)}; its classes: {', '.join(names)}"
            )
    return train, validation, names, data.train_dir


# ---------------------------------------------------------------------------------------------------------------------
# Tables: CSV files that name image files, Parquet files and Hub data sets that hold them


def columns_of(data: DataArguments) -> dict[str, str]:
    return {"image_column": data.image_column, "label_column": data.label_column}


def tables(flag: str, value: str) -> list[Path]:
    paths = find_files(flag, value)
    kinds = sorted({path.suffix.lower() for path in paths})
    if kinds not in ([".csv"], [".parquet"]):
        raise ValueError(f"{flag}={value!r}: images come from .csv or .parquet files, got {', '.join(kinds)}")
    return paths


def list_table(flag: str, pattern: str, data: DataArguments) -> tuple[Listing, list[str]]:
    paths = tables(flag, pattern)
    if paths[0].suffix.lower() == ".csv":
        return list_csv(flag, paths, data)
    from datasets import load_dataset

    table = load_dataset("parquet", data_files=[str(path) for path in paths], split="train")
    return list_rows(flag, pattern, table, data, paths[0].parent)


def list_csv(flag: str, paths: list[Path], data: DataArguments) -> tuple[Listing, list[str]]:
    """Paths in the image column count from the folder of their file."""
    folder, images, classes = paths[0].parent, [], []
    for path in paths:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            check_columns(rows.fieldnames or [], columns_of(data), str(path))
            for row in rows:
                images.append(str(Path(os.path.relpath(path.parent, folder), row[data.image_column])))
                classes.append(row[data.label_column])
    for image in images:
        if not (folder / image).is_file():
            raise ValueError(f"{flag}={str(paths[0])!r} names the image {image!r}, which is not there")
    return Listing(Files(folder, images), classes), in_order(classes)


def list_rows(flag: str, source: str, table, data: DataArguments, folder: Path) -> tuple[Listing, list[str]]:
    from datasets import Image

    check_columns(table.column_names, columns_of(data), source)
    column, labels = data.image_column, table.features[data.label_column]
    try:
        rows = table.select_columns([column]).cast_column(column, Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        kind = table.features[column]
        raise ValueError(f"{flag}={source!r}: the column image_column={column!r} holds {kind}, no images") from error
    if not labelled(table, data.label_column):
        raise ValueError(f"{flag}={source!r} holds images without a label_column={data.label_column!r}")
    classes = [labels.int2str(label) if hasattr(labels, "names") else str(label) for label in table[data.label_column]]
    return Listing(Rows(rows, column, folder), classes), list(getattr(labels, "names", in_order(classes)))


def labelled(table, column: str) -> bool:
    """Test splits are often published with -1 for every answer."""
    return column not in table.column_names or not {None, -1}.intersection(table[column])


def from_tables(data: DataArguments) -> tuple[Listing, Listing | None, list[str], str]:
    train, names = list_table("train_file", data.train_file, data)
    if data.validation_file is None:
        return train, None, names, data.train_file
    validation, _ = list_table("validation_file", data.validation_file, data)
    return train, validation, names, data.train_file


def from_hub(data: DataArguments) -> tuple[Listing, Listing | None, list[str], str]:
    """A name for `datasets`; held out is its own validation split, or else its test split."""
    from datasets import load_dataset

    name = data.dataset_name
    try:
        splits = quietly(load_dataset, name, data.dataset_config_name)
    except Exception as error:  # of the network, the Hub, pyarrow, ...
        raise ValueError(
            f"dataset_name={name!r} cannot be loaded{nearest(name, BUNDLED)}; bundled are {', '.join(BUNDLED)}; "
            f"`datasets` says: {one_line(error)}"
        ) from error
    if "train" not in splits:
        raise ValueError(f"dataset_name={name!r} has no split 'train'; its splits: {', '.join(splits)}")
    train, names = list_rows("dataset_name", name, splits["train"], data, Path())
    known = [split for split in VALIDATION_SPLITS if split in splits and labelled(splits[split], data.label_column)]
    held_out = known[0] if known else None
    if held_out is None:
        return train, None, names, name
    validation, _ = list_rows("dataset_name", name, splits[held_out], data, Path())
    return train, validation, names, f"{name} (held out: its {held_out} split)"


# ---------------------------------------------------------------------------------------------------------------------
# Two sides with nothing in common


def split_off(listing: Listing, percentage: float, seed: int) -> tuple[Listing, Listing]:
    """A share of each class, in an order drawn from (seed, name of the file); a class of one image stays in train."""
    if not 0 < percentage < 100:
        raise ValueError(f"validation_split_percentage={percentage} must lie between 0 and 100")
    counts, taken = Counter(listing.classes), Counter()
    wanted = {name: min(count - 1, max(1, round(count * percentage / 100))) for name, count in counts.items()}
    names = [listing.contents.where(place) for place in range(len(listing.classes))]
    keys = [hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).digest() for name in names]
    held_out = set()
    for place in sorted(range(len(keys)), key=keys.__getitem__):
        name = listing.classes[place]
        if taken[name] < wanted[name]:
            taken[name] += 1
            held_out.add(place)
    if not held_out:
        raise ValueError("no class has two images: there is nothing to hold out")
    train = [place for place in range(len(keys)) if place not in held_out]
    return listing.take(train), listing.take(sorted(held_out))


def limited(listing: Listing, most: int | None, seed: int) -> Listing:
    """At most so many, drawn at random, in their order."""
    count = len(listing.classes)
    if most is None or most >= count:
        return listing
    return listing.take(sorted(permutation(count, seed, 0)[:most].tolist()))


class Checked(NamedTuple):
    """What one look at every file tells."""

    digests: list[str]
    broken: dict[int, str]
    shapes: set[tuple[int, int, int]]  # channels, height, width


def checked(contents: Contents) -> Checked:
    look = Checked([], {}, set())
    for place in range(len(contents)):
        content = contents[place]
        look.digests.append(hashlib.sha256(content).hexdigest())
        try:
            image = opened(content)
        except Exception as error:  # Pillow raises whatever the bytes lead it to
            look.broken[place] = reason(error)
        else:
            look.shapes.add((1 if image.mode in GREY else 3, image.height, image.width))
    return look


def without(listing: Listing, look: Checked, other: Checked) -> tuple[Listing, Checked]:
    """Without the images that stand in validation."""
    held_out = {digest for place, digest in enumerate(other.digests) if place not in other.broken}
    kept = [place for place, digest in enumerate(look.digests) if digest not in held_out]
    broken = {new: look.broken[old] for new, old in enumerate(kept) if old in look.broken}
    return listing.take(kept), Checked([look.digests[place] for place in kept], broken, look.shapes)


def image_set(listing: Listing, look: Checked, names: list[str], field: str, limited: bool) -> DecodedImages:
    if not listing.classes:
        raise ValueError(f"{field} holds no image")
    numbers = {name: number for number, name in enumerate(names)}
    for name in sorted(set(listing.classes)):
        if name not in numbers:
            raise ValueError(
                f"{field} holds the class {name!r}, which the training data does not{nearest(name, names)}; its "
                f"classes: {', '.join(names)}"
            )
    labels = torch.tensor([numbers[name] for name in listing.classes])
    return DecodedImages(listing.contents, labels, names, look.broken, limited)


def sets_of_files(
    train: Listing, validation: Listing | None, names: list[str], source: str, data: DataArguments, seed: int
) -> ImageSets:
    if len(names) < 2:
        raise ValueError(f"{source}: there is one class, {names[0]!r}, or none" if names else f"{source} is empty")
    if validation is None:
        train, validation = split_off(train, data.validation_split_percentage, seed)
    train, validation = limited(train, data.max_train_samples, seed), limited(validation, data.max_eval_samples, seed)
    looks = checked(train.contents), checked(validation.contents)
    before = len(train.classes)
    train, look = without(train, *looks)
    if before > len(train.classes) == len(look.broken):
        raise ValueError(f"{source}: every training image also stands in validation; are they the same folder?")
    digest = hashlib.sha256(repr(names).encode())
    for listing, side in ((train, look), (validation, looks[1])):
        digest.update(repr(list(zip(listing.classes, side.digests))).encode())
    shapes = looks[0].shapes | looks[1].shapes
    return ImageSets(
        train=image_set(train, look, names, "the training set", not data.verify_data),
        validation=image_set(validation, looks[1], names, "the validation set", not data.verify_data),
        names=tuple(names),
        source=source,
        fingerprint=digest.hexdigest(),
        shape=shapes.pop() if len(shapes) == 1 else None,
        removed=before - len(train.classes),
    )


# ---------------------------------------------------------------------------------------------------------------------
# All of them


def bundled(data: DataArguments, seed: int) -> ImageSets:
    found = BUNDLED[data.dataset_name](data)
    sides = []
    for images, most in ((found.train, data.max_train_samples), (found.validation, data.max_eval_samples)):
        places = sorted(permutation(len(images.labels), seed, 0)[:most].tolist())
        sides.append(images.take(torch.tensor(places)))
    whole = sum(len(images.labels) for images in sides) == len(found.train.labels) + len(found.validation.labels)
    return ImageSets(
        train=StoredImages(sides[0], found.names),
        validation=StoredImages(sides[1], found.names),
        names=found.names,
        source=found.source,
        fingerprint=found.fingerprint if whole else fingerprint(*sides, names=found.names),
        shape=tuple(found.train.pixels.shape[1:]),
        bundled=True,
    )


SOURCES: dict[str, Callable] = {"dataset_name": from_hub, "train_dir": from_folders, "train_file": from_tables}
PARTNERS = {"validation_dir": "train_dir", "validation_file": "train_file"}


def check_source(data: DataArguments) -> str:
    """The one flag that says where images come from."""
    given = [flag for flag in SOURCES if getattr(data, flag) is not None]
    if len(given) != 1:
        raise ValueError(
            f"images come from one of --dataset_name ({', '.join(BUNDLED)} are bundled), --train_dir and "
            f"--train_file; given: {', '.join(given) or 'none'}"
        )
    for partner, flag in PARTNERS.items():
        if getattr(data, partner) is not None and flag != given[0]:
            raise ValueError(f"{partner}={getattr(data, partner)!r} goes with {flag}, and the data is {given[0]}")
    if data.streaming:
        raise ValueError("streaming=True is for text: images are read from the disk one by one as it is; leave it out")
    for field in ("max_train_samples", "max_eval_samples"):
        if getattr(data, field) is not None and getattr(data, field) < 1:
            raise ValueError(f"{field}={getattr(data, field)} must be at least 1")
    return given[0]


def load_images(data: DataArguments, seed: int = SPLIT_SEED) -> ImageSets:
    """The images that the arguments name; `seed` draws what is split off, and which remain of a limited number. It
    is not the run's: several runs are measured on the same images."""
    flag = check_source(data)
    if data.dataset_name in BUNDLED:
        return bundled(data, seed)
    if data.dataset_name == "pydocs":
        raise ValueError(f"dataset_name='pydocs' is text; bundled images are {', '.join(BUNDLED)}")
    return sets_of_files(*SOURCES[flag](data), data, seed)
