"""From arguments to a trained model folder: everything is built here, once, and handed to the loop.

arguments -> task (data, tokenizer) -> configuration -> model -> optimiser -> loop -> model folder, figures, numbers
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType, send_to_device, set_seed

from triune.configuration import TriuneConfig, preset
from triune.configuration.configuration_triune import nearest
from triune.training import figures, state
from triune.training.arguments import Arguments, options_of
from triune.training.console import Console, before_after, clock, number
from triune.training.cost import estimate
from triune.training.environment import choose_kernels, choose_precision, choose_threads, versions
from triune.training.loading import training_steps
from triune.training.loop import Interrupted, Loop
from triune.training.optimizers import build_optimizer, parameter_groups, refuse_unsharded
from triune.training.report import Report, read
from triune.training.sampling import Plan
from triune.training.schedules import factor
from triune.training.tasks import TASKS
from triune.training.tasks.task import Task


# What may differ between a run and its continuation: where things are, how often one looks, how long one may stay.
MAY_CHANGE = frozenset(
    {
        *("output_dir", "resume_from_checkpoint", "dry_run", "report_to", "max_minutes", "max_train_tokens"),
        *("logging_steps", "eval_steps", "save_steps", "save_total_limit", "early_stopping_patience"),
        *("dataloader_num_workers", "per_device_eval_batch_size", "load_best_model_at_end"),
        # the samples of a step are the same however they are dealt out: their product is compared
        *("per_device_train_batch_size", "gradient_accumulation_steps"),
    }
)


# ---------------------------------------------------------------------------------------------------------------------
# Model


def merged(fields: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The user's fields over the task's; where both are entries of options, option by option."""
    result = dict(fields)
    for name, value in own.items():
        both = isinstance(value, dict) and isinstance(fields.get(name), dict)
        result[name] = {**fields[name], **value} if both else value
    return result


def build_config(arguments: Arguments, task: Task) -> TriuneConfig:
    own = options_of("config", arguments.model.config)
    fields, name = merged(task.config_fields(), own), arguments.model.preset
    if name is None:
        return TriuneConfig(**fields)
    chosen = {axis: fields[axis] for axis in ("attention",) if axis in fields}
    preset(name, **{**own, **chosen}).check_head(task.head.__name__)  # before sizes of text meet a model for images
    return preset(name, **fields)


def build_model(arguments: Arguments, task: Task, console: Console) -> torch.nn.Module:
    """A fresh model, or a saved one under the task's head; what the file did not have starts fresh and is named."""
    source, kernel = arguments.model.model_name_or_path, arguments.model.attn_implementation
    set_seed(arguments.training.seed)
    if source is None:
        return task.head._from_config(build_config(arguments, task), attn_implementation=kernel)
    if arguments.model.preset:
        raise ValueError(f"model_name_or_path={source!r} and preset={arguments.model.preset!r}: give one of them")
    fields = task.config_fields()
    labels = {name: fields[name] for name in ("id2label", "label2id") if name in fields}
    try:
        model, loading = task.head.from_pretrained(
            source, output_loading_info=True, attn_implementation=kernel, ignore_mismatched_sizes=True, **labels
        )
    except OSError as error:
        raise ValueError(f"model_name_or_path={source!r} is no model: {str(error).splitlines()[0]}") from error
    wanted = fields.get("vocab_size")
    if wanted is not None and wanted > model.config.vocab_size:
        raise ValueError(
            f"vocabulary mismatch: the tokenizer has {wanted} tokens, and model_name_or_path={source!r} has "
            f"vocab_size={model.config.vocab_size}; use the tokenizer that was saved with the model"
        )
    fresh = {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}
    inside = [name for name in sorted(fresh) if name.startswith(f"{model.base_model_prefix}.")]
    if inside:
        some = ", ".join(inside[:5])
        raise ValueError(f"model_name_or_path={source!r} does not fit: {some} missing, or of another size")
    if fresh:
        console.note(f"not in {source}, starts fresh: {', '.join(sorted(fresh))}")
    return model


def freeze(model: torch.nn.Module, pattern: str | None) -> None:
    if pattern is None:
        return
    names = [name for name, _ in model.named_parameters() if re.search(pattern, name)]
    if not names:
        some = ", ".join(name for name, _ in list(model.named_parameters())[:5])
        raise ValueError(f"freeze={pattern!r} matches no parameter; they are called {some}, ...")
    for name in names:
        model.get_parameter(name).requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------------------
# The run folder


def recorded(arguments: Arguments) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint to go on from, with its page."""
    folder, wanted = Path(arguments.training.output_dir), arguments.training.resume_from_checkpoint
    if wanted == "no":
        return None, {}
    if wanted != "auto":
        return Path(wanted), state.read_page(Path(wanted))
    found = state.checkpoints(folder / "checkpoints")
    return (found[-1], state.read_page(found[-1])) if found else (None, {})


def refuse_changes(checkpoint: Path, page: dict[str, Any], now: dict[str, Any]) -> None:
    """A run goes on as what it was."""
    changed = state.differences(page["arguments"], now["arguments"], MAY_CHANGE)
    changed += state.differences({"data": page["data"]}, {"data": now["data"]}, frozenset())
    changed += state.differences(
        {"samples of a step": page["per_step"]}, {"samples of a step": now["per_step"]}, frozenset()
    )
    if changed:
        raise ValueError(
            f"{checkpoint} belongs to a run with other settings:\n  "
            + "\n  ".join(changed)
            + "\nGo on with the former ones, or start over: --resume_from_checkpoint no, or another --output_dir"
        )


def set_aside(folder: Path) -> Path | None:
    """A run that is started over keeps what was there under another name."""
    if not (folder / "run.yaml").is_file():
        return None
    number = next(number for number in range(1, 10**6) if not folder.with_name(f"{folder.name}.{number}").exists())
    return folder.rename(folder.with_name(f"{folder.name}.{number}"))


def write_run(folder: Path, arguments: Arguments, page: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plain = yaml.safe_dump(arguments.as_dict(), sort_keys=False, allow_unicode=True)
    (folder / "run.yaml").write_text(plain, encoding="utf-8")
    rest = {name: value for name, value in page.items() if name != "arguments"}
    (folder / "environment.json").write_text(json.dumps(rest, indent=1), encoding="utf-8")


def write_model(loop: Loop, folder: Path) -> Path:
    """What goes to the Hub: weights, configuration, code, and the tokenizer or image processor."""
    tensors = state.model_tensors(loop.bare)

    def write(partial: Path) -> None:
        loop.bare.save_pretrained(partial, state_dict=tensors)
        loop.task.processor.save_pretrained(partial)

    if loop.accelerator.is_main_process:
        state.replace_folder(folder, write)
    loop.accelerator.wait_for_everyone()
    return folder


def write_figures(loop: Loop, folder: Path) -> list[Path]:
    """The curves of every run, and what the task draws of its own."""
    if not loop.accelerator.is_main_process:
        return []
    if not figures.available():
        loop.console.note(figures.MISSING)
        return []
    folder.mkdir(parents=True, exist_ok=True)
    records = read(loop.folder / "metrics.jsonl")
    drawn = figures.curves(records, loop.baselines, folder)
    rates = folder / "learning_rate_and_throughput.png"
    drawn.append(figures.learning_rate_and_throughput(records, rates, loop.task.unit))
    # the saved model, on one processor: whole, wherever and in how many parts it was trained
    model = loop.task.head.from_pretrained(loop.folder / "model").eval()
    return [*drawn, *loop.task.figures(model, loop.last_records, folder)]


# ---------------------------------------------------------------------------------------------------------------------
# Assembly


def make_accelerator(settings, recorded: str | None = None) -> Accelerator:
    cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    precision = choose_precision(settings.mixed_precision, recorded)
    if cpu and precision == "fp16":
        raise ValueError("mixed_precision='fp16' needs a GPU: on a processor use 'bf16' or 'no'")
    try:
        accelerator = Accelerator(mixed_precision=precision, cpu=cpu)
    except ValueError as error:
        raise ValueError(f"mixed_precision={settings.mixed_precision!r}: {error}") from error
    if accelerator.distributed_type == DistributedType.FSDP:
        refuse_unsharded(settings.optim)
        keep_sums_exact(accelerator.state.fsdp_plugin)
    return accelerator


def keep_sums_exact(plugin) -> None:
    """Gradients are added up in float32, over micro-batches and over processes; accelerate would do it in bfloat16."""
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = dataclasses.replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)


def make_task(arguments: Arguments, accelerator: Accelerator) -> Task:
    name = arguments.model.task
    if name not in TASKS:
        raise ValueError(f"task={name!r} is not one of {', '.join(TASKS)}{nearest(str(name), TASKS)}")
    with accelerator.main_process_first():  # what is cached, is cached once
        return TASKS[name](arguments)


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


def launched(accelerator: Accelerator) -> dict[str, Any]:
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    kind = str(accelerator.distributed_type).split(".")[-1]
    return {"device": name, "world": accelerator.num_processes, "launch": kind}


def header(accelerator: Accelerator, threads: str) -> dict[str, str]:
    ran = launched(accelerator)
    several = f" x {ran['world']} ({ran['launch']})" if ran["world"] > 1 else ""
    return {
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "device": ran["device"] + several,
        "threads": threads,
    }


def train(arguments: Arguments) -> dict[str, Any]:
    """The run: gives the last metrics."""
    settings = arguments.training
    checkpoint, page = recorded(arguments)
    accelerator = make_accelerator(settings, page.get("precision"))
    threads = choose_threads(page.get("threads"))
    console = Console(main=accelerator.is_main_process)
    try:
        console.header(header(accelerator, threads))
        task = make_task(arguments, accelerator)
        for line in task.describe():
            console.line("data", line)
        loop = assemble(arguments, task, accelerator, console, page)
        loop.page |= {"threads": torch.get_num_threads(), "precision": accelerator.mixed_precision}
        loop.page |= {"versions": versions(), "baselines": loop.baselines, **launched(accelerator)}
        if settings.dry_run:
            console.note("dry run: all was built, one forward and backward pass was run, nothing was written")
            return {}
        return carry_out(loop, checkpoint, page)
    finally:
        console.close()


def assemble(arguments: Arguments, task: Task, accelerator: Accelerator, console: Console, page: dict) -> Loop:
    """Model, optimiser and plan, shown on the console, in a loop that stands at its beginning."""
    settings = arguments.training
    model = build_model(arguments, task, console)
    task.prepare(model.config)
    freeze(model, arguments.model.freeze)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    plan = make_plan(arguments, task, accelerator.num_processes)
    schedule_options = options_of("lr_scheduler_kwargs", settings.lr_scheduler_kwargs)
    factor(settings.lr_scheduler_type, 0, settings.max_steps, settings.warmup_steps, **schedule_options)
    console.model_table(model)
    loop = Loop(
        arguments=arguments,
        task=task,
        accelerator=accelerator,
        console=console,
        model=model.to(accelerator.device),
        optimizer=make_optimizer(model, settings),
        plan=plan,
        folder=Path(settings.output_dir),
        page={"arguments": arguments.as_dict(), "data": task.fingerprint, "per_step": plan.per_step},
        schedule_options=schedule_options,
    )
    show_plan(loop, page.get("kernels"))
    loop.prepare()
    return loop


def show_plan(loop: Loop, recorded: str | None) -> None:
    """Steps, batch, and what they cost: counted and timed on one micro-batch, whose kernels are chosen on the way."""
    task, plan, settings, accelerator = loop.task, loop.plan, loop.settings, loop.accelerator
    batch = next(training_steps(task, plan, settings.seed, 0, 1, accelerator.process_index, 0))[0]
    batch.pop("replaced", None)
    units, labels = task.units(batch), task.count(batch)
    batch = send_to_device(batch, accelerator.device)

    def loss(model, batch):
        return task.loss(model, batch, labels)

    def once():
        with accelerator.autocast():
            loss(loop.model, batch).backward()
        loop.model.zero_grad(set_to_none=True)

    kernels = choose_kernels(settings.fast_fp32, accelerator.device, recorded, once)
    loop.page["kernels"] = kernels
    cost = estimate(
        loop.model,
        batch,
        batch_units=units,
        steps=settings.max_steps,
        accumulation=plan.accumulation,
        world=plan.world,
        optimizer_name=settings.optim,
        optimizer_options=options_of("optim_args", settings.optim_args),
        precision=accelerator.mixed_precision,
        ema=bool(settings.ema_decay),
        shards=plan.world if accelerator.distributed_type == DistributedType.FSDP else 1,
        loss=loss,
    )
    epochs = f"{settings.max_steps / plan.steps_per_epoch:.1f} epochs, " if plan.samples else ""
    dealt = f" ({plan.per_device} x {plan.accumulation} accumulated x {plan.world} processes)"
    loop.console.plan(
        {
            "batch": f"{plan.per_step} samples{dealt if plan.per_step > plan.per_device else ''}",
            **cost.rows(task.unit),
            "schedule": f"{epochs}{settings.optim}, learning rate {settings.learning_rate:g}, "
            f"{settings.lr_scheduler_type} after {settings.warmup_steps} steps of warm-up",
            "precision": f"{accelerator.mixed_precision.replace('no', 'float32')}, kernels {kernels}",
        }
    )


def carry_out(loop: Loop, checkpoint: Path | None, page: dict[str, Any]) -> dict[str, Any]:
    """Train in the run folder, from its checkpoint or afresh, and write what is left behind."""
    arguments, accelerator, console = loop.arguments, loop.accelerator, loop.console
    if checkpoint is not None:
        refuse_changes(checkpoint, page, loop.page)
        loop.resume(checkpoint)
        console.note(f"goes on from step {loop.progress.step} ({checkpoint})")
    elif accelerator.is_main_process:
        aside = set_aside(loop.folder)
        if aside:
            console.note(f"what was in {loop.folder} is now in {aside}")
    if accelerator.is_main_process:
        write_run(loop.folder, arguments, loop.page)
    accelerator.wait_for_everyone()
    loop.report = Report(
        loop.folder,
        arguments.training.report_to,
        accelerator.is_main_process,
        arguments.as_dict(),
        loop.progress.step if checkpoint else None,
    )
    try:
        result = loop.run()
    except Interrupted as stop:
        console.note(f"interrupted at step {stop.step}, after a checkpoint: the same command goes on from there")
        raise
    finally:
        loop.report.finish()
    model = write_model(loop, loop.folder / "model")
    drawn = write_figures(loop, loop.folder / "figures")
    show_end(loop, result, model, drawn)
    return result["metrics"]


def show_end(loop: Loop, result: dict[str, Any], model: Path, drawn: list[Path]) -> None:
    progress, task = loop.progress, loop.task
    rows = before_after(progress.first, result["metrics"], loop.baselines)
    rows["weights"] = f"of step {result['weights_of_step']:,} of {progress.step:,} ({result['reason']})"
    rate = number(progress.units / max(progress.seconds, 1e-9))
    rows["time"] = f"{clock(progress.seconds)} of training, {rate} {task.unit} a second"
    if progress.replaced:
        rows["replaced"] = f"{progress.replaced:,} samples that could not be read"
    if progress.skipped:
        rows["skipped"] = f"{progress.skipped:,} steps without a finite gradient"
    rows["model"] = f"{model}/"
    rows["figures"] = f"{loop.folder / 'figures'}/ ({len(drawn)})"
    rows["numbers"] = f"{loop.folder / 'metrics.jsonl'}, metrics.csv"
    loop.console.end(rows, next_command=f"python scripts/predict.py {model}")
