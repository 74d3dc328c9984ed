"""What a model answers to held-out data: in a run, and by `scripts/eval.py`.

`judged` makes the arguments of an evaluation of a saved model, so that what is not said otherwise is as it was in the
run that the model lies in, and its last numbers come out again.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import Dataset
from transformers import PreTrainedConfig

from triune.configuration import stack_reading
from triune.configuration.configuration_triune import nearest
from triune.training.arguments import Arguments, DataArguments, as_flag, parse, read_recipe
from triune.training.loading import evaluation_batches
from triune.training.metrics import Records, concatenate, record
from triune.training.tasks.task import Batch, Task


@torch.no_grad()
def answers(
    task: Task,
    model: torch.nn.Module,
    accelerator: Accelerator,
    per_device: int,
    full: bool,
    between: Callable[[], None] = lambda: None,
) -> Records:
    """A record for each label, from all processes, on every process; of a full evaluation of a task whose model writes
    also what it wrote. The model is in evaluation mode within; `between` is called for every batch."""
    training = model.training
    model.eval()

    def batches(dataset: Dataset) -> Iterator[Batch]:
        place = (accelerator.num_processes, accelerator.process_index)
        for batch in evaluation_batches(task, dataset, per_device, *place):
            between()
            batch.pop("replaced", None)
            yield send_to_device(batch, accelerator.device)

    parts = []
    for batch in batches(task.evaluation(full)):
        labels = batch.pop("labels")
        parts.append(record(*task.pairs(model(**batch).logits, labels)))
    asked = task.asked() if full else None
    written = () if asked is None else tuple(one for batch in batches(asked) for one in task.written(model, batch))
    model.train(training)
    own = concatenate(parts)._replace(written=written)
    return concatenate(gather_object([own])) if accelerator.num_processes > 1 else own


# ---------------------------------------------------------------------------------------------------------------------
# A saved model


NAMES = ("dataset_name", "train_file", "train_dir")  # one of them says where data comes from
PARTNERS = {"validation_file": "train_file", "validation_dir": "train_dir"}
# What belongs to one source of data, and says nothing of another.
OF_SOURCE = frozenset(
    {
        *(*NAMES, *PARTNERS, "dataset_config_name", "streaming"),
        *("text_column", "target_column", "image_column", "label_column"),
        *("validation_split_percentage", "remove_shared_passages", "max_train_samples", "max_eval_samples", "fold"),
    }
)
# The flags of an evaluation; all others of a run are about learning.
FLAGS = frozenset(
    {
        *(item.name for item in dataclasses.fields(DataArguments)),
        *("task", "tokenizer_name", "attn_implementation", "per_device_eval_batch_size"),
        *("mixed_precision", "fast_fp32", "torch_compile"),
    }
)
OF_MODEL = frozenset({"task", "tokenizer_name"})  # a recipe's and a run's: the model says it


def run_of(model: str) -> Path | None:
    """The folder of the run that left a model, if that is where it lies."""
    folder = Path(model).resolve().parent
    return folder if Path(model).is_dir() and (folder / "run.yaml").is_file() else None


def recorded_page(run: Path | None) -> dict[str, Any]:
    """What a run wrote down of its machine and its data."""
    file = None if run is None else run / "environment.json"
    return json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else {}


def layered(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """One layer of values over another: data that is named takes the place of all that was said of other data."""
    replaced = OF_SOURCE if any(upper.get(name) is not None for name in NAMES) else frozenset()
    return {**{name: value for name, value in lower.items() if name not in replaced}, **upper}


def named(words: Iterable[str]) -> dict[str, str]:
    """The flags on a command line, each with a value that says that it is there."""
    flags = (word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--"))
    return {flag.removeprefix("no_"): flag for flag in flags}


def from_file(path: str | Path) -> dict[str, Any]:
    """What a recipe says of data and of evaluation."""
    return {name: value for name, value in read_recipe(str(path)).items() if name in FLAGS - OF_MODEL}


def said_by_run(run: Path | None, config: PreTrainedConfig) -> dict[str, Any]:
    """What the run was told; its precision as it came to be, by a launcher or by measuring. Without a run the model's
    own lengths."""
    if run is None:
        texts, writes = stack_reading(config, "tokens"), config.is_encoder_decoder
        written = {"max_target_length": config.decoder.max_position_embeddings} if writes else {}
        return {"max_seq_length": texts.max_position_embeddings, **written} if texts else {}
    told = from_file(run / "run.yaml")
    return {**told, "mixed_precision": recorded_page(run).get("precision", told.get("mixed_precision"))}


def judged(model: str, config: PreTrainedConfig, recipe: str | None, words: list[str]) -> Arguments:
    """Flags over the recipe over the run that the model lies in."""
    given = named(words)
    for flag in given:
        if flag not in FLAGS:
            raise ValueError(f"there is no flag --{flag} in an evaluation{nearest(flag, FLAGS)}")
    values = layered(said_by_run(run_of(model), config), from_file(recipe) if recipe else {})
    check_partners(layered(values, given))
    said = [item for item in layered(values, given).items() if item[0] not in given and item[1] is not None]
    base = [f"--{name}={as_flag(name, value)}" for name, value in said]
    return parse([f"--model_name_or_path={model}", *base, *words])


def check_partners(values: Mapping[str, Any]) -> None:
    for partner, name in PARTNERS.items():
        if values.get(partner) is not None and values.get(name) is None:
            raise ValueError(
                f"{partner} goes with --{name}: metrics stand beside what is reached by counting in its data, and the "
                "classes are numbered by it"
            )


def changed(arguments: Arguments, run: Path | None, fingerprint: str) -> str | None:
    """A warning, where the data of a model's own run is not what it was."""
    recorded = recorded_page(run).get("data")
    if recorded is None or recorded == fingerprint:
        return None
    then = from_file(run / "run.yaml")
    if any(getattr(arguments.data, name) != then.get(name) for name in OF_SOURCE):
        return None
    return f"the data has changed since the model was trained: sha256 {recorded[:12]} then, {fingerprint[:12]} now"


def check_classes(task: Task, config: PreTrainedConfig) -> None:
    """That a label means the same to the data and to the model."""
    names, own = task.config_fields().get("id2label"), config.id2label
    unnamed = own == {number: f"LABEL_{number}" for number in own} and len(own) == len(names or own)
    if names is None or names == own or unnamed:
        return
    theirs, ours = list(names.values()), [own[number] for number in sorted(own)]
    strange = next((name for name in theirs if name not in ours), None)
    why = (
        "they are in another order"
        if strange is None
        else f"{strange!r} is none of the model's{nearest(strange, ours)}"
    )
    if strange is None and len(theirs) < len(ours):
        why = f"it lacks {next(name for name in ours if name not in theirs)!r}"
    raise ValueError(
        f"the classes of the data are not the model's: {why}\n  data: {shown(theirs)}\n  model: {shown(ours)}"
    )


def shown(names: list[str]) -> str:
    return ", ".join(map(str, names[:10])) + (f", ... ({len(names)})" if len(names) > 10 else "")
