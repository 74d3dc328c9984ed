"""From arguments to a trained model folder: everything is built here, once, and handed to the loop.

arguments -> task (data, tokenizer) -> configuration -> model -> optimiser -> loop -> model folder, figures, numbers
"""

import dataclasses
import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedType,
    broadcast_object_list,
    gather_object,
    parse_flag_from_env,
    send_to_device,
)
from transformers import PreTrainedConfig, PreTrainedModel

from triune.configuration import stacks_of
from triune.configuration.configuration_triune import nearest
from triune.training.arguments import ABOUT_HERE, Arguments, TrainingArguments, options_of
from triune.training.building import Reader, build_model, check_choices, freeze, make_optimizer, make_plan
from triune.training.console import Console
from triune.training.cost import Cost, estimate
from triune.training.environment import (
    Kernels,
    candidates,
    choose_kernels,
    choose_precision,
    choose_threads,
    keep_memory,
    processor,
    set_kernels,
    versions,
)
from triune.training.evaluation import NAMES, PARTNERS
from triune.training.folder import Start, clear, finished, make_room, note_end, recorded, refuse_changes, write_run
from triune.training.leaving import leave
from triune.training.loading import training_steps
from triune.training.loop import STOPPED_BY_HAND, Interrupted, Loop
from triune.training.optimizers import refuse_unsharded
from triune.training.owning import owned
from triune.training.report import Report
from triune.training.state import differences
from triune.training.tasks import TASKS
from triune.training.tasks.task import Task


# ---------------------------------------------------------------------------------------------------------------------
# Assembly


def make_accelerator(settings: TrainingArguments, recorded: str | None = None) -> Accelerator:
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not (
        torch.cuda.is_available() or torch.backends.mps.is_available()
    )
    timeout = datetime.timedelta(seconds=settings.ddp_timeout)
    PartialState(cpu=cpu, timeout=timeout)  # from here on processes can agree
    precision = agreed(choose_precision(settings.mixed_precision, gpu=not cpu, recorded=recorded))
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


def agreed(value: Any) -> Any:
    """What the first process says: what is measured must come out alike everywhere."""
    return broadcast_object_list([value])[0]


def keep_sums_exact(plugin) -> None:
    """Gradients are added up in float32, over micro-batches and over processes; accelerate would do it in bfloat16."""
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = dataclasses.replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)


def make_task(arguments: Arguments) -> Task:
    name = arguments.model.task
    if name not in TASKS:
        raise ValueError(f"task={name!r} is not one of {', '.join(TASKS)}{nearest(str(name), TASKS)}")
    return TASKS[name](arguments)


def launched(accelerator: Accelerator) -> dict[str, Any]:
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    kind = str(accelerator.distributed_type).split(".")[-1]
    hardware = processor() if device.type == "cpu" else name
    return {"device": name, "hardware": hardware, "world": accelerator.num_processes, "launch": kind}


def header(accelerator: Accelerator, threads: str) -> dict[str, str]:
    ran = launched(accelerator)
    several = f" x {ran['world']} ({ran['launch']})" if ran["world"] > 1 else ""
    return {
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "device": ran["device"] + several,
        "threads": threads,
    }


def train(arguments: Arguments, read_original: Reader | None = None) -> dict[str, Any]:
    """The run: gives the last metrics. `read_original`: what makes our model of a published one."""
    settings = arguments.training
    check_choices(settings)
    folder, first = Path(settings.output_dir), os.environ.get("RANK", "0") == "0"
    with owned(folder) if first and writes(arguments) else nullcontext():
        if first and writes(arguments):
            clear(folder)
        with ending(folder, arguments):
            return build_and_train(arguments, recorded(arguments) if first else Start(), read_original)


def writes(arguments: Arguments) -> bool:
    return not (arguments.training.dry_run or arguments.data.verify_data)


@contextmanager
def ending(folder: Path, arguments: Arguments) -> Iterator[None]:
    """However a run ends, its folder says so."""

    def note(status: int, reason: str) -> None:
        if writes(arguments):
            note_end(folder, status, reason)

    try:
        yield
    except Interrupted as stop:
        note(stop.code, f"interrupted after step {stop.step}; the same command goes on")
        raise
    except KeyboardInterrupt:
        note(STOPPED_BY_HAND, "interrupted by hand before the step was over")
        raise
    except Exception as error:
        words = without_memory(error, arguments)
        note(1, words or f"{type(error).__name__}: {error}")
        if words:
            raise ValueError(words) from error
        raise
    note(0, "finished")


OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc")


def without_memory(error: Exception, arguments: Arguments) -> str | None:
    """What to change, where an error says that there is not enough memory."""
    told = f"{type(error).__name__}: {error}"
    if not isinstance(error, MemoryError) and not any(words in told for words in OUT_OF_MEMORY):
        return None
    training, data = arguments.training, arguments.data
    said = (str(error).strip() or "MemoryError").splitlines()[-1]
    return (
        f"there is not enough memory ({said}): "
        f"lower per_device_train_batch_size={training.per_device_train_batch_size} and raise "
        f"gradient_accumulation_steps={training.gradient_accumulation_steps} by as much, lower "
        f"max_seq_length={data.max_seq_length}, or set gradient_checkpointing; --dry_run shows what a step takes"
    )


def build_and_train(arguments: Arguments, start: Start, read_original: Reader | None) -> dict[str, Any]:
    settings = arguments.training
    accelerator = make_accelerator(settings, start.page.get("precision"))
    checkpoint, page, broken = agreed(start)
    threads = choose_threads(page.get("threads"))
    keep_memory()
    torch.set_num_threads(agreed(torch.get_num_threads()))
    console = Console(main=accelerator.is_main_process)
    try:
        console.header(header(accelerator, threads))
        for one in broken:
            console.warning(f"not gone on from {one}")
        task = make_task(arguments)
        for line in task.describe():
            console.line("data", line)
        if arguments.data.verify_data:
            return verify(task, console)
        model = build_model(arguments, task, console, read_original)
        loop = assemble(arguments, task, model, accelerator, console, page)
        loop.page |= {"threads": torch.get_num_threads(), "precision": accelerator.mixed_precision}
        loop.page |= {"versions": versions(), "baselines": loop.baselines, **launched(accelerator)}
        if settings.dry_run:
            console.note("dry run: all was built, one forward and backward pass was run, nothing was written")
            return {}
        return carry_out(loop, checkpoint, page)
    finally:
        console.close()


def verify(task: Task, console: Console) -> dict[str, Any]:
    count = 0
    for fault in task.faults():
        console.line("unreadable", fault)
        count += 1
    if count:
        raise ValueError(f"{count:,} samples cannot be read")
    console.note("every sample was read; nothing was trained or written")
    return {}


def assemble(
    arguments: Arguments, task: Task, model: PreTrainedModel, accelerator: Accelerator, console: Console, former: dict
) -> Loop:
    """Model, optimiser and plan, shown on the console, in a loop that stands at its beginning."""
    settings = arguments.training
    task.prepare(model.config)
    freeze(model, arguments.model.freeze)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    plan = make_plan(arguments, task, accelerator.num_processes)
    console.model_table(model)
    page = {"arguments": arguments.as_dict(), "data": task.fingerprint, "per_step": plan.per_step}
    refuse_different({**page, "parameters": sum(one.numel() for one in model.parameters())}, accelerator)
    loop = Loop(
        arguments=arguments,
        task=task,
        accelerator=accelerator,
        console=console,
        model=model,
        optimizer=make_optimizer(model, settings),
        plan=plan,
        folder=Path(settings.output_dir),
        page=page,
        schedule_options=options_of("lr_scheduler_kwargs", settings.lr_scheduler_kwargs),
    )
    show_plan(loop, former)
    loop.prepare()
    return loop


def refuse_different(own: dict[str, Any], accelerator: Accelerator) -> None:
    """Processes that were started with other settings or other data would train something that nobody asked for. Where
    the same data lies may differ from machine to machine."""
    places = ABOUT_HERE | {*NAMES, *PARTNERS}
    flat = {**own.pop("arguments"), **own}
    for rank, other in enumerate(gather_object([flat]) if accelerator.num_processes > 1 else []):
        differing = differences(flat, other, places)
        if differing:
            raise ValueError(
                f"process {rank} differs from process {accelerator.process_index}: {'; '.join(differing[:3])}"
            )


def show_plan(loop: Loop, recorded: dict[str, Any]) -> None:
    """Steps, batch, and what they cost."""
    plan, settings, precision = loop.plan, loop.settings, loop.accelerator.mixed_precision.replace("no", "float32")
    # a model that is to be sharded may not fit on one device: nothing is run before
    sharded = loop.accelerator.distributed_type == DistributedType.FSDP
    kernels = Kernels()
    cost, kernels, words = (None, kernels, kernels.words()) if sharded else measured_cost(loop, recorded)
    loop.page |= {"kernels": words, "attention": kernels.attention, "flops": cost and cost.flops}
    epochs = f"{settings.max_steps / plan.steps_per_epoch:.1f} epochs, " if plan.samples else ""
    dealt = f" ({plan.per_device} x {plan.accumulation} accumulated x {plan.world} processes)"
    loop.console.plan(
        {
            "batch": f"{plan.per_step} samples{dealt if plan.per_step > plan.per_device else ''}",
            **(cost.rows(loop.task.unit) if cost else {}),
            "schedule": f"{epochs}{settings.optim}, learning rate {settings.learning_rate:g}, "
            f"{settings.lr_scheduler_type} after {settings.warmup_steps} steps of warm-up",
            "precision": f"{precision}, kernels {words}",
        }
    )


def measured_cost(loop: Loop, recorded: dict[str, Any]) -> tuple[Cost, Kernels, str]:
    """Counted and timed on one micro-batch, whose kernels are chosen on the way."""
    task, plan, settings, accelerator = loop.task, loop.plan, loop.settings, loop.accelerator
    loop.model.to(accelerator.device)
    batch = next(training_steps(task, plan, settings.seed, 0, 1, accelerator.process_index))[0]
    batch.pop("replaced", None)
    units, labels = task.units(batch), task.count(batch)
    batch = send_to_device(batch, accelerator.device)

    def loss(model, batch):
        return task.loss(model, batch, labels)

    def once():
        with accelerator.autocast():
            loss(loop.model, batch).backward()
        loop.model.zero_grad(set_to_none=True)

    kernels, words = kernels_for(loop, recorded, batch, once)
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
        loss=loss,
    )
    return cost, kernels, words


def kernels_for(loop: Loop, recorded: dict[str, Any], batch: dict, work: Callable[[], None]) -> tuple[Kernels, str]:
    """Chosen for `work`, or as they were; in use from here on. Half precision leaves few products of float32."""
    model, accelerator, choice = loop.model, loop.accelerator, loop.settings.fast_fp32
    if choice not in ("auto", "no"):
        raise ValueError(f"fast_fp32={choice!r} is not allowed: it must be auto or no")

    def use(kernels: Kernels) -> None:
        set_kernels(kernels.products)
        if kernels.attention:
            model.set_attn_implementation(kernels.attention)

    if choice == "no" or accelerator.device.type != "cpu":
        chosen, words = Kernels(), Kernels().words()
    elif recorded.get("kernels"):
        attention = recorded.get("attention") if recorded.get("attention") in ATTENTIONS else None
        chosen, words = Kernels(recorded["kernels"], attention), recorded["kernels"]
    else:
        free = loop.arguments.model.attn_implementation is None and longest_row(model.config, batch) <= SHORT
        those = candidates(accelerator.mixed_precision == "no", ATTENTIONS if free else ())
        chosen, words = agreed(choose_kernels(those, work, use))
    use(chosen)
    return chosen, words


ATTENTIONS = ("sdpa", "eager")  # to choose from
SHORT = 512  # tokens of a row whose attention may be done step by step: that keeps length x length numbers


def longest_row(config: PreTrainedConfig, batch: dict) -> int:
    """In tokens or patches."""
    patches = [stack.num_positions for stack in stacks_of(config).values() if stack.embedding["type"] == "patches"]
    return max(patches + [value.shape[-1] for name, value in batch.items() if name.endswith("input_ids")])


def carry_out(loop: Loop, checkpoint: Path | None, page: dict[str, Any]) -> dict[str, Any]:
    """Train in the run folder, from its checkpoint or afresh, and write what is left behind."""
    arguments, accelerator, console = loop.arguments, loop.accelerator, loop.console
    if checkpoint is not None:
        refuse_changes(checkpoint, page, loop.page)
        ended = finished(loop.folder, page["step"])
        if ended:
            console.note(
                f"this run has come to its end, {loop.folder}/model; to start over: --resume_from_checkpoint no"
            )
            return ended
    if accelerator.is_main_process:
        aside = make_room(loop.folder, checkpoint)
        if aside:
            console.note(f"what was in {loop.folder} is now in {aside}")
        write_run(loop.folder, arguments, loop.page)
    accelerator.wait_for_everyone()
    if checkpoint is not None:
        loop.resume(checkpoint)
        console.note(f"goes on from step {loop.progress.step} ({checkpoint})")
    loop.report = Report(
        loop.folder,
        arguments.training.report_to,
        accelerator.is_main_process,
        arguments.as_dict(),
        loop.progress.step if checkpoint else None,
        loop.progress.judged == loop.progress.step,
    )
    try:
        with loop.writer:
            result = loop.run()
    except Interrupted as stop:
        console.note(f"interrupted at step {stop.step}, after a checkpoint: the same command goes on from there")
        raise
    finally:
        loop.report.finish()
    leave(loop, result)
    return result["metrics"]
