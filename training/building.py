"""What a run is made of, from its arguments: the model, the plan of its steps, the optimiser."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from transformers import PreTrainedModel

from triune.configuration import CONFIGS, TriuneConfig, merged, preset_of, stacks_of
from triune.configuration.configuration_triune import FamilyConfig
from triune.modeling.transformer import Transformer
from triune.training.adapters import add_adapters
from triune.training.arguments import Arguments, TrainingArguments, options_of
from triune.training.console import Console
from triune.training.optimizers import build_optimizer, choice_of, parameter_groups
from triune.training.prediction import check_hashes, load_config, model_type, refuse_not_finite
from triune.training.report import tracker_names
from triune.training.sampling import Plan
from triune.training.schedules import factor
from triune.training.tasks.task import Task
from triune.training.tokenizers import first_line


WITHOUT_TABLE = ("none", "rotary", "relative")  # positions that a longer sequence does not run out of


def check_choices(settings: TrainingArguments) -> None:
    """What can be refused before any data is read."""
    choice_of(settings.optim)
    options_of("optim_args", settings.optim_args)
    options = options_of("lr_scheduler_kwargs", settings.lr_scheduler_kwargs)
    factor(settings.lr_scheduler_type, 0, settings.max_steps, settings.warmup_steps, **options)
    tracker_names(settings.report_to)


def build_config(arguments: Arguments, task: Task) -> FamilyConfig:
    own = options_of("config", arguments.model.config)
    fields, name, kind = task.config_fields(), arguments.model.preset, task.head.config_class
    if name is None:
        return kind(**merged(fields, own))
    if kind.sub_configs:
        return preset_of(kind, name, task.head.__name__, **merged(without_images(fields), own))
    fields = merged(fields, own)
    chosen = {axis: fields[axis] for axis in ("attention",) if axis in fields}
    head = task.head.__name__
    preset_of(kind, name, head, **{**own, **chosen}).check_head(head)  # before sizes of text meet a model for images
    return preset_of(kind, name, head, **fields)


def without_images(fields: dict[str, Any]) -> dict[str, Any]:
    """What the data decides of the stacks but the size of images, which become what a preset reads."""
    stacks = {name: dict(own) for name, own in fields.items() if isinstance(own, dict)}
    for own in stacks.values():
        if "image_size" in own.get("embedding", {}):
            del own["embedding"]
    return {**fields, **stacks}


# What reads a published model of another architecture (`triune.conversion.load`), which this package does not know.
Reader = Callable[..., tuple[PreTrainedModel, Any]]


def build_model(
    arguments: Arguments, task: Task, console: Console, read_original: Reader | None = None
) -> torch.nn.Module:
    """A fresh model, or a saved one under the task's head; what the file did not have starts fresh and is named."""
    source, kernel = arguments.model.model_name_or_path, arguments.model.attn_implementation
    set_seed(arguments.training.seed)
    if source is None:
        return task.head._from_config(build_config(arguments, task), attn_implementation=kernel)
    for other in ("preset", "config", "tokenizer_type"):
        if getattr(arguments.model, other) is not None:
            given = f"{other}={getattr(arguments.model, other)!r}"
            raise ValueError(f"model_name_or_path={source!r} brings its own, and {given} is given too: leave one out")
    if read_original is not None and is_original(source):
        model, fresh = original_model(source, task, kernel, read_original)
        refuse_adapters(arguments)
    else:
        model, fresh = saved_model(source, task, kernel)
    check_vocabularies(model.config, task, source)
    lengthen(model.config, task)
    if fresh:
        console.note(f"not in {source}, starts fresh: {', '.join(sorted(fresh))}")
    if arguments.model.lora_rank is not None:
        console.note(str(add_adapters(model, arguments.model, fresh)))
    return model


# ---------------------------------------------------------------------------------------------------------------------
# A published model of another architecture


def is_original(source: str) -> bool:
    return model_type(source) not in (None, *CONFIGS)


def original_model(source: str, task: Task, kernel: str | None, read: Reader) -> tuple[PreTrainedModel, set[str]]:
    """The task's head on it, and the names of what was not there."""
    fields = task.config_fields()
    labels = {name: fields[name] for name in ("id2label", "label2id") if name in fields}
    labels |= {"problem_type": None} if labels else {}
    head, wanted = task.head.__name__, {"dtype": torch.float32, "attn_implementation": kernel, "config": labels}
    try:
        model, report = read(source, head=head, output_loading_info=True, **wanted)
    except ValueError as error:
        raise ValueError(f"model_name_or_path={source!r}: {error}") from error
    return model, set(report.fresh)


def refuse_adapters(arguments: Arguments) -> None:
    """They would name a base that is no Triune model."""
    if arguments.model.lora_rank is not None:
        raise ValueError(
            f"lora_rank={arguments.model.lora_rank} needs a Triune model, and "
            f"{arguments.model.model_name_or_path!r} is none: scripts/convert.py makes one of it"
        )


# ---------------------------------------------------------------------------------------------------------------------
# A saved model, whole or one of its stacks


# By the type of a model of several stacks, and by what a head of one stack reads: the stack that the head takes over,
# and where its weights are.
TAKEN = {
    ("triune-mae", "patches"): ("encoder", "model"),
    ("triune-clip", "patches"): ("vision", "vision_model"),
    ("triune-clip", "tokens"): ("text", "text_model"),
    ("triune-seq2seq", "tokens"): ("encoder", "model.encoder"),
}


def saved_model(source: str, task: Task, kernel: str | None) -> tuple[PreTrainedModel, set[str]]:
    """The task's head on what is saved, and the names of what was not there."""
    config, renamed = taken(source, task)
    fields = task.config_fields()
    for name in ("id2label", "label2id"):
        if name in fields:
            setattr(config, name, fields[name])
    check_hashes(Path(source))
    try:
        model, loading = task.head.from_pretrained(
            source,
            config=config,
            key_mapping=renamed,
            output_loading_info=True,
            attn_implementation=kernel,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            dtype=torch.float32,  # whatever it was saved in: the optimiser needs small steps
        )
    except Exception as error:  # whatever the files lead it to
        raise ValueError(f"model_name_or_path={source!r} is no model: {first_line(error)}") from error
    if renamed:
        model._weight_conversions = None  # or transformers would save it under the names that it was loaded from
    fresh = {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}
    stacks = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Transformer))
    # a model without a head that pools was saved without what it pools with
    inside = [name for name in sorted(fresh) if name.startswith(stacks) and ".pooler." not in name]
    if inside:
        some = ", ".join(inside[:5])
        raise ValueError(f"model_name_or_path={source!r} does not fit: {some} missing, or of another size")
    refuse_not_finite(model, source)
    return model, fresh


def taken(source: str, task: Task) -> tuple[FamilyConfig, dict[str, str] | None]:
    """The configuration that the head is built from, and how names in the file become the head's own."""
    try:
        config = load_config(source)
    except ValueError as error:
        raise ValueError(f"model_name_or_path={error}") from error
    kind = task.head.config_class
    if isinstance(config, kind):
        return config, None
    reads = kind.heads[task.head.__name__].needs.get("embedding")
    if (config.model_type, reads) not in TAKEN:
        raise ValueError(
            f"model_name_or_path={source!r} is a model of type {config.model_type!r}, and {task.name} needs one of "
            f"type {kind.model_type!r}" + (f", or one with a stack that reads {reads}" if reads else "")
        )
    stack, place = TAKEN[config.model_type, reads]
    return getattr(config, stack), {rf"^{re.escape(place)}\.": "model."}


def sized_stacks(config: FamilyConfig, task: Task) -> Iterator[tuple[str, TriuneConfig, dict[str, Any]]]:
    """The stacks by name, with what the data says of each."""
    fields = task.config_fields()
    for name, stack in stacks_of(config).items():
        yield name, stack, fields.get(name, {}) if name else fields


def check_vocabularies(config: FamilyConfig, task: Task, source: str) -> None:
    for name, stack, fields in sized_stacks(config, task):
        wanted = fields.get("vocab_size")
        if wanted is not None and wanted > stack.vocab_size:
            raise ValueError(
                f"vocabulary mismatch: the tokenizer has {wanted} tokens, and model_name_or_path={source!r} has "
                f"{name and f'{name} '}vocab_size={stack.vocab_size}; use the tokenizer that was saved with the model"
            )


def lengthen(config: FamilyConfig, task: Task) -> None:
    """Stacks whose positions do not run out take rows as long as the data has."""
    for _, stack, fields in sized_stacks(config, task):
        length = fields.get("max_position_embeddings", 0)
        if stack.position["type"] in WITHOUT_TABLE and length > (stack.max_position_embeddings or length):
            stack.max_position_embeddings = length


def freeze(model: torch.nn.Module, pattern: str | None) -> None:
    if pattern is None:
        return
    try:
        names = [name for name, _ in model.named_parameters() if re.search(pattern, name)]
    except re.error as error:
        raise ValueError(f"freeze={pattern!r} is no regular expression: {error}") from error
    if not names:
        some = ", ".join(name for name, _ in list(model.named_parameters())[:5])
        raise ValueError(f"freeze={pattern!r} matches no parameter; they are called {some}, ...")
    for name in names:
        model.get_parameter(name).requires_grad_(False)


def make_plan(arguments: Arguments, task: Task, world: int) -> Plan:
    settings = arguments.training
    streaming = isinstance(task.train, torch.utils.data.IterableDataset)
    plan = Plan(
        samples=0 if streaming else len(task.train),
        per_device=settings.per_device_train_batch_size,
        accumulation=settings.gradient_accumulation_steps,
        world=world,
    )
    if not streaming and plan.per_step > plan.samples:
        raise ValueError(
            f"a step takes per_device_train_batch_size={plan.per_device} x gradient_accumulation_steps="
            f"{plan.accumulation} x {world} processes = {plan.per_step} samples, and the training set has "
            f"{plan.samples}: lower one of them"
        )
    return plan


def make_optimizer(model: torch.nn.Module, settings) -> torch.optim.Optimizer:
    groups = parameter_groups(model, settings.weight_decay, settings.layer_decay)
    betas = (settings.adam_beta1, settings.adam_beta2)
    options = options_of("optim_args", settings.optim_args)
    return build_optimizer(settings.optim, groups, settings.learning_rate, betas, settings.adam_epsilon, **options)
