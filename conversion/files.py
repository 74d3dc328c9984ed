"""The files of a published checkpoint: its configuration, its tensors by name, read when they are asked for, and what
lies beside them.

Safetensors are mapped into memory: a tensor that is taken as it is costs none. Older files are pickles, of which
nothing is read but tensors (`weights_only`).
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig
from transformers.utils import cached_file


WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # whichever is there first, whole or with an index
# What turns inputs into tensors, and is not the configuration or the weights of a model.
BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
    *("vocab.json", "merges.txt", "spiece.model", "source.spm", "target.spm", "chat_template.jinja"),
    *("preprocessor_config.json", "processor_config.json"),
)
WRAPPERS = ("model", "state_dict")  # under which authors put the tensors of a file


class Source:
    """A folder, a repository of the Hub at a revision, or one file of weights."""

    def __init__(self, name: str, **where: Any):
        self.name, self.where = str(name), {key: value for key, value in where.items() if value is not None}

    @property
    def is_file(self) -> bool:
        return Path(self.name).is_file()

    def file(self, name: str) -> Path | None:
        if self.is_file:
            return None
        try:
            found = cached_file(self.name, name, _raise_exceptions_for_missing_entries=False, **self.where)
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.name!r} is neither a folder nor a model that the Hub gives: {reason}") from error
        return Path(found) if found else None

    def config(self) -> dict[str, Any]:
        """Empty where there is none."""
        if self.file("config.json") is None:
            return {}
        return PreTrainedConfig.get_config_dict(self.name, **self.where)[0]

    def weights(self) -> list[Path]:
        """One file, or the parts that an index names, each of them in the same place."""
        if self.is_file:
            return [Path(self.name)]
        for name in WEIGHTS:
            if whole := self.file(name):
                return [whole]
            if index := self.file(f"{name}.index.json"):
                return [self.part(part) for part in parts_of(index)]
        raise ValueError(f"{self.name!r} holds no weights: {' or '.join(WEIGHTS)}, whole or with an index")

    def part(self, name: str) -> Path:
        found = self.file(name)
        if found is None:
            raise ValueError(f"{self.name!r}: the index names {name!r}, which is not there")
        return found

    def carry(self, folder: Path) -> None:
        """What lies beside the weights."""
        for name in BESIDE:
            if found := self.file(name):
                shutil.copyfile(found, folder / name)


def parts_of(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index.name} is no index of weights: {error}") from error
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index.name} names {name!r}, which does not lie beside it")
    return names


class Tensors:
    """Tensors by name, of one file or several."""

    def __init__(self, files: dict[str, Any]):
        self.files = files  # name -> an open file, or the tensor itself

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def get(self, name: str) -> torch.Tensor:
        place = self.files[name]
        return place if torch.is_tensor(place) else place.get_tensor(name)


@contextmanager
def opened(paths: list[Path]) -> Iterator[Tensors]:
    with ExitStack() as stack:
        found: dict[str, Any] = {}
        for path in paths:
            try:
                found |= mapped(path, stack) if path.suffix == ".safetensors" else unpickled(path)
            except (SafetensorError, RuntimeError, ValueError, OSError, EOFError) as error:
                raise ValueError(f"{path.name} cannot be read: {str(error).splitlines()[0]}") from error
        yield Tensors(found)


def mapped(path: Path, stack: ExitStack) -> dict[str, Any]:
    file = stack.enter_context(safe_open(path, framework="pt"))
    return dict.fromkeys(file.keys(), file)


def unpickled(path: Path) -> dict[str, torch.Tensor]:
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before files could be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises whatever the bytes lead it to
        raise ValueError(f"it holds more than tensors, or is damaged: {str(error).splitlines()[0]}") from error
    for name in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(map(torch.is_tensor, content.values())):
        raise ValueError("it is no mapping of names to tensors")
    return content
