"""The one loop. It knows no task: what differs between them is behind `Task`.

A step takes the same samples however they are dealt to micro-batches and processes, and its loss is the mean over all
their labels: what `accumulation` or the number of processes is changes nothing but the last bits. Everything random is
a function of (seed, step) or (seed, epoch, index), so where a run stands is one number, and a run that was interrupted
goes on as if nothing had been.
"""

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, send_to_device

from triune.training import state
from triune.training.arguments import Arguments
from triune.training.console import Console
from triune.training.ema import Ema
from triune.training.evaluation import answers
from triune.training.loading import training_steps
from triune.training.metrics import collapsed, diverged
from triune.training.optimizers import set_learning_rate
from triune.training.report import PREVIEW, RECORDS, SKIPPED, Report
from triune.training.sampling import Plan, generator, step_keys
from triune.training.schedules import factor
from triune.training.tasks.task import Batch, Task
from triune.training.writing import Writer


# The exit status of a run that was interrupted: by a scheduler, which may start it again (EX_TEMPFAIL), or by hand.
TO_BE_CONTINUED, STOPPED_BY_HAND = 75, 130
PREEMPTIONS = ("SIGTERM", "SIGUSR1")  # the latter is what Slurm can be told to send
AGAIN = 1.0  # seconds in which launchers repeat a signal that the terminal has sent to all; later, somebody means it
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

    @classmethod
    def read(cls, content: dict[str, Any]) -> "Progress":
        """From a page, where somebody may have written anything."""
        progress, plain = cls(**content), cls()
        for name, value in vars(progress).items():
            own = {} if name == "best" and value is not None else getattr(plain, name)
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            if not is_like(value, own) or not all(is_like(one, 0.0) or one is None for one in inner):
                raise TypeError(f"progress.{name} cannot be {value!r}")
        return progress


def is_like(value: Any, own: Any) -> bool:
    """Of the same kind; whole numbers stand for others."""
    return isinstance(value, type(own) if not isinstance(own, float) else (int, float)) and not isinstance(value, bool)


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
    signal: str = ""  # the name of the one that asked this process to stop
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
        with self.signals():
            try:
                if self.progress.step == 0:
                    self.progress.first = self.evaluate(full=True)
                elif self.evaluation_due() and self.progress.judged != self.progress.step:
                    self.judge(self.evaluate(full=False))  # where it was interrupted
                reason = self.reached() or self.train()
                if self.progress.step and self.progress.judged != self.progress.step:
                    self.judge(self.evaluate(full=False, show=False))  # the full one follows
            except Interrupted:
                if self.progress.step:
                    self.save_for_good()
                raise
            return self.finish(reason)

    def train(self) -> str:
        """Step after step, until a reason to stop."""
        settings, progress = self.settings, self.progress
        rank, workers = self.accelerator.process_index, self.arguments.data.dataloader_num_workers
        place = (progress.step, settings.max_steps, rank)
        steps = training_steps(self.task, self.plan, settings.seed, *place, workers, settings.ddp_timeout)
        with closing(steps):
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
            labels, units, late = self.agree(micros)
            if late:
                return late
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
        self.note_failures()
        if self.evaluation_due():
            self.judge(self.evaluate(full=False))
        if self.due(self.settings.save_steps):
            self.save()
        return self.reached()

    def evaluation_due(self) -> bool:
        return self.due(self.settings.eval_steps) and self.progress.step < self.settings.max_steps

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
        """What all processes have to know together: labels and units of the step, and whether time is over."""
        late = self.settings.max_minutes and self.progress.seconds > 60 * self.settings.max_minutes
        own = [
            sum(self.task.count(batch) for batch in micros),
            sum(self.task.units(batch) for batch in micros),
            sum(int(batch.pop("replaced", 0)) for batch in micros),
            *self.asked_to_stop(),
            int(bool(late) and self.accelerator.is_main_process),
        ]
        if self.plan.world > 1:
            own = self.accelerator.reduce(torch.tensor(own, device=self.device)).tolist()
        labels, units, replaced, preempted, by_hand, late = own
        self.stop_if(preempted, by_hand)
        self.progress.replaced += replaced
        return labels, units, f"max_minutes={self.settings.max_minutes} reached" if late else ""

    def asked_to_stop(self) -> tuple[int, int]:
        """This process: by a scheduler, by hand."""
        return int(self.signal in PREEMPTIONS), int(self.signal == "SIGINT")

    def stop_if(self, preempted: int, by_hand: int) -> None:
        """Any of the processes was asked to: all of them stop here."""
        if preempted or by_hand:
            raise Interrupted(self.progress.step, TO_BE_CONTINUED if preempted else STOPPED_BY_HAND)

    def stop_if_asked(self) -> None:
        """Between two batches of an evaluation."""
        own = torch.tensor(self.asked_to_stop(), device=self.device)
        self.stop_if(*(self.accelerator.reduce(own) if self.plan.world > 1 else own).tolist())

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
        """A step without a finite gradient is left out, and its samples are noted; many in a row are the end."""
        self.skipped_in_a_row = 0 if math.isfinite(norm) else self.skipped_in_a_row + 1
        if not self.skipped_in_a_row:
            return
        self.progress.skipped += 1
        step, plan = self.progress.step, self.plan
        keys = step_keys(plan, self.settings.seed, step, self.task.order(plan)) if plan.samples else []
        samples = [list(key) for key in keys]  # of a map: epoch, index; a stream has no numbers
        self.report.log({"kind": SKIPPED, "step": step + 1, "grad_norm": norm, "samples": samples})
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise ValueError(
                f"the gradient was not finite in {MOST_SKIPPED} steps in a row, up to step {self.progress.step}: "
                f"lower learning_rate={self.settings.learning_rate:g}, or raise warmup_steps or the precision; "
                f"the last checkpoint is from before, and the samples of these steps stand in {RECORDS}"
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
            found = answers(self.task, self.bare, self.accelerator, size, full, self.stop_if_asked)
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
        if show and progress.step:
            warnings = (collapsed(found), diverged(progress.first.get("loss"), metrics["loss"]))
            for warning in filter(None, warnings):
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

    def note_failures(self) -> None:
        """What the disk refuses ends no run: what was saved before is there, and the next time it is tried again."""
        for error in self.writer.failures():
            if not isinstance(error, OSError):
                raise error
            self.console.warning(f"not saved: {error}; training goes on, and what was saved before is as it was")

    def save_for_good(self) -> None:
        """The last checkpoint. Where it cannot be written, every process says so."""
        self.writer.wait()
        self.note_failures()
        self.save()
        self.writer.wait()
        errors = self.writer.failures()
        failed = broadcast_object_list(["; ".join(map(str, errors))])[0]  # waits for the process that writes
        if failed:
            raise errors[0] if errors else OSError(failed)

    def resume(self, checkpoint: Path) -> None:
        try:
            page = state.load_checkpoint(checkpoint, self.bare, self.optimizer, self.ema)
            self.progress = Progress.read(page["progress"])
            if page["scaler"] and self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(page["scaler"])
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
            words = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            raise ValueError(f"{checkpoint} does not hold what this version writes ({words})") from error
        lost = None
        if self.accelerator.is_main_process:
            lost = state.adopt(checkpoint, self.folder / "checkpoints", state.best_of(page))
        if broadcast_object_list([lost])[0]:
            self.progress.best = None
            self.console.warning(f"the best weights so far are lost ({lost}): the next evaluation begins anew")

    # -----------------------------------------------------------------------------------------------------------------
    # The end

    def finish(self, reason: str) -> dict[str, Any]:
        """A last checkpoint; then the weights that the model folder gets, evaluated in full."""
        progress = self.progress
        self.save_for_good()
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
        """A first signal is noted, and the run stops at the end of a step or between two batches of an evaluation; a
        second one ends it at once."""
        first = math.inf

        def note(number, _):
            nonlocal first
            if time.monotonic() - first > AGAIN:
                signal.signal(number, before[number])
                os.kill(os.getpid(), number)
            first = min(first, time.monotonic())
            self.signal = self.signal or signal.Signals(number).name

        names = [name for name in ("SIGINT", *PREEMPTIONS) if hasattr(signal, name)]
        before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names}
        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Interrupted(SystemExit):
    """A run that was stopped by a signal, after its checkpoint."""

    def __init__(self, step: int, status: int):
        super().__init__(status)
        self.step = step
