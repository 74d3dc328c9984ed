"""What a run is made of, from its arguments: the model, the plan of its steps, the optimiser."""

import re
from typing import Any

import torch
from accelerate.utils import set_seed

from triune.configuration import TriuneConfig, preset
from triune.training.adapters import add_adapters
from triune.training.arguments import Arguments, TrainingArguments, options_of
from triune.training.console import Console
from triune.training.optimizers import build_optimizer, choice_of, parameter_groups
from triune.training.report import tracker_names
from triune.training.sampling import Plan
from triune.training.schedules import factor
from triune.training.tasks.task import Task


WITHOUT_TABLE = ("none", "rotary", "relative")  # positions that a longer sequence does not run out of


def check_choices(settings: TrainingArguments) -> None:
    """What can be refused before any data is read."""
    choice_of(settings.optim)
    options_of("optim_args", settings.optim_args)
    options = options_of("lr_scheduler_kwargs", settings.lr_scheduler_kwargs)
    factor(settings.lr_scheduler_type, 0, settings.max_steps, settings.warmup_steps, **options)
    tracker_names(settings.report_to)


def merged(fields: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The user's fields over the task's; where both are entries of options, option by option."""
    result = dict(fields)
    for name, value in own.items():
        both = isinstance(value, dict) and isinstance(fields.get(name), dict)
        result[name] = merged(fields[name], value) if both else value
    return result


def build_config(arguments: Arguments, task: Task) -> TriuneConfig:
    own = options_of("config", arguments.model.config)
    fields, name = merged(task.config_fields(), own), arguments.model.preset
    if name is None:
        return (task.head.config_class or TriuneConfig)(**fields)
    chosen = {axis: fields[axis] for axis in ("attention",) if axis in fields}
    preset(name, **{**own, **chosen}).check_head(task.head.__name__)  # before sizes of text meet a model for images
    return preset(name, **fields)


def build_model(arguments: Arguments, task: Task, console: Console) -> torch.nn.Module:
    """A fresh model, or a saved one under the task's head; what the file did not have starts fresh and is named."""
    source, kernel = arguments.model.model_name_or_path, arguments.model.attn_implementation
    set_seed(arguments.training.seed)
    if source is None:
        return task.head._from_config(build_config(arguments, task), attn_implementation=kernel)
    for other in ("preset", "config", "tokenizer_type"):
        if getattr(arguments.model, other) is not None:
            given = f"{other}={getattr(arguments.model, other)!r}"
            raise ValueError(f"model_name_or_path={source!r} brings its own, and {given} is given too: leave one out")
    fields = task.config_fields()
    labels = {name: fields[name] for name in ("id2label", "label2id") if name in fields}
    try:
        model, loading = task.head.from_pretrained(
            source,
            output_loading_info=True,
            attn_implementation=kernel,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,  # whatever it was saved in: the optimiser needs small steps
            **labels,
        )
    except OSError as error:
        raise ValueError(f"model_name_or_path={source!r} is no model: {str(error).splitlines()[0]}") from error
    wanted = fields.get("vocab_size")
    if wanted is not None and wanted > model.config.vocab_size:
        raise ValueError(
            f"vocabulary mismatch: the tokenizer has {wanted} tokens, and model_name_or_path={source!r} has "
            f"vocab_size={model.config.vocab_size}; use the tokenizer that was saved with the model"
        )
    length = fields.get("max_position_embeddings", 0)
    if model.config.position["type"] in WITHOUT_TABLE and length > model.config.max_position_embeddings:
        model.config.max_position_embeddings = length
    fresh = {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}
    inside = [name for name in sorted(fresh) if name.startswith(f"{model.base_model_prefix}.")]
    if inside:
        some = ", ".join(inside[:5])
        raise ValueError(f"model_name_or_path={source!r} does not fit: {some} missing, or of another size")
    if fresh:
        console.note(f"not in {source}, starts fresh: {', '.join(sorted(fresh))}")
    if arguments.model.lora_rank is not None:
        console.note(str(add_adapters(model, arguments.model, fresh)))
    return model


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
