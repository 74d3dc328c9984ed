"""The one loop. It knows no task: what differs between them is behind `Task`.

A step takes the same samples however they are dealt to micro-batches and processes, and its loss is the mean over all
their labels: what `accumulation` or the number of processes is changes nothing but the last bits. Everything random is
a function of (seed, step) or (seed, epoch, index), so where a run stands is one number, and a run that was interrupted
goes on as if nothing had been.
"""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device

from triune.training import state
from triune.training.arguments import Arguments
from triune.training.console import Console
from triune.training.ema import Ema
from triune.training.evaluation import answers
from triune.training.loading import training_steps
from triune.training.metrics import collapsed
from triune.training.optimizers import set_learning_rate
from triune.training.report import PREVIEW, Report
from triune.training.sampling import Plan, generator
from triune.training.schedules import factor
from triune.training.tasks.task import Batch, Task
from triune.training.writing import Writer


TO_BE_CONTINUED = 75  # the exit status of a run that was interrupted and can go on (EX_TEMPFAIL)
INTERRUPTED = "interrupted"
NOTHING_TO_LEARN = (0.0, 0.0)  # loss and norm of a step in whose samples no label counts
MOST_SKIPPED = 20  # steps in a row without a finite gradient


@dataclass
class Progress:
    """How far a run is: numbers, as they stand in a checkpoint's page."""

    step: int = 0
    units: int = 0  # tokens or images
    seconds: float = 0.0  # of training, without evaluations
    losses: list[float] = field(default_factory=list)  # of the steps since the last line
    first: dict[str, float] = field(default_factory=dict)  # metrics before training
    best: dict[str, float] | None = None  # metrics of the best evaluation, and its step
    judged: int = -1  # the step of the last evaluation that it was chosen by
    stale: int = 0  # evaluations since the best
    replaced: int = 0  # samples that could not be read
    skipped: int = 0  # steps without a finite gradient


@dataclass
class Loop:
    arguments: Arguments
    task: Task
    accelerator: Accelerator
    console: Console
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    plan: Plan
    folder: Path
    page: dict[str, Any]  # what else a checkpoint says: arguments, versions, the data's fingerprint
    schedule_options: dict[str, Any]
    report: Report | None = None
    ema: Ema | None = None
    progress: Progress = field(default_factory=Progress)
    signal: int = 0
    skipped_in_a_row: int = 0

    def __post_init__(self):
        self.settings = self.arguments.training
        self.device = self.accelerator.device
        self.bare = self.model
        self.baselines = self.task.baselines() if self.accelerator.is_main_process else {}
        self.writer = Writer(copies=self.device.type == "cpu")

    def prepare(self) -> None:
        """Let accelerate wrap, shard and cast what it does."""
        if self.settings.torch_compile:
            self.model.compile()
        self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.bare = self.accelerator.unwrap_model(self.model)
        if self.settings.ema_decay:
            self.ema = Ema(self.bare, self.settings.ema_decay)

    # -----------------------------------------------------------------------------------------------------------------
    # The run

    def run(self) -> dict[str, Any]:
        """From where the run stands to its end: gives the last evaluation."""
        if self.progress.step == 0:
            self.progress.first = self.evaluate(full=True)
        with self.signals():
            reason = self.reached() or self.train()
        if reason == INTERRUPTED:
            self.save()
            self.settle()
            raise Interrupted(self.progress.step)
        return self.finish(reason)

    def train(self) -> str:
        """Step after step, until a reason to stop."""
        settings, progress = self.settings, self.progress
        rank, workers = self.accelerator.process_index, self.arguments.data.dataloader_num_workers
        place = (progress.step, settings.max_steps, rank)
        with closing(training_steps(self.task, self.plan, settings.seed, *place, workers)) as steps:
            return self.walk(steps)

    def walk(self, steps: Iterator[list[Batch]]) -> str:
        settings, progress = self.settings, self.progress
        seconds = 60 * settings.max_minutes if settings.max_minutes else None
        self.console.begin(settings.max_steps, progress.step, self.task.unit, seconds)
        self.model.train()
        mark = (progress.seconds, progress.units)
        while progress.step < settings.max_steps:
            start = time.perf_counter()
            micros = next(steps)
            labels, units, stop = self.agree(micros)
            if stop:
                return stop
            learning_rate = self.learning_rate(progress.step)
            loss, norm = self.update(micros, labels, learning_rate) if labels else NOTHING_TO_LEARN
            progress.step += 1
            progress.units += units
            progress.losses += [loss] if labels else []
            progress.seconds += time.perf_counter() - start
            rate = (progress.units - mark[1]) / max(progress.seconds - mark[0], 1e-9)
            line = {"loss": loss, "learning_rate": learning_rate, "grad_norm": norm, "throughput": rate}
            if self.tell(line):
                mark = (progress.seconds, progress.units)
            stop = self.between_steps()
            if stop:
                return stop
        return "all steps done"

    def tell(self, line: dict[str, float]) -> bool:
        """Of a step, on the console; every so many steps in the records, with the mean loss since the last time."""
        settings, progress = self.settings, self.progress
        line = {"step": progress.step, "epoch": progress.step / self.plan.steps_per_epoch, **line}
        log = self.due(settings.logging_steps) or progress.step == settings.max_steps
        if log:
            line["loss"] = sum(progress.losses) / max(1, len(progress.losses))
            self.report.log({"kind": "train", **line, "seconds": progress.seconds})
            progress.losses.clear()
        self.console.step(line, log=log)
        return log

    def due(self, every: int) -> bool:
        return self.progress.step % every == 0

    def between_steps(self) -> str:
        """Evaluations and checkpoints; a reason to stop, or nothing."""
        settings, progress = self.settings, self.progress
        self.writer.check()
        if self.due(settings.eval_steps) and progress.step < settings.max_steps:
            self.judge(self.evaluate(full=False))
        if self.due(settings.save_steps):
            self.save()
        return self.reached()

    def reached(self) -> str:
        """What ends a run before its last step; also asked before the first, by a run that is started again."""
        settings, progress = self.settings, self.progress
        if settings.max_train_tokens and progress.units >= settings.max_train_tokens:
            return f"max_train_tokens={settings.max_train_tokens:,} reached"
        if settings.early_stopping_patience and progress.stale >= settings.early_stopping_patience:
            return f"no better evaluation in {progress.stale} (early_stopping_patience)"
        return ""

    # -----------------------------------------------------------------------------------------------------------------
    # A step

    def agree(self, micros: list[Batch]) -> tuple[int, int, str]:
        """What all processes have to know together: labels and units of the step, and whether to stop before it."""
        late = self.settings.max_minutes and self.progress.seconds > 60 * self.settings.max_minutes
        own = [
            sum(self.task.count(batch) for batch in micros),
            sum(self.task.units(batch) for batch in micros),
            sum(int(batch.pop("replaced", 0)) for batch in micros),
            int(self.signal > 0),
            int(bool(late) and self.accelerator.is_main_process),
        ]
        if self.plan.world > 1:
            own = self.accelerator.reduce(torch.tensor(own, device=self.device)).tolist()
        labels, units, replaced, interrupted, late = own
        self.progress.replaced += replaced
        reason = f"max_minutes={self.settings.max_minutes} reached" if late else ""
        return labels, units, INTERRUPTED if interrupted else reason

    def learning_rate(self, step: int) -> float:
        settings = self.settings
        return settings.learning_rate * factor(
            settings.lr_scheduler_type, step, settings.max_steps, settings.warmup_steps, **self.schedule_options
        )

    def update(self, micros: list[Batch], labels: int, learning_rate: float) -> tuple[float, float]:
        """One step of the optimiser: the loss, as the mean over all labels of the step, and the gradient's norm."""
        accelerator, settings, world = self.accelerator, self.settings, self.plan.world
        set_learning_rate(self.optimizer, learning_rate)
        total = torch.zeros((), device=self.device)
        for micro, batch in enumerate(micros):
            place = (self.progress.step, micro, accelerator.process_index)
            torch.manual_seed(generator(settings.seed, *place).initial_seed())
            last = micro == len(micros) - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                loss = self.task.loss(self.model, send_to_device(batch, self.device, non_blocking=True), labels)
                accelerator.backward(loss * world)  # gradients are averaged over processes, and the loss is a share
            total += loss.detach()
        norm = float(accelerator.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm or math.inf))
        if math.isfinite(norm) or accelerator.scaler is not None:
            self.optimizer.step()
        self.note_skipped(norm)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.progress.step)
        return float(accelerator.reduce(total)) if world > 1 else float(total), norm

    def note_skipped(self, norm: float) -> None:
        """A step without a finite gradient is left out; many in a row are the end."""
        self.skipped_in_a_row = 0 if math.isfinite(norm) else self.skipped_in_a_row + 1
        if not self.skipped_in_a_row:
            return
        self.progress.skipped += 1
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise ValueError(
                f"the gradient was not finite in {MOST_SKIPPED} steps in a row, up to step {self.progress.step}: "
                f"lower learning_rate={self.settings.learning_rate:g}, or raise warmup_steps or the precision"
            )

    # -----------------------------------------------------------------------------------------------------------------
    # Evaluations

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """With the weights that are evaluated and saved."""
        with self.ema.swap() if self.ema is not None else nullcontext():
            yield

    def evaluate(self, full: bool, show: bool = True) -> dict[str, float]:
        self.model.eval()
        with self.averaged():
            size = self.settings.per_device_eval_batch_size
            found = answers(self.task, self.bare, self.accelerator, size, full)
            preview = self.task.preview(self.bare) if show else []
        self.model.train()
        metrics = self.task.measure(found)
        progress = self.progress
        everything = full or len(self.task.evaluation(False)) == len(self.task.evaluation(True))
        line = {"kind": "eval", "step": progress.step, "seconds": progress.seconds, "full": everything, **metrics}
        if preview:
            self.report.log({"kind": PREVIEW, "step": progress.step, "loss": metrics["loss"], "lines": preview})
        self.report.log(line)
        self.last_records = found
        if show:
            self.console.evaluation(line, self.baselines, preview, best=not full and self.is_better(metrics))
        warning = collapsed(found) if show and progress.step else None
        if warning:
            self.console.warning(warning)
        return metrics

    def is_better(self, metrics: dict[str, float]) -> bool:
        name, best = self.task.best_metric, self.progress.best
        if best is None or not math.isfinite(best[name]):
            return True
        gain = metrics[name] - best[name]
        return gain > 0 if self.task.greater_is_better else gain < 0

    def judge(self, metrics: dict[str, float]) -> None:
        """Keep the weights of the best evaluation so far."""
        self.progress.judged = self.progress.step
        if not self.is_better(metrics):
            self.progress.stale += 1
            return
        self.progress.stale = 0
        self.progress.best = {**metrics, "step": self.progress.step}
        with self.averaged():
            tensors = state.model_tensors(self.bare, keep=self.accelerator.is_main_process)
            if self.accelerator.is_main_process:
                folder = self.best_folder()
                self.writer.write([tensors], lambda: state.save_best(folder, tensors))

    def best_folder(self) -> Path:
        """Named by its step, so that a checkpoint and the best weights that it knows of belong together."""
        return self.folder / "checkpoints" / state.best_of({"progress": asdict(self.progress)})

    # -----------------------------------------------------------------------------------------------------------------
    # Checkpoints

    def save(self) -> None:
        scaler = self.accelerator.scaler
        page = {
            **self.page,
            "progress": asdict(self.progress),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        state.save_checkpoint(
            self.folder / "checkpoints",
            self.progress.step,
            self.bare,
            self.optimizer,
            page,
            averages=self.ema,
            keep=self.settings.save_total_limit,
            main=self.accelerator.is_main_process,
            writer=self.writer,
        )

    def settle(self) -> None:
        """Until everything is written that was to be."""
        self.writer.wait()
        self.accelerator.wait_for_everyone()

    def resume(self, checkpoint: Path) -> None:
        page = state.load_checkpoint(checkpoint, self.bare, self.optimizer, self.ema)
        self.progress = Progress(**page["progress"])
        if self.accelerator.is_main_process:
            state.adopt(checkpoint, self.folder / "checkpoints", state.best_of(page))
        self.accelerator.wait_for_everyone()
        if page["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(page["scaler"])

    # -----------------------------------------------------------------------------------------------------------------
    # The end

    def finish(self, reason: str) -> dict[str, Any]:
        """A last judgement and checkpoint; then the weights that the model folder gets, evaluated in full."""
        progress = self.progress
        if progress.step and progress.judged != progress.step:
            self.judge(self.evaluate(full=False, show=False))  # the full one follows
        self.save()
        self.settle()
        chosen = progress.step
        if self.settings.load_best_model_at_end and progress.best:
            best = self.best_folder() / state.WEIGHTS
            state.put_tensors(self.bare, state.read_tensors(best), best)
            chosen = int(progress.best["step"])
        elif self.ema is not None:
            self.ema.put(self.ema.averages)
        self.ema = None
        return {"reason": reason, "weights_of_step": chosen, "metrics": self.evaluate(full=True)}

    @contextmanager
    def signals(self):
        """A first signal is noted, and the run stops at the end of a step; a second one ends it at once."""

        def note(number, _):
            signal.signal(number, before[number])
            self.signal = number

        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Interrupted(SystemExit):
    """A run that was stopped by a signal, after its checkpoint."""

    def __init__(self, step: int):
        super().__init__(TO_BE_CONTINUED)
        self.step = step
