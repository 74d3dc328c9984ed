"""A saved model, and what it answers: hidden words, a continuation, the class of a text or of an image.

    saved = load(locate("runs/bert/model"))                       # a folder or a Hub id; the weights have to fit
    for answer in answers(saved, ["The [MASK] statement"], {"top_k": 3}):
        print(show(saved, answer))                                # or json.dumps(answer)

Notable: what a text is continued with depends on the seed and on its place among the inputs, not on what stands in
its batch: each input has random numbers of its own. A text may go on for longer than the model reads at once; the
model then forgets all but the last half of what it has read.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, LogitsProcessor, PreTrainedModel
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from triune.configuration import TriuneConfig
from triune.configuration.configuration_triune import FamilyConfig, nearest
from triune.training.collators import pad
from triune.training.data.image_sources import SUFFIXES, reason
from triune.training.data.images import decode
from triune.training.data.packing import frame_of
from triune.training.figures import shorten
from triune.training.image_processor import load_processor, processed
from triune.training.sampling import generator
from triune.training.tasks import TASKS
from triune.training.tokenizers import first_line, load_tokenizer


Answer = dict[str, Any]  # what can be written as JSON


# ---------------------------------------------------------------------------------------------------------------------
# Loading


class Saved(NamedTuple):
    """A model with what turns inputs into tensors: a tokenizer or an image processor."""

    task: str
    model: PreTrainedModel
    processor: Any

    @property
    def length(self) -> int:
        """The most tokens that it reads at once."""
        return self.model.config.max_position_embeddings


def locate(name: str) -> str:
    """The model folder that is meant: this one, or the `model` of a run folder. Other names are for the Hub."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name
    for place in (folder, folder / "model"):
        if (place / "config.json").is_file():
            return str(place)
    raise ValueError(f"{name!r} holds no config.json: a finished run leaves its model in runs/<name>/model")


def load_config(name: str) -> TriuneConfig:
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        here = [str(folder) for root in (Path("runs"), Path(name).parent.parent) for folder in root.glob("*/model")]
        raise ValueError(
            f"{name!r} is neither a model folder nor a model that the Hub gives{nearest(name, here)}; transformers "
            f"says: {first_line(error)}"
        ) from error
    if isinstance(config, FamilyConfig) and not isinstance(config, TriuneConfig):
        raise ValueError(f"{name!r} is a model of several stacks ({config.model_type!r}), which is not read here yet")
    if not isinstance(config, TriuneConfig):
        raise ValueError(f"{name!r} is a model of type {config.model_type!r}, and no Triune model")
    return config


def task_of(config: TriuneConfig, name: str) -> str:
    """The task whose head the model was saved with."""
    heads = {task.head.__name__: task.name for task in TASKS.values()}
    found = [heads[architecture] for architecture in config.architectures or () if architecture in heads]
    if not found:
        raise ValueError(
            f"{name!r} was saved as {config.architectures}, and no task; those of tasks: {', '.join(heads)}"
        )
    return found[0]


def load_model(name: str, head: type[PreTrainedModel], kernel: str | None = None) -> PreTrainedModel:
    """The weights, all of them and no others: transformers only warns, and starts afresh what it does not find."""
    try:
        model, found = head.from_pretrained(
            name, output_loading_info=True, attn_implementation=kernel, ignore_mismatched_sizes=True
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"the weights of {name!r} cannot be loaded as {head.__name__}: {first_line(error)}"
        ) from error
    other = [f"{key} {tuple(file)} and not {tuple(own)}" for key, file, own in found["mismatched_keys"]]
    wrong = {"missing": found["missing_keys"], "unexpected": found["unexpected_keys"], "of another shape": other}
    if any(wrong.values()):
        listed = "; ".join(f"{kind}: {some(sorted(names))}" for kind, names in wrong.items() if names)
        raise ValueError(f"the weights of {name!r} do not fit {head.__name__}; {listed}")
    return model.eval()


def some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def load_saved_processor(name: str, config: TriuneConfig) -> Any:
    """The tokenizer or image processor that was saved with a model."""
    if config.embedding["type"] == "tokens":
        if Path(name).is_dir() and not (Path(name) / "tokenizer.json").is_file():
            raise ValueError(f"{name!r} holds no tokenizer (tokenizer.json): save one beside the model")
        return load_tokenizer("model_name_or_path", name, config.max_position_embeddings)
    processor = load_processor(name)
    if processor is None:
        raise ValueError(f"{name!r} holds no image processor (preprocessor_config.json): save one beside the model")
    return processor


def load(name: str, config: TriuneConfig | None = None) -> Saved:
    config = load_config(name) if config is None else config
    task = task_of(config, name)
    processor = load_saved_processor(name, config)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return Saved(task, load_model(name, TASKS[task].head).to(device), processor)


# ---------------------------------------------------------------------------------------------------------------------
# Texts and tokens


def encoded(saved: Saved, texts: list[str], truncate: bool) -> list[torch.Tensor]:
    """The tokens of each text, in the tokenizer's own frame."""
    rows = saved.processor(texts, truncation=truncate, max_length=saved.length if truncate else None, verbose=False)
    return [torch.tensor(ids, dtype=torch.long) for ids in rows["input_ids"]]


def text_batch(saved: Saved, rows: list[torch.Tensor], left: bool = False) -> dict[str, torch.Tensor]:
    """Rows of tokens padded to the longest, on the right unless `left`."""
    ones = [torch.ones_like(ids) for ids in rows]
    if left:
        ids, mask = (
            pad([row.flip(0) for row in part], value).flip(1) for part, value in ((rows, pad_id(saved)), (ones, 0))
        )
    else:
        ids, mask = pad(rows, pad_id(saved)), pad(ones, 0)
    return {"input_ids": ids.to(saved.model.device), "attention_mask": mask.to(saved.model.device)}


def pad_id(saved: Saved) -> int:
    return saved.processor.pad_token_id


# ---------------------------------------------------------------------------------------------------------------------
# Fill in


def fill(saved: Saved, texts: list[str], first: int, top_k: int) -> Iterator[Answer]:
    """For each mask the likeliest tokens, each mask by itself; and the text with the first of each."""
    mask = saved.processor.mask_token_id
    if mask is None:
        raise ValueError("the tokenizer of this model has no mask token: it does not say what to fill in")
    rows = encoded(saved, texts, truncate=False)
    for text, ids in zip(texts, rows):
        check_masked(text, ids, saved)
    batch = text_batch(saved, rows)
    chances = saved.model(**batch).logits.float().softmax(-1).cpu()
    for text, ids, own in zip(texts, rows, chances):
        places = (ids == mask).nonzero().flatten()
        found = own[places].topk(min(top_k, own.shape[-1]))
        masks = [
            [{"token_str": saved.processor.decode([token]), "score": score} for token, score in zip(*pair)]
            for pair in zip(found.indices.tolist(), found.values.tolist())
        ]
        whole = ids.index_put((places,), found.indices[:, 0])
        yield {"text": text, "filled": saved.processor.decode(whole, skip_special_tokens=True), "masks": masks}


def check_masked(text: str, ids: torch.Tensor, saved: Saved) -> None:
    token = saved.processor.mask_token
    if not (ids == saved.processor.mask_token_id).any():
        raise ValueError(f"nothing to fill in: {shorten(text, 60)!r} has no {token}, which stands for a hidden word")
    if len(ids) > saved.length:
        raise ValueError(f"{shorten(text, 60)!r} has {len(ids)} tokens, and the model reads {saved.length} at once")


# ---------------------------------------------------------------------------------------------------------------------
# Continue


class Drawn(LogitsProcessor):
    """Chance for a choice of the highest score: with Gumbel noise the highest is a draw from the softmax. Each row has
    numbers of its own, which `generate` with its one global generator has not."""

    def __init__(self, generators: list[torch.Generator]):
        self.generators = generators

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        uniform = torch.stack(
            [torch.rand(scores.shape[1], generator=own, dtype=torch.float64) for own in self.generators]
        )
        noise = -(-uniform.clamp(min=torch.finfo(torch.float64).tiny).log()).log()
        return scores.float() + noise.to(scores.device, torch.float32)


class Draft:
    """A text that is being continued."""

    def __init__(self, prompt: list[int], seed: int, place: int):
        self.prompt, self.said = prompt, []
        self.ended = False
        self.read = prompt  # what the model sees of it
        self.random = generator(seed, place)

    def room(self, length: int, most: int) -> int:
        """How many tokens may be added before it has to be cut, or is done."""
        if len(self.read) >= length:
            self.read = self.read[-max(1, length // 2) :]
        return min(length - len(self.read), most - len(self.said))

    def add(self, tokens: list[int], end: int | None) -> None:
        self.ended = end in tokens
        new = tokens[: tokens.index(end)] if self.ended else tokens
        self.said, self.read = self.said + new, self.read + new


def choices(temperature: float, top_k: int, top_p: float) -> list[LogitsProcessor]:
    """Temperature 0 takes the likeliest token, always."""
    if not temperature:
        return []
    return [TemperatureLogitsWarper(float(temperature)), TopKLogitsWarper(top_k), TopPLogitsWarper(float(top_p))]


def go_on(
    saved: Saved,
    texts: list[str],
    first: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
) -> Iterator[Answer]:
    """What comes after each text, until the model ends it or there are `max_new_tokens`."""
    tokenizer = saved.processor
    before = [token for token in frame_of(tokenizer)[0] if token is not None]
    tokens = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    drafts = [Draft(before + ids, seed, first + place) for place, ids in enumerate(tokens)]
    if not all(draft.prompt for draft in drafts):
        raise ValueError("an empty text: this tokenizer has no token to begin with, so give a word")
    warpers = choices(temperature, top_k, top_p)
    while unfinished := [draft for draft in drafts if not draft.ended and len(draft.said) < max_new_tokens]:
        extend(saved, unfinished, max_new_tokens, warpers)
    for text, draft in zip(texts, drafts):
        given = tokenizer.decode(draft.prompt, skip_special_tokens=True)
        whole = tokenizer.decode(draft.prompt + draft.said, skip_special_tokens=True)
        yield {"text": text, "continuation": whole[len(given) :], "tokens": len(draft.said), "ended": draft.ended}


def extend(saved: Saved, drafts: list[Draft], most: int, warpers: list[LogitsProcessor]) -> None:
    """All of them by as many tokens as the fullest has room for."""
    end = saved.processor.eos_token_id
    room = min(draft.room(saved.length, most) for draft in drafts)
    batch = text_batch(saved, [torch.tensor(draft.read) for draft in drafts], left=True)
    drawn = [*warpers, Drawn([draft.random for draft in drafts])] if warpers else []
    never = sorted(set(saved.processor.all_special_ids) - {end})
    new = saved.model.generate(
        **batch,
        max_new_tokens=room,
        do_sample=False,
        logits_processor=drawn,
        suppress_tokens=never or None,
        eos_token_id=end,
        pad_token_id=pad_id(saved),
    )[:, batch["input_ids"].shape[1] :]
    for draft, tokens in zip(drafts, new.tolist()):
        draft.add(tokens, end)


# ---------------------------------------------------------------------------------------------------------------------
# Classify


def classify_texts(saved: Saved, texts: list[str], first: int, top_k: int) -> Iterator[Answer]:
    """Long texts are cut, as in training."""
    rows = encoded(saved, texts, truncate=True)
    logits = saved.model(**text_batch(saved, rows)).logits
    return ({"text": text, **answer} for text, answer in zip(texts, classes(saved, logits, top_k)))


def classify_images(saved: Saved, paths: list[str], first: int, top_k: int) -> Iterator[Answer]:
    """What cannot be read is answered with an error."""
    channels = saved.model.config.embedding["num_channels"]
    looks = [look(path, channels) for path in paths]
    images = [pixels for pixels in looks if torch.is_tensor(pixels)]
    found = iter(())
    if images:
        pixel_values = processed(saved.processor, images).to(saved.model.device, saved.model.dtype)
        found = classes(saved, saved.model(pixel_values=pixel_values).logits, top_k)
    return (
        {"image": path, **(next(found) if torch.is_tensor(seen) else {"error": seen})}
        for path, seen in zip(paths, looks)
    )


def look(path: str, channels: int) -> torch.Tensor | str:
    """The pixels of a file, or why there are none."""
    try:
        return decode(Path(path).read_bytes(), channels)
    except Exception as error:  # Pillow raises whatever the bytes lead it to
        return reason(error)


def classes(saved: Saved, logits: torch.Tensor, top_k: int) -> Iterator[Answer]:
    names = saved.model.config.id2label
    best = logits.float().softmax(-1).cpu().topk(min(top_k, logits.shape[-1]))
    for numbers, scores in zip(best.indices.tolist(), best.values.tolist()):
        top = [{"label": names[number], "score": score} for number, score in zip(numbers, scores)]
        yield {**top[0], "top": top}


# ---------------------------------------------------------------------------------------------------------------------
# Showing an answer to people


WIDTH = 60  # of a text that is shown beside its class


def percent(score: float) -> str:
    return f"{score:.1%}"


def show_filled(answer: Answer, mask: str) -> str:
    """The text with its gaps filled; below it, for each, what else might stand there."""
    best = [f"[{choices[0]['token_str'].strip()}]" for choices in answer["masks"]]
    pieces = answer["text"].split(mask)
    text = "".join(piece + word for piece, word in zip(pieces, [*best, ""]))
    lists = [
        ", ".join(f"{one['token_str'].strip()} {percent(one['score'])}" for one in own) for own in answer["masks"]
    ]
    return "\n  ".join([text, *lists])


def show_continued(answer: Answer, mask: str) -> str:
    """Without what would steer a terminal."""
    whole = answer["text"] + answer["continuation"]
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in whole
    )


def listed(answer: Answer) -> str:
    return ", ".join(f"{one['label']} {percent(one['score'])}" for one in answer["top"])


def show_text_class(answer: Answer, mask: str) -> str:
    return f"{shorten(' '.join(answer['text'].split()), WIDTH):{WIDTH}}  {listed(answer)}"


def show_image_class(answer: Answer, mask: str) -> str:
    return f"{answer['image']}  {answer['error'] if 'error' in answer else listed(answer)}"


# ---------------------------------------------------------------------------------------------------------------------
# By task


class Way(NamedTuple):
    """How a task answers."""

    answer: Callable[..., Iterator[Answer]]
    show: Callable[[Answer, str], str]
    options: dict[str, float]  # with their defaults
    example: str
    between: str = ""  # a line between two answers, where one may have several paragraphs


# nanoGPT's habit: a continuation is drawn, at temperature 0.8, from the 200 likeliest tokens
DRAWN = {"max_new_tokens": 100, "temperature": 0.8, "top_k": 200, "top_p": 1.0, "seed": 0}
WAYS: dict[str, Way] = {
    "masked_lm": Way(fill, show_filled, {"top_k": 5}, '"A text with a MASK in it."'),
    "causal_lm": Way(go_on, show_continued, DRAWN, '"The beginning of a text"', "---"),
    "sequence_classification": Way(classify_texts, show_text_class, {"top_k": 3}, '"A text."'),
    "image_classification": Way(classify_images, show_image_class, {"top_k": 3}, "image.png"),
}
# From the lowest value to the highest; top_p must be above its lowest.
RANGES = {
    **dict.fromkeys(("max_new_tokens", "top_k"), (1, math.inf)),
    **dict.fromkeys(("temperature", "seed"), (0, math.inf)),
    "top_p": (1e-6, 1),
}


def options_for(task: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options of a task, those that are not given by default."""
    known = WAYS[task].options
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{name}={value!r} has no meaning for {task}; its options: {', '.join(known)}")
        low, high = RANGES[name]
        if not low <= value <= high:
            most = "" if high == math.inf else f" and at most {high}"
            raise ValueError(f"{name}={value!r} is not allowed: it must be at least {low:g}{most}")
    return {**known, **given}


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
    return above + way.show(answer, getattr(saved.processor, "mask_token", None))


def example(saved: Saved) -> str:
    """Something that this model could be asked."""
    return WAYS[saved.task].example.replace("MASK", str(getattr(saved.processor, "mask_token", None)))


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
