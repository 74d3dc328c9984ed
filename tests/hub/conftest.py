"""What the tests of this folder publish: runs of the tasks, small ones, as `scripts/train.py` leaves them."""

import random

import pytest
import small_runs
import torch
from PIL import Image
from small_runs import CONFIG, TEXT, train

from triune.training import leaving


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A text of made-up words, lines of a table with a class, and images in two classes."""
    folder, words = tmp_path_factory.mktemp("data"), random.Random(0)
    vocabulary = ["".join(words.choices("abcdefgh", k=words.randint(2, 6))) for _ in range(60)]
    paragraphs = [" ".join(words.choices(vocabulary, k=words.randint(8, 40))) for _ in range(60)]
    (folder / "words.txt").write_text("\n\n".join(paragraphs))
    rows = [f"{text},{'long' if len(text) > 100 else 'short'},{text[:9].strip()}" for text in paragraphs]
    (folder / "rows.csv").write_text("text,label,target\n" + "\n".join(rows) + "\n")
    for label in ("dark", "light"):
        (folder / "images" / label).mkdir(parents=True)
        for number in range(12):
            level = words.randint(0, 100) + 150 * (label == "light")
            Image.new("RGB", (20, 16), (level, level, 90)).save(folder / "images" / label / f"{number}.png")
    pictures = sorted((folder / "images").rglob("*.png"))
    captions = [f"{path},a {path.parent.name} picture called {path.stem}" for path in pictures]
    (folder / "captions.csv").write_text("image,text\n" + "\n".join(captions) + "\n")
    return folder


@pytest.fixture(scope="session")
def runs(data, tmp_path_factory):
    """Of the tasks that are BERT's, GPT's and ViT's."""
    folder, threads = tmp_path_factory.mktemp("runs"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaving.figures, "available", lambda: False)
        text = {**TEXT, "train_file": data / "words.txt"}
        train(folder / "bert", task="masked_lm", **text)
        endless = CONFIG.replace("}", ", position: rotary}")  # a pipeline goes on for longer than a row
        train(folder / "gpt", task="causal_lm", **text, config=endless)
        train(folder / "vit", task="image_classification", train_dir=data / "images", validation_split_percentage=25)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="session")
def others(data, tmp_path_factory):
    """Of the tasks of several stacks, and of BERT's two tasks."""
    folder, threads = tmp_path_factory.mktemp("others"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaving.figures, "available", lambda: False)
        for name, flags in small_runs.OTHERS.items():
            places = {flag: data / file for flag, file in flags.items() if flag in ("train_file", "train_dir")}
            train(folder / name, **{**flags, **places})
    torch.set_num_threads(threads)
    return folder
