"""Images from folders, tables and bundled sets: what is read against what was written, and what is wrong against its
message."""

import hashlib
import io
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from triune.training.arguments import DataArguments
from triune.training.data import image_sources
from triune.training.data.bundled import digits
from triune.training.data.image_sources import load_images
from triune.training.data.images import as_image, as_tensor, decode, resized, with_channels


def picture(seed, size=(12, 9), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def fill(folder, classes, first=0):
    """{"cat": 3} -> cat/0.png, ...; every picture is another."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            first += 1
            picture(first, (10 + first % 7, 9)).save(folder / name / f"{index:03}.png")
    return folder


@pytest.fixture
def pets(tmp_path):
    return fill(tmp_path / "pets", {"cat": 20, "dog": 40, "eel": 4})


def load(seed=0, **flags):
    return load_images(
        DataArguments(**{name: str(value) if "dir" in name else value for name, value in flags.items()}), seed
    )


def message(**flags):
    with pytest.raises(ValueError) as caught:
        load(**flags)
    return str(caught.value)


def contents(images):
    return {hashlib.sha256(images[index][0].numpy().tobytes()).hexdigest() for index in range(len(images))}


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def test_a_folder_is_split_class_by_class(pets):
    """5 % of 20, 40 and 4 images: 1, 2 and 1 held out; labels are the folders in order; both sides together are all
    images, as they were drawn, and nothing stands on both."""
    images = load(train_dir=pets)
    assert images.names == images.train.names == ("cat", "dog", "eel")
    assert images.train.labels.bincount().tolist() == [19, 38, 3]
    assert images.validation.labels.bincount().tolist() == [1, 2, 1]
    assert images.train.labels.dtype == torch.int64
    both = contents(images.train) | contents(images.validation)
    assert len(both) == 64
    first = as_tensor(picture(1, (11, 9)))
    assert hashlib.sha256(first.numpy().tobytes()).hexdigest() in both
    assert images.shape is None and not images.bundled
    assert images.describe() == (
        f"{pets}: 60 images in 3 classes (cat, dog, eel); held out 4; sha256 {images.fingerprint[:12]}"
    )


def test_a_split_belongs_to_seed_and_names(pets, tmp_path):
    """A second look and a copy elsewhere give the same, another seed another; an added image moves at most itself and
    the one whose place it takes."""
    first = load(train_dir=pets, validation_split_percentage=25)
    assert contents(load(train_dir=pets, validation_split_percentage=25).validation) == contents(first.validation)
    assert first.fingerprint == load(train_dir=pets, validation_split_percentage=25).fingerprint
    other = load(seed=1, train_dir=pets, validation_split_percentage=25)
    assert contents(other.validation) != contents(first.validation) and other.fingerprint != first.fingerprint
    copy = fill(tmp_path / "copy", {"cat": 20, "dog": 40, "eel": 4})
    assert load(train_dir=copy, validation_split_percentage=25).fingerprint == first.fingerprint
    picture(999).save(copy / "cat" / "zzz.png")
    later = load(train_dir=copy, validation_split_percentage=25)
    assert len(contents(later.validation) - contents(first.validation)) <= 1
    assert later.fingerprint != first.fingerprint


def test_folders_in_folders_and_endings(tmp_path):
    """All six kinds of file, in capitals too and at any depth; other files, hidden files and hidden folders are not
    read."""
    folder = fill(tmp_path / "a", {"x": 2, "y": 2})
    deep = folder / "x" / "more" / "and more"
    deep.mkdir(parents=True)
    for index, suffix in enumerate(("JPG", "jpeg", "webp", "bmp", "gif")):
        picture(100 + index).save(deep / f"one.{suffix}")
    (folder / "x" / "notes.txt").write_text("text")
    (folder / "x" / "._000.png").write_bytes(b"resource fork")
    (folder / ".cache").mkdir()
    images = load(train_dir=folder, validation_split_percentage=1)
    assert len(images.train) + len(images.validation) == 9
    assert images.names == ("x", "y")


def test_a_validation_folder(pets, tmp_path):
    """It is all held out, and need not hold every class; labels are those of the training folders."""
    other = fill(tmp_path / "held", {"dog": 3, "eel": 2}, first=500)
    images = load(train_dir=pets, validation_dir=other)
    assert len(images.train) == 64 and images.validation.labels.tolist() == [1, 1, 1, 2, 2]
    assert images.names == ("cat", "dog", "eel")


def test_files_on_both_sides_are_taken_out_of_train(pets, tmp_path):
    """Two copies under other names, one of them in another class: gone from train, counted, said; validation keeps
    them. Within a split, copies in one class end up on one side."""
    held_out = fill(tmp_path / "held", {"cat": 5, "dog": 5}, first=500)
    (pets / "cat" / "copy.png").write_bytes((held_out / "cat" / "000.png").read_bytes())
    (pets / "eel" / "copy.png").write_bytes((held_out / "dog" / "002.png").read_bytes())
    images = load(train_dir=pets, validation_dir=held_out)
    assert (len(images.train), len(images.validation), images.removed) == (64, 10, 2)
    assert not contents(images.train) & contents(images.validation)
    assert "; taken out of train 2 that also stand in validation; " in images.describe()
    for index in range(20):
        (pets / "cat" / f"again {index}.png").write_bytes((pets / "cat" / f"{index:03}.png").read_bytes())
    split = load(train_dir=pets, validation_split_percentage=30)
    assert not contents(split.train) & contents(split.validation)
    assert split.removed > 0


def test_limits_are_drawn_from_all_classes(pets):
    """30 of 60 training images are not the first 30, which would be two classes; 2 held out."""
    images = load(train_dir=pets, max_train_samples=30, max_eval_samples=2)
    assert (len(images.train), len(images.validation)) == (30, 2)
    assert images.train.labels.bincount(minlength=3).min() > 0
    assert load(train_dir=pets, max_train_samples=10**6).fingerprint == load(train_dir=pets).fingerprint


def test_images_stay_on_the_disk(pets):
    """A set of 64 images pickles to less than they have pixels, and a worker that unpickles it reads the same."""
    images = load(train_dir=pets)
    packed = pickle.dumps(images.train)
    assert len(packed) < sum(images.train[index][0].numel() for index in range(60)) / 2
    assert torch.equal(pickle.loads(packed)[5][0], images.train[5][0])


def test_a_file_that_has_gone_is_an_error(pets):
    """It is not taken for a broken image: the message is its path."""
    images = load(train_dir=pets)
    for path in (pets / "cat").glob("*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="cat"):
        images.train[0]


def test_common_shapes(tmp_path):
    """Grey images of one size are said to have it; one of another size ends that."""
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(3):
            picture(index, (28, 20), "L").save(tmp_path / name / f"{index}.png")
    assert load(train_dir=tmp_path).shape == (1, 20, 28)
    assert "images of 1 x 20 x 28 in 2 classes" in load(train_dir=tmp_path).describe()
    picture(9, (28, 28), "L").save(tmp_path / "b" / "9.png")
    assert load(train_dir=tmp_path).shape is None


# ---------------------------------------------------------------------------------------------------------------------
# Images that are none


def bomb():
    """A PNG of a few bytes that says it is 60,000 x 60,000."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def large_photo():
    return encoded(picture(3, (200, 150)), "JPEG")


BROKEN = {
    "empty": b"",
    "text": b"this is no picture\n" * 10,
    "truncated jpeg": large_photo()[: len(large_photo()) // 2],
    "truncated png": encoded(picture(3, (200, 150)))[:5000],
    "header only": encoded(picture(3))[:20],
    "bomb": bomb(),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_replaced_by_the_next_of_its_class(pets, kind):
    """It is flagged, counted, and the same image each time; every other image is its own."""
    (pets / "dog" / "007.png").write_bytes(BROKEN[kind])
    images = load(train_dir=pets, validation_dir=fill(pets.parent / "held", {"cat": 1, "dog": 1}, first=500))
    place = 20 + 7
    pixels, replaced = images.train[place]
    assert replaced and torch.equal(pixels, images.train[place + 1][0])
    assert torch.equal(images.train[place][0], pixels)
    assert [index for index in range(64) if images.train[index][1]] == [place]
    assert images.train.unreadable == 1
    early = kind in ("empty", "text", "bomb", "header only")
    assert ("; unreadable 1, replaced by others of their class; " in load(train_dir=pets).describe()) == early


def test_the_last_of_a_class_is_replaced_by_the_first(pets):
    """And past other broken ones."""
    for name in ("000", "003"):
        (pets / "eel" / f"{name}.png").write_bytes(b"")
    images = load(train_dir=pets, validation_dir=fill(pets.parent / "held", {"cat": 1, "dog": 1}, first=500))
    pixels, replaced = images.train[63]
    assert replaced and torch.equal(pixels, images.train[61][0])


def test_many_broken_images_are_an_error(tmp_path):
    """Eleven of 100: more than ten and more than 1 %; the message counts them and names three. Ten are replaced."""
    folder = fill(tmp_path / "a", {"x": 50, "y": 50})
    held_out = fill(tmp_path / "b", {"x": 1, "y": 1}, first=500)
    for index in range(10):
        (folder / "x" / f"{index:03}.png").write_bytes(b"nothing")
    assert "unreadable 10, " in load(train_dir=folder, validation_dir=held_out).describe()
    (folder / "x" / "010.png").write_bytes(b"")
    said = message(train_dir=folder, validation_dir=held_out)
    assert said.startswith("11 of 100 images cannot be read: x/000.png (not an image), x/001.png (not an image)")
    assert said.endswith(", ...")


def test_many_images_that_break_late_are_an_error(tmp_path):
    """Headers are sound and the rest is not: the eleventh that is asked for ends it."""
    folder = fill(tmp_path / "a", {"x": 50, "y": 50})
    for index in range(11):
        (folder / "x" / f"{index:03}.png").write_bytes(BROKEN["truncated png"][: -index or None])
    images = load(train_dir=folder, validation_dir=fill(tmp_path / "b", {"x": 1, "y": 1}, first=500))
    with pytest.raises(ValueError, match=r"11 of 100 images cannot be read: x/000\.png"):
        for index in range(11):
            images.train[index]


def test_a_class_without_a_sound_image_is_an_error(pets):
    """No label would be true; the class and its files are named."""
    for path in (pets / "eel").glob("*"):
        path.write_bytes(b"")
    images = load(train_dir=pets, validation_dir=fill(pets.parent / "held", {"cat": 1, "dog": 1}, first=500))
    with pytest.raises(ValueError, match=r"none of the images of class 'eel' can be read: eel/000.png"):
        images.train[62]


def test_all_broken(tmp_path):
    """Not even one is left to replace the others."""
    folder = fill(tmp_path / "a", {"x": 2, "y": 2})
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    assert "2 of 2 images cannot be read" in message(train_dir=folder, validation_split_percentage=50)


# ---------------------------------------------------------------------------------------------------------------------
# Images that are unusual: decoded against what was drawn


def corners(pixels):
    """Red, green, blue and white, clockwise from the top left."""
    places = [(1, 1), (1, -2), (-2, -2), (-2, 1)]
    return [tuple(int(value > 127) for value in pixels[:, row, column]) for row, column in places]


def four_corners():
    image = Image.new("RGB", (40, 20), "red")
    for colour, box in (("lime", (20, 0, 40, 10)), ("blue", (20, 10, 40, 20)), ("white", (0, 10, 20, 20))):
        image.paste(colour, box)
    return image


RED, GREEN, BLUE, WHITE = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)


def test_exif_turns_an_image_upright():
    """Orientation 6: the camera lay on its side, so the picture is turned clockwise; 2: mirrored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encoded(four_corners(), "JPEG", exif=exif, quality=95), 3)
    assert turned.shape == (3, 40, 20)
    assert corners(turned) == [WHITE, RED, GREEN, BLUE]
    exif[0x0112] = 2
    assert corners(decode(encoded(four_corners(), "PNG", exif=exif), 3)) == [GREEN, RED, WHITE, BLUE]


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "YCbCr"])
def test_modes_become_rgb(mode):
    """Palettes and the colours of printers keep their colours."""
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    assert corners(decode(encoded(four_corners().convert(mode), kind), 3)) == [RED, GREEN, BLUE, WHITE]


def test_transparency_is_white():
    """An invisible pixel is white whatever its colour, half of black is grey; in an alpha channel, with grey, and in
    a palette."""
    image = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 128))
    assert decode(encoded(image), 3)[:, 0].T.tolist() == [[255, 0, 0], [255, 255, 255], [127, 127, 127]]
    grey = Image.new("LA", (2, 1), (10, 255))
    grey.putpixel((1, 0), (10, 0))
    assert decode(encoded(grey), 1).flatten().tolist() == [10, 255]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    assert decode(encoded(palette, transparency=0), 1).flatten().tolist() == [255, 9]


def test_sixteen_bits_are_scaled_and_not_cut_off():
    """The upper eight of them."""
    deep = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    assert decode(encoded(Image.fromarray(deep)), 1).flatten().tolist() == [0, 0, 1, 128, 255]
    assert decode(encoded(Image.fromarray(deep)), 3)[2].flatten().tolist() == [0, 0, 1, 128, 255]


def test_one_bit_and_animated_images():
    """Black and white are 0 and 255; of an animation the first frame counts."""
    assert set(decode(encoded(picture(0).convert("1")), 1).unique().tolist()) == {0, 255}
    frames = [Image.new("L", (4, 4), value) for value in (200, 10)]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(moving, 1).unique().tolist() == [200]


def test_channels_and_sizes_are_pillows():
    """RGB to grey as Pillow weighs it, grey to RGB three times the same, sizes by Pillow's bilinear filter."""
    image = picture(5, (30, 20))
    pixels = as_tensor(image)
    assert pixels.shape == (3, 20, 30) and torch.equal(as_tensor(as_image(pixels)), pixels)
    grey = with_channels(pixels, 1)
    assert np.array_equal(grey[0].numpy(), np.asarray(image.convert("L")))
    assert torch.equal(with_channels(grey, 3), grey.expand(3, -1, -1))
    assert with_channels(pixels, 3) is pixels and resized(pixels, (20, 30)) is pixels
    small = np.asarray(image.resize((7, 11), Image.Resampling.BILINEAR))
    assert np.array_equal(resized(pixels, (11, 7)).numpy(), small.transpose(2, 0, 1))


def test_the_configuration_decides_the_channels(pets):
    """RGB files for a grey model, and the grey digits for an RGB one; digits at twice their size."""
    images = load(train_dir=pets)
    grey = images.prepared((8, 8), 1).train
    assert torch.equal(grey[3][0], with_channels(images.train[3][0], 1))
    assert images.train[3][0].shape[0] == 3
    small = load(dataset_name="digits")
    large = small.prepared((16, 16), 3).train
    assert large.images.pixels.shape == (1437, 3, 16, 16)
    assert torch.equal(large[7][0], resized(with_channels(small.train[7][0], 3), (16, 16)))
    assert small.prepared((8, 8), 1).train is small.train


# ---------------------------------------------------------------------------------------------------------------------
# Bundled sets


def test_bundled_sets_keep_their_fingerprint():
    """Digits by their fold, as `bundled` gives them; half of them have another fingerprint."""
    pytest.importorskip("sklearn")
    images, known = load(dataset_name="digits", fold=3), digits(fold=3)
    assert images.fingerprint == known.fingerprint and images.names == known.names and images.bundled
    assert torch.equal(images.train[11][0], known.train.pixels[11]) and images.train[11][1] is False
    assert torch.equal(images.validation.labels, known.validation.labels)
    assert images.shape == (1, 8, 8)
    assert "1,438 images of 1 x 8 x 8 in 10 classes (0, 1, 2, 3, 4, ...); held out 359" in images.describe()
    half = load(dataset_name="digits", fold=3, max_train_samples=700)
    assert len(half.train) == 700 and half.fingerprint != known.fingerprint
    assert half.train.labels.bincount(minlength=10).min() > 40


# ---------------------------------------------------------------------------------------------------------------------
# Tables


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Tables of `datasets` are cached in the test's own folder."""
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_csv_names_files(pets, tmp_path):
    """Paths count from the file's folder; classes that are numbers are in the order of numbers."""
    lines = ["path,kind,other"] + [f"pets/dog/{index:03}.png,{index % 11},x" for index in range(40)]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    images = load(train_file=str(tmp_path / "table.csv"), image_column="path", label_column="kind")
    assert images.names == tuple(str(number) for number in range(11))
    assert len(images.train) + len(images.validation) == 40
    assert contents(images.train) | contents(images.validation) == contents(
        image_sources.DecodedImages(
            image_sources.Files(pets, [f"dog/{index:03}.png" for index in range(40)]), torch.zeros(40), ["dog"], {}
        )
    )


def test_parquet_holds_images(tmp_path, cache):
    """As `datasets` writes them, with named classes, and as plain bytes with words for classes: the same images."""
    from datasets import ClassLabel, Dataset, Features, Image, Value

    files = [encoded(picture(index)) for index in range(30)]
    kinds = [index % 3 for index in range(30)]
    named = Features(image=Image(), label=ClassLabel(names=["c", "a", "b"]))
    rows = [{"bytes": content, "path": None} for content in files]
    Dataset.from_dict({"image": rows, "label": kinds}, features=named).to_parquet(tmp_path / "named.parquet")
    plain = Features(picture=Value("binary"), kind=Value("string"))
    words = ["cab"[kind] for kind in kinds]
    Dataset.from_dict({"picture": files, "kind": words}, features=plain).to_parquet(tmp_path / "plain.parquet")
    first = load(train_file=str(tmp_path / "named.parquet"))
    assert first.names == ("c", "a", "b") and first.shape == (3, 9, 12)
    second = load(train_file=str(tmp_path / "plain.parquet"), image_column="picture", label_column="kind")
    assert second.names == ("a", "b", "c")
    drawn = {
        hashlib.sha256(as_tensor(picture(index)).numpy().tobytes()).hexdigest(): words[index] for index in range(30)
    }
    for images in (first, second):
        assert (len(images.train), len(images.validation)) == (27, 3)
        for side in (images.train, images.validation):
            for index in range(len(side)):
                digest = hashlib.sha256(side[index][0].numpy().tobytes()).hexdigest()
                assert images.names[side.labels[index]] == drawn[digest]


def test_a_data_set_by_name(tmp_path, monkeypatch, cache):
    """Its validation split is held out before its test split, one whose labels are hidden never; which, is said."""
    import datasets

    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["no", "yes"]))

    def part(first, count, hidden=False):
        images = [{"bytes": encoded(picture(first + index)), "path": None} for index in range(count)]
        labels = [-1 if hidden else index % 2 for index in range(count)]
        return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)

    splits = {"train": part(0, 20), "test": part(100, 6), "validation": part(200, 4)}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: splits)
    images = load(dataset_name="someone/pets")
    assert (len(images.train), len(images.validation)) == (20, 4)
    assert images.source == "someone/pets (held out: its validation split)"
    splits = {"train": part(0, 20), "test": part(100, 6)}
    assert len(load(dataset_name="someone/pets").validation) == 6
    splits = {"train": part(0, 20), "test": part(100, 6, hidden=True)}
    images = load(dataset_name="someone/pets", validation_split_percentage=20)
    assert (len(images.train), len(images.validation), images.source) == (16, 4, "someone/pets")
    splits = {"test": part(0, 20)}
    assert "has no split 'train'; its splits: test" in message(dataset_name="someone/pets")


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong, and what it is told


def test_missing_and_empty_folders(pets, tmp_path):
    """The nearest folder, what the folder lacks, and which class has no image."""
    assert message(train_dir=tmp_path / "pest") == (
        f"train_dir='{tmp_path / 'pest'}' is no folder; did you mean '{pets}'?"
    )
    (tmp_path / "empty").mkdir()
    said = message(train_dir=tmp_path / "empty")
    assert "must hold a folder of images for each of at least two classes; its folders: none" in said
    fill(tmp_path / "one", {"only": 3})
    assert "at least two classes; its folders: only" in message(train_dir=tmp_path / "one")
    (pets / "fox").mkdir()
    (pets / "fox" / "notes.txt").write_text("no images yet")
    assert "the folder 'fox' holds no image (.png, .jpg, .jpeg, .webp, .bmp, .gif)" in message(train_dir=pets)


def test_splits_are_no_classes(tmp_path):
    """A folder with train and test in it: the flags that it takes."""
    fill(tmp_path / "all", {"train": 2, "test": 2})
    said = message(train_dir=tmp_path / "all")
    assert "holds the folders test, train, which are splits and no classes" in said
    assert f"--train_dir {tmp_path / 'all' / 'train'} --validation_dir {tmp_path / 'all' / 'test'}" in said


def test_a_class_that_training_does_not_have(pets, tmp_path):
    """In a folder, with the nearest; in a table, the same."""
    other = fill(tmp_path / "held", {"cat": 2, "dogs": 2}, first=500)
    said = message(train_dir=pets, validation_dir=other)
    assert "holds the class 'dogs', which train_dir does not; did you mean 'dog'?; its classes: cat, dog, eel" in said
    (tmp_path / "a.csv").write_text("image,label\npets/cat/000.png,cat\npets/dog/000.png,dog\n")
    (tmp_path / "b.csv").write_text("image,label\npets/eel/000.png,eel\n")
    said = message(train_file=str(tmp_path / "a.csv"), validation_file=str(tmp_path / "b.csv"))
    assert "the validation set holds the class 'eel', which the training data does not" in said


def test_wrong_columns(pets, tmp_path, cache):
    """The columns that there are, the nearest one, and what a column holds that is no image."""
    (tmp_path / "a.csv").write_text("img,label\npets/cat/000.png,cat\n")
    assert message(train_file=str(tmp_path / "a.csv")) == (
        f"image_column='image' is not a column of {tmp_path / 'a.csv'}, which has 'img', 'label'; did you mean 'img'?"
    )
    from datasets import Dataset

    Dataset.from_dict({"image": [7], "labels": [0]}).to_parquet(tmp_path / "a.parquet")
    said = message(train_file=str(tmp_path / "a.parquet"))
    assert f"label_column='label' is not a column of {tmp_path / 'a.parquet'}, which has 'image', 'labels'" in said
    said = message(train_file=str(tmp_path / "a.parquet"), label_column="labels")
    assert "the column image_column='image' holds Value('int64')" in said and said.endswith("no images")


def test_wrong_files(pets, tmp_path):
    """No such file, a kind that holds no images, an image that is not there, and an empty table."""
    (tmp_path / "table.csv").write_text("image,label\npets/cat/000.png,cat\npets/cat/none.png,dog\n")
    said = message(train_file=str(tmp_path / "tabel.csv"))
    assert "there is no such file; did you mean 'table.csv'?" in said
    assert "names the image 'pets/cat/none.png', which is not there" in message(train_file=str(tmp_path / "table.csv"))
    (tmp_path / "a.txt").write_text("text")
    assert "images come from .csv or .parquet files, got .txt" in message(train_file=str(tmp_path / "a.txt"))
    (tmp_path / "none.csv").write_text("image,label\n")
    assert "none.csv is empty" in message(train_file=str(tmp_path / "none.csv"))
    (tmp_path / "same.csv").write_text("image,label\npets/cat/000.png,cat\npets/cat/001.png,cat\n")
    assert "there is one class, 'cat'" in message(train_file=str(tmp_path / "same.csv"))


def test_what_does_not_go_together(pets):
    """No source, two sources, a validation set of another kind, streaming, text, and numbers that are none."""
    assert "images come from one of --dataset_name (digits, letters, photos are bundled)" in message()
    assert "given: dataset_name, train_dir" in message(dataset_name="digits", train_dir=pets)
    assert "goes with train_dir, and the data is dataset_name" in message(dataset_name="digits", validation_dir=pets)
    assert "streaming=True is for text" in message(dataset_name="digits", streaming=True)
    assert "dataset_name='pydocs' is text; bundled images are digits, letters" in message(dataset_name="pydocs")
    assert "max_eval_samples=0 must be at least 1" in message(train_dir=pets, max_eval_samples=0)
    said = message(train_dir=pets, validation_split_percentage=100)
    assert "validation_split_percentage=100 must lie between 0 and 100" in said


def test_an_unknown_name_offers_the_bundled_ones():
    """Without a network: the nearest bundled set, all of them, and what `datasets` says."""
    said = message(dataset_name="digitss")
    assert said.startswith(
        "dataset_name='digitss' cannot be loaded; did you mean 'digits'?; bundled are digits, letters"
    )


def test_one_image_of_each_class_cannot_be_split(tmp_path):
    """Nothing would be left to train on."""
    assert "no class has two images" in message(train_dir=fill(tmp_path / "a", {"x": 1, "y": 1}))


def test_the_same_folder_twice(pets):
    """Nothing is left to train on, but for a broken image, and the message says why."""
    (pets / "cat" / "000.png").write_bytes(b"")
    said = message(train_dir=pets, validation_dir=pets)
    assert said == f"{pets}: every training image also stands in validation; are they the same folder?"
