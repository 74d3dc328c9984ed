"""Files that were damaged or made by somebody else: what is loaded is what was saved, or there is a ValueError that
says what is wrong. Nothing that they hold is run."""

import json
import math
import os
import pickle
import random
import shutil
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from short_runs import arguments

from triune.conversion import loading
from triune.training import durable, run, state
from triune.training.durable import MANIFEST
from triune.training.hub.content import GOLDEN
from triune.training.prediction import load


HUGE = [2**31, 2**40, 2**62, 2**63, 2**64 - 1, 200 * 2**20, 100 * 2**20 + 1]


class Canary:
    """Who unpickles it leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


# ---------------------------------------------------------------------------------------------------------------------
# Changes: (random numbers, bytes) -> other bytes


def pages(data: bytes) -> tuple[dict, bytes]:
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def whole(header: dict | bytes, rest: bytes) -> bytes:
    page = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(page)) + page + rest


def an_entry(draw: random.Random, header: dict) -> dict:
    return header[draw.choice([name for name in header if name != "__metadata__"])]


def cut(draw, data):
    return data[: draw.randrange(len(data))]


def short(draw, data):
    return data[: draw.choice([0, 1, 3, 8, 9])]


def a_bit(draw, data):
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :]


def some_bytes(draw, data):
    place, many = draw.randrange(len(data)), draw.choice([1, 2, 16, 300])
    return data[:place] + draw.randbytes(many) + data[place + many :]


def trailing(draw, data):
    return data + draw.randbytes(draw.choice([1, 8, 1000]))


def noise(draw, data):
    return draw.randbytes(len(data))


def header_length(draw, data):
    return struct.pack("<Q", draw.choice([0, 1, 2, len(data), *HUGE])) + data[8:]


def offsets(draw, data):
    """Overlaps, holes, beyond the end, before the beginning, backwards."""
    header, rest = pages(data)
    entry = an_entry(draw, header)
    place = draw.randrange(2)
    entry["data_offsets"][place] += draw.choice([-8, -4, -1, 1, 4, 8, -(10**9), *HUGE])
    return whole(header, rest)


def shape(draw, data):
    header, rest = pages(data)
    entry = an_entry(draw, header)
    entry["shape"] = draw.choice(
        [[], [0], [1], [2**32, 2**32], [2**62, 0], [-1, -1], entry["shape"][::-1], [*entry["shape"], 1], ["x"], None]
    )
    return whole(header, rest)


def kind(draw, data):
    header, rest = pages(data)
    an_entry(draw, header)["dtype"] = draw.choice(["F64", "F16", "BF16", "I32", "I64", "U8", "BOOL", "X", "", None])
    return whole(header, rest)


def name(draw, data):
    header, rest = pages(data)
    old = draw.choice(list(header))
    header[draw.choice(["../../x", "/etc/passwd", "", "\0", "x" * 10_000, "__class__", "model"])] = header.pop(old)
    return whole(header, rest)


def twice(draw, data):
    """The same name twice, and what stands there is another tensor's."""
    header, rest = pages(data)
    mine, other = draw.sample([key for key in header if key != "__metadata__"], 2)
    page = json.dumps(header)[:-1] + f", {json.dumps(mine)}: {json.dumps(header[other])}}}"
    return whole(page.encode(), rest)


def lost(draw, data):
    header, rest = pages(data)
    header.pop(draw.choice(list(header)))
    return whole(header, rest)


def one_more(draw, data):
    header, rest = pages(data)
    header["one.more"] = {"dtype": "F32", "shape": draw.choice([[0], [2**62, 0]]), "data_offsets": [len(rest)] * 2}
    return whole(header, rest)


def deep(draw, data):
    """A header that is no table of tensors."""
    some = [b"[" * 100_000, b"{}", b"null", b'{"a":' * 5000 + b"1" + b"}" * 5000, b"\xff\xfe", b'{"a": NaN}']
    return whole(draw.choice(some), pages(data)[1])


def not_finite(draw, data):
    header, rest = pages(data)
    start = an_entry(draw, header)["data_offsets"][0]
    value = struct.pack("<f", draw.choice([math.nan, math.inf, -math.inf]))
    return whole(header, rest[:start] + value + rest[start + 4 :])


OF_BYTES = [cut, short, a_bit, some_bytes, trailing, noise]
OF_TENSORS = [*OF_BYTES, header_length, offsets, shape, kind, name, twice, lost, one_more, deep, not_finite]


def other_values(draw, data):
    """Of JSON: one value anywhere becomes something else."""
    page = json.loads(data)
    place = page
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = draw.choice(list(keys))
        if not (isinstance(place[key], (dict, list)) and place[key]) or draw.random() < 0.2:
            break
        place = place[key]
    place[key] = draw.choice([None, -1, 10**30, 1e400, "x", "../../x", [], {}, [[[]]], True, {"type": "x"}, "\ud800"])
    return json.dumps(page).encode()


def change(draw: random.Random, folder: Path, mark: Path) -> str:
    """One file of the folder, in one way; what was done."""
    file = draw.choice(sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json")))
    how = draw.random()
    if how < 0.03:
        file.unlink()
        return f"{file.name} removed"
    if how < 0.06:
        file.unlink()
        file.mkdir()
        return f"{file.name} a folder"
    if how < 0.10:
        file.write_bytes(pickle.dumps(Canary(mark)))
        return f"{file.name} a pickle"
    if how < 0.14:
        name = draw.choice(["pytorch_model.bin", "custom_checkpoint_0.pkl", "optimizer.bin", "random_states_0.pkl"])
        (folder / name).write_bytes(pickle.dumps(Canary(mark)))
        if draw.random() < 0.5:
            (folder / "model.safetensors").unlink()
        return f"{name} beside"
    data = file.read_bytes()
    action = draw.choice(OF_TENSORS if file.suffix == ".safetensors" else [*OF_BYTES, *[other_values] * 6])
    file.write_bytes(action(draw, data))
    return f"{file.name}: {action.__name__}"


# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def left(text, tmp_path_factory):
    """A run that was killed after two checkpoints, and the model folder of one that was not."""
    folder = tmp_path_factory.mktemp("left")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.leave.__globals__["figures"], "available", lambda: False)
        run.train(arguments(text, folder / "run", "--ema_decay", "0.9"))
    return folder / "run"


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def try_model(folder: Path, sound: Path) -> str:
    try:
        saved = load(str(folder))
    except ValueError:
        return "refused"
    found = {name: value for name, value in saved.model.state_dict().items() if name != "lm_head.weight"}
    expected = weights_of(sound)
    expected.pop("lm_head.weight", None)
    return "the same" if same(found, expected) else "silently wrong"


def try_checkpoint(folder: Path, sound: Path) -> str:
    """`folder`: of checkpoints; the newest of them was changed."""
    found, broken = state.newest_whole(folder)
    if found is None or found.name != sound.name:
        return "refused" if broken else "silently wrong"
    return "the same" if contents(found) == contents(sound) else "silently wrong"


def contents(checkpoint: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in checkpoint.iterdir() if file.name != MANIFEST}


@pytest.mark.parametrize("count", [200, pytest.param(2_000, marks=pytest.mark.slow)])
def test_changed_files(count, left, tmp_path, figures):
    """A model folder and a folder of checkpoints by turns."""
    newest = max((left / "checkpoints").glob("step-*"))
    came: dict[str, int] = {}
    longest, mark = 0.0, tmp_path / "canary"
    for seed in range(count):
        draw, folder = random.Random(seed), tmp_path / "copy"
        of_model = seed % 2 == 0
        sound = left / "model" if of_model else newest
        shutil.copytree(sound if of_model else newest.parent, folder)
        what = change(draw, folder if of_model else folder / newest.name, mark)
        begun = time.monotonic()
        try:
            end = (try_model if of_model else try_checkpoint)(folder, sound)
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {what}") from error
        longest = max(longest, time.monotonic() - begun)
        assert end != "silently wrong", f"seed {seed}: {what}"
        assert not mark.exists(), f"seed {seed}: {what}"
        came[end] = came.get(end, 0) + 1
        shutil.rmtree(folder)
    figures(came, longest_s=longest)
    assert came["refused"] > count / 2


@pytest.mark.parametrize("count", [10, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("no_figures", "as_found")
def test_checkpoints_that_somebody_made(count, left, text, tmp_path):
    """With a manifest that fits what was changed: the state is of this run, or it is a ValueError. What a bit of a
    tensor should be nobody can say, so those changes are left out."""
    newest, mark = max((left / "checkpoints").glob("step-*")), tmp_path / "canary"
    for seed in range(count):
        draw, folder = random.Random(seed), tmp_path / "run"
        shutil.copytree(left, folder)
        checkpoint = folder / "checkpoints" / newest.name
        what = change(draw, checkpoint, mark)
        if (checkpoint / MANIFEST).is_file() and all(file.is_file() for file in checkpoint.iterdir()):
            (checkpoint / MANIFEST).unlink()
            durable.write_manifest(checkpoint)
        for name in ("summary.json", "exit.json"):
            (folder / name).unlink(missing_ok=True)
        try:
            run.train(arguments(text, folder, "--ema_decay", "0.9", "--report_to", "none"))
        except ValueError:
            pass
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {what}") from error
        assert not mark.exists(), f"seed {seed}: {what}"
        shutil.rmtree(folder)


def test_a_published_model_of_pickles(tmp_path):
    """Tensors are read of it, and nothing else."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Canary(tmp_path / "canary")}))
    with pytest.raises(ValueError, match=r"pytorch_model.bin cannot be read: it holds more than tensors"):
        loading.load(str(tmp_path))
    assert not (tmp_path / "canary").exists()


def test_a_flipped_bit_of_a_published_model(left, tmp_path):
    """Which safetensors alone does not see; and weights that were saved there on purpose, later."""
    shutil.copytree(left / "model", tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"has other bytes than when golden.safetensors was written"):
        load(str(tmp_path / "model"))
    (tmp_path / "model" / GOLDEN).unlink()
    load(str(tmp_path / "model"))


def test_a_model_that_holds_no_numbers(left, tmp_path):
    shutil.copytree(left / "model", tmp_path / "model")
    (tmp_path / "model" / GOLDEN).unlink()
    tensors = weights_of(left / "model")
    tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model.norm.weight holds numbers that are not finite"):
        load(str(tmp_path / "model"))


def test_a_configuration_that_asks_for_more_than_there_is(left, tmp_path):
    """Beside weights of some kilobytes: nothing is made of what the file lacks."""
    shutil.copytree(left / "model", tmp_path / "model")
    page = json.loads((left / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**page, "vocab_size": 2**31 - 1, "hidden_size": 16384}))
    with pytest.raises(ValueError, match=r"takes about [\d,.]+ GB, and this machine has .* vocab_size, hidden_size"):
        load(str(tmp_path / "model"))


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers


def test_a_tokenizer_that_is_too_large(left, tmp_path):
    shutil.copytree(left / "model", tmp_path / "model")
    os.truncate(tmp_path / "model/tokenizer.json", 10**8 + 1)
    with pytest.raises(ValueError, match=r"tokenizer.json has 100,000,001 bytes; 100,000,000 are allowed"):
        load(str(tmp_path / "model"))


@pytest.mark.parametrize("value", ["../secret.json", "/etc/passwd", ".env"])
def test_a_tokenizer_that_points_elsewhere(left, tmp_path, value):
    """Its words come from its own tokenizer.json, whatever its configuration names."""
    shutil.copytree(left / "model", tmp_path / "model")
    secret = json.loads((left / "model/tokenizer.json").read_text())
    secret["model"]["vocab"] = {"secret": 0, "[UNK]": 1}
    (tmp_path / "secret.json").write_text(json.dumps(secret))
    page = json.loads((left / "model/tokenizer_config.json").read_text())
    page |= dict.fromkeys(("vocab_file", "tokenizer_file", "merges_file", "added_tokens_file"), value)
    (tmp_path / "model/tokenizer_config.json").write_text(json.dumps(page))
    saved, sound = load(str(tmp_path / "model")), load(str(left / "model"))
    assert saved.processor.get_vocab() == sound.processor.get_vocab()
