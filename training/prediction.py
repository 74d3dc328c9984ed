"""A saved model, and what it answers: hidden words, a continuation, a class, a text made of another, what an image
shows, what is hidden of it.

    saved = load(locate("runs/bert/model"))                       # a folder or a Hub id; the weights have to fit
    for answer in answers(saved, ["The [MASK] statement"], {"top_k": 3}):
        print(show(saved, answer))                                # or json.dumps(answer)

How each task answers is in `training/answering`, a file for each way; the table is below.
"""

import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, CLIPProcessor, PreTrainedConfig, PreTrainedModel

from triune.configuration import stack_reading
from triune.configuration.configuration_triune import FamilyConfig, nearest
from triune.training.answering import classify, draw, fill, go_on, match, write
from triune.training.answering.way import Answer, Saved, Way
from triune.training.arguments import read_recipe
from triune.training.data.image_sources import SUFFIXES
from triune.training.durable import digest
from triune.training.evaluation import run_of
from triune.training.hub.content import GOLDEN
from triune.training.image_processor import load_processor
from triune.training.tasks import TASKS
from triune.training.tokenizers import first_line, load_tokenizer


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def locate(name: str) -> str:
    """The model folder that is meant: this one, or the `model` of a run folder. Other names are for the Hub."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name
    for place in (folder, folder / "model"):
        if (place / "config.json").is_file():
            return str(place)
    raise ValueError(f"{name!r} holds no config.json: a finished run leaves its model in runs/<name>/model")


def model_type(name: str) -> str | None:
    """What a configuration says that it is of; None where there is none."""
    try:
        return PreTrainedConfig.get_config_dict(name)[0].get("model_type")
    except OSError:
        return None


def load_config(name: str) -> FamilyConfig:
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # of the network, the Hub, and whatever the file leads it to
        here = [str(folder) for root in (Path("runs"), Path(name).parent.parent) for folder in root.glob("*/model")]
        raise ValueError(
            f"{name!r} is neither a model folder nor a model that the Hub gives{nearest(name, here)}; transformers "
            f"says: {first_line(error)}"
        ) from error
    if not isinstance(config, FamilyConfig):
        raise ValueError(
            f"{name!r} is a model of type {config.model_type!r}, and no Triune model: "
            "scripts/convert.py makes one of it"
        )
    config.check_memory(getattr(config.dtype, "itemsize", 4))  # what a file lacks would be made before it is missed
    return config


def task_of(config: FamilyConfig, name: str) -> str:
    """The task whose head the model was saved with; of several the one of the run that left it, else the first."""
    heads: dict[str, list[str]] = {}
    for task in TASKS.values():
        heads.setdefault(task.head.__name__, []).append(task.name)
    found = [task for architecture in config.architectures or () for task in heads.get(architecture, ())]
    if not found:
        raise ValueError(
            f"{name!r} was saved as {config.architectures}, and no task; those of tasks: {', '.join(heads)}"
        )
    run = run_of(name) if len(found) > 1 else None
    trained = read_recipe(str(run / "run.yaml")).get("task") if run else None
    return trained if trained in found else found[0]


def load_model(name: str, head: type[PreTrainedModel], kernel: str | None = None) -> PreTrainedModel:
    """The weights, all of them and no others, as they were when the golden outputs beside them were written."""
    check_hashes(Path(name))
    return load_weights(name, head, kernel)


def check_hashes(folder: Path) -> None:
    """safetensors notices bytes that are missing, not bytes that are wrong. A folder without golden outputs passes."""
    for file, sha256 in recorded_hashes(folder).items():
        if not (folder / file).is_file() or digest(folder / file) != sha256:
            raise ValueError(
                f"{folder / file} has other bytes than when {GOLDEN} was written: it is damaged; or, if other weights "
                f"were saved there on purpose, delete {GOLDEN}"
            )


def recorded_hashes(folder: Path) -> dict[str, str]:
    if not (folder / GOLDEN).is_file():
        return {}
    try:
        with safe_open(folder / GOLDEN, "pt") as file:
            return json.loads(file.metadata()["golden"]).get("sha256", {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{folder / GOLDEN} cannot be read: {first_line(error)}; it is damaged") from error


def load_weights(name: str, head: type[PreTrainedModel], kernel: str | None = None) -> PreTrainedModel:
    """transformers only warns, and starts afresh what it does not find."""
    try:
        model, found = head.from_pretrained(
            name,
            output_loading_info=True,
            attn_implementation=kernel,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
        )
    except Exception as error:  # whatever the files lead it to
        raise ValueError(
            f"the weights of {name!r} cannot be loaded as {head.__name__}: {first_line(error)}"
        ) from error
    other = [f"{key} {tuple(file)} and not {tuple(own)}" for key, file, own in found["mismatched_keys"]]
    wrong = {"missing": found["missing_keys"], "unexpected": found["unexpected_keys"], "of another shape": other}
    if any(wrong.values()):
        listed = "; ".join(f"{kind}: {some(sorted(names))}" for kind, names in wrong.items() if names)
        raise ValueError(f"the weights of {name!r} do not fit {head.__name__}; {listed}")
    refuse_not_finite(model, name)
    return model.eval()


def refuse_not_finite(model: PreTrainedModel, name: str) -> None:
    for parameter, value in model.named_parameters():
        if not value.isfinite().all():
            raise ValueError(f"the weights of {name!r} are spoilt: {parameter} holds numbers that are not finite")


def some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def load_saved_processor(name: str, config: FamilyConfig) -> Any:
    """What was saved with a model for what it reads: a tokenizer, an image processor, or both in one."""
    texts, images = (stack_reading(config, embedding) for embedding in ("tokens", "patches"))
    tokenizer = saved_tokenizer(name, texts.max_position_embeddings) if texts else None
    if not images:
        return tokenizer
    processor = load_processor(name)
    if processor is None:
        file = "processor_config.json" if texts else "preprocessor_config.json"
        raise ValueError(f"{name!r} holds no image processor ({file}): save one beside the model")
    return CLIPProcessor(processor, tokenizer) if texts else processor


def saved_tokenizer(name: str, length: int) -> Any:
    if Path(name).is_dir() and not (Path(name) / "tokenizer.json").is_file():
        raise ValueError(f"{name!r} holds no tokenizer (tokenizer.json): save one beside the model")
    return load_tokenizer("model_name_or_path", name, length)


def load(name: str, config: FamilyConfig | None = None) -> Saved:
    config = load_config(name) if config is None else config
    task = task_of(config, name)
    processor = load_saved_processor(name, config)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return Saved(task, load_model(name, TASKS[task].head).to(device), processor)


# ---------------------------------------------------------------------------------------------------------------------
# By task


WAYS: dict[str, Way] = {
    "masked_lm": fill.FILL,
    "pretraining": fill.PAIRS,
    "causal_lm": go_on.CONTINUE,
    "sequence_classification": classify.TEXTS,
    "image_classification": classify.IMAGES,
    "seq2seq": write.WRITE,
    "span_corruption": write.WRITE,
    "contrastive": match.MATCH,
    "masked_image_modeling": draw.DRAW,
}
# From the lowest value to the highest; top_p must be above its lowest.
RANGES = {
    **dict.fromkeys(("max_new_tokens", "top_k", "num_beams"), (1, math.inf)),
    **dict.fromkeys(("temperature", "seed"), (0, math.inf)),
    "top_p": (1e-6, 1),
}


def options_for(task: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options of a task, those that are not given by default."""
    known = WAYS[task].options
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{name}={value!r} has no meaning for {task}; its options: {', '.join(known)}")
        if name in RANGES:
            check_range(name, value)
    return {**known, **given}


def check_range(name: str, value: float) -> None:
    low, high = RANGES[name]
    if not low <= value <= high:
        most = "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"{name}={value!r} is not allowed: it must be at least {low:g}{most}")


@torch.inference_mode()
def answer_batch(saved: Saved, inputs: list[str], first: int, options: dict[str, Any]) -> list[Answer]:
    return list(WAYS[saved.task].answer(saved, inputs, first, **options))


def answers(
    saved: Saved, inputs: Iterable[str], given: dict[str, Any] | None = None, batch_size: int = 32
) -> Iterator[Answer]:
    """An answer for each text, or path of an image, in their order; batch by batch, while inputs still come."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not allowed: it must be at least 1")
    options, inputs, first = options_for(saved.task, given or {}), iter(inputs), 0
    while batch := list(islice(inputs, batch_size)):
        yield from answer_batch(saved, batch, first, options)
        first += len(batch)


def show(saved: Saved, answer: Answer, number: int = 0) -> str:
    """A line, or a few."""
    way = WAYS[saved.task]
    above = f"{way.between}\n" if number and way.between else ""
    return above + way.show(answer, mask_token(saved))


def example(saved: Saved) -> str:
    """Something that this model could be asked."""
    return WAYS[saved.task].example.replace("MASK", str(mask_token(saved)))


def mask_token(saved: Saved) -> str | None:
    return getattr(saved.processor, "mask_token", None)


# ---------------------------------------------------------------------------------------------------------------------
# Inputs


def image_paths(names: Iterable[str]) -> Iterator[str]:
    """Files as they are named, folders as the images below them."""
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            yield from images_below(path)
        elif path.is_file():
            yield str(path)
        else:
            raise ValueError(f"there is no image {name!r}{nearest(path.name, neighbours(path))}")


def images_below(folder: Path) -> list[str]:
    found = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"the folder {str(folder)!r} holds no image ({', '.join(SUFFIXES)})")
    return found


def neighbours(path: Path) -> list[str]:
    return [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []


def plain_texts(names: Iterable[str]) -> Iterator[str]:
    """As they are given; the name of a file is taken for a mistake."""
    for name in names:
        if len(name) < 256 and "\n" not in name and Path(name).is_file():
            raise ValueError(f"{name!r} is a file: to read its lines, give --file {name}")
        yield name


def lines_of(path: str) -> Iterator[str]:
    """The lines of a file that are not blank."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"file={path!r}: there is no such file{nearest(file.name, neighbours(file))}")
    try:
        yield from not_blank(file.read_text(encoding="utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise ValueError(f"file={path!r} is not UTF-8: {error}") from error


def not_blank(lines: Iterable[str]) -> Iterator[str]:
    return (line.rstrip("\r\n") for line in lines if line.strip())
