"""Triune beside transformers' own models: the same weights, the same batch, by turns in one process.

    python benchmarks/run.py                          # every job, into benchmarks/results/speed.json
    python benchmarks/run.py mlm clm --precision bf16 # some of them
    python benchmarks/run.py --device cuda            # the same on a GPU
    python benchmarks/run.py --quick --busy           # small models, to see that it runs

A job is a training step: forward, backward, clipping, optimiser. First the gate: without dropout, loss and norm of the
gradient must agree, or the row is void. Then the arms take turns, A B B A, and what counts is the median of the ratios
of neighbours, with an interval by resampling. Transformers runs twice, as a user gets it (`default`: AdamW as torch
makes it, kernels as torch sets them) and with the switches that Triune sets (`tuned`: fused AdamW, no cache, oneDNN's
kernels where they are faster and as exact). Memory is measured in processes of their own. On a busy machine nothing is
measured unless `--busy` says that it should be.
"""

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

import triune.conversion as conversion
from triune.training.environment import choose_kernels, set_kernels, versions
from triune.training.report import replace


ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
Batch = dict[str, torch.Tensor]
IGNORED = -100
IDLE = 0.3  # load of the machine, beside ourselves

# ---------------------------------------------------------------------------------------------------------------------
# Jobs


class Job(NamedTuple):
    """What both compute: transformers' model, its configuration without dropout, and a batch."""

    model: str
    fields: dict[str, Any]
    small: dict[str, Any]  # instead, to see that it runs
    batch: Callable[[Any, torch.Generator], Batch]
    own: dict[str, Any] = {}  # by which ours computes no more than the loss  # noqa: RUF012
    tuned: dict[str, Any] = {}  # by which theirs does not compute what nobody needs  # noqa: RUF012


def words(size: int, length: int, padded: bool = False) -> Callable[[Any, torch.Generator], Batch]:
    """15 % of the tokens are asked; `padded`: rows of all lengths, half of what is there is padding."""

    def batch(config: Any, draw: torch.Generator) -> Batch:
        ids = torch.randint(1000 % config.vocab_size, config.vocab_size, (size, length), generator=draw)
        mask = torch.ones_like(ids)
        if padded:
            lengths = torch.linspace(1, length, size).round().long().clamp(min=length // 16)
            mask = (torch.arange(length) < lengths[:, None]).long()
        asked = (torch.rand(ids.shape, generator=draw) < 0.15) & mask.bool()
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(~asked, IGNORED)}

    return batch


def text(size: int, length: int) -> Callable[[Any, torch.Generator], Batch]:
    def batch(config: Any, draw: torch.Generator) -> Batch:
        ids = torch.randint(0, config.vocab_size, (size, length), generator=draw)
        return {"input_ids": ids, "labels": ids.clone()}

    return batch


def pictures(size: int) -> Callable[[Any, torch.Generator], Batch]:
    def batch(config: Any, draw: torch.Generator) -> Batch:
        shape = (size, config.num_channels, config.image_size, config.image_size)
        labels = torch.randint(0, config.num_labels, (size,), generator=draw)
        return {"pixel_values": torch.randn(shape, generator=draw), "labels": labels}

    return batch


def pairs(size: int, length: int) -> Callable[[Any, torch.Generator], Batch]:
    def batch(config: Any, draw: torch.Generator) -> Batch:
        ids, labels = (torch.randint(3, config.vocab_size, (size, length), generator=draw) for _ in range(2))
        return {"input_ids": ids, "labels": labels}

    return batch


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
GPT2 = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
LEAN = {"loss_only": True}
JOBS = {
    "mlm": Job("BertForMaskedLM", NO_DROPOUT, {**SMALL, "vocab_size": 2000}, words(8, 128), own=LEAN),
    "mlm-padded": Job(
        "BertForMaskedLM", NO_DROPOUT, {**SMALL, "vocab_size": 2000}, words(8, 128, padded=True), own=LEAN
    ),
    "clm": Job(
        "GPT2LMHeadModel",
        GPT2,
        {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 2000},
        text(4, 256),
        own=LEAN,
        tuned={"use_cache": False},
    ),
    "vit": Job("ViTForImageClassification", NO_DROPOUT, {**SMALL, "image_size": 64}, pictures(8)),
    "t5": Job(
        "T5ForConditionalGeneration",
        {"dropout_rate": 0.0, "decoder_start_token_id": 0},
        {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 2, "d_kv": 32, "vocab_size": 2000},
        pairs(8, 128),
        own=LEAN,
        tuned={"use_cache": False},
    ),
}

# ---------------------------------------------------------------------------------------------------------------------
# Arms


class Arm:
    """A model and its optimiser, at work on one batch."""

    def __init__(self, model: PreTrainedModel, batch: Batch, options: dict, precision: str, kernels: str, fused: bool):
        self.model, self.batch, self.options = model.train(), batch, options
        self.precision, self.kernels = precision, kernels
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused or None)

    def forward(self) -> torch.Tensor:
        device = self.batch["labels"].device.type
        half = torch.autocast(device, torch.bfloat16) if self.precision == "bf16" else nullcontext()
        with half:
            return self.model(**self.batch, **self.options).loss

    def backward(self) -> tuple[float, float]:
        """Loss, and norm of the gradient."""
        set_kernels(self.kernels)
        loss = self.forward()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        return float(loss), float(norm)

    def step(self) -> float:
        """Seconds."""
        set_kernels(self.kernels)
        synchronize()
        start = time.perf_counter()
        self.forward().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronize()
        return time.perf_counter() - start


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def fast_kernels(work: Callable[[], Any], device: str) -> str:
    """Those that a training run of ours would take here."""
    return choose_kernels("auto", torch.device(device), None, work)


def make_arms(name: str, asked: argparse.Namespace, folder: Path, wanted: tuple[str, ...]) -> dict[str, Arm]:
    """All from one file: those of transformers, and ours."""
    job, device = JOBS[name], asked.device
    kind = getattr(transformers, job.model)
    config = kind.config_class(**{**job.fields, **(job.small if asked.quick else {})})
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    batch = {key: value.to(device) for key, value in job.batch(config, torch.Generator().manual_seed(0)).items()}

    def arm(whose: str, kernels: str) -> Arm:
        model = conversion.load(folder) if whose == OURS else kind.from_pretrained(folder)
        options = {OURS: job.own, TUNED: job.tuned, DEFAULT: {}}[whose]
        return Arm(model.to(device), batch, options, asked.precision, kernels, fused=whose != DEFAULT)

    made = {whose: arm(whose, "torch's") for whose in wanted}
    chosen = fast_kernels(next(iter(made.values())).backward, device) if asked.precision == "no" else "torch's"
    for whose, one in made.items():
        one.optimizer.zero_grad()
        one.kernels = "torch's" if whose == DEFAULT else chosen
    return made


OURS, DEFAULT, TUNED = "ours", "default", "tuned"
ARMS = (DEFAULT, TUNED, OURS)

# ---------------------------------------------------------------------------------------------------------------------
# Measuring

AGREE = {"no": (1e-5, 1e-4), "bf16": (2e-3, 2e-2)}  # relative differences of losses and of gradients' norms


def gate(arms: dict[str, Arm], precision: str) -> dict[str, Any]:
    """Whether all compute the same."""
    found = {whose: arm.backward() for whose, arm in arms.items()}
    for arm in arms.values():
        arm.optimizer.zero_grad()
    loss, norm = found[DEFAULT]
    differences = [max(abs(own[0] - loss) / loss for own in found.values())]
    differences.append(max(abs(own[1] - norm) / norm for own in found.values()))
    passed = all(one <= most for one, most in zip(differences, AGREE[precision]))
    return {"loss_differs": differences[0], "norm_differs": differences[1], "agree": passed}


def interval(ratios: list[float], times: int = 2000) -> tuple[float, float]:
    """Of the median, 95 %, by drawing the pairs again."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(times))
    return medians[int(0.025 * times)], medians[int(0.975 * times)]


def take_turns(arms: dict[str, Arm], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step; first one way round, then the other. A first step of each does not count."""
    for arm in arms.values():
        arm.step()
    seconds: dict[str, list[float]] = {whose: [] for whose in arms}
    for place in range(rounds):
        for whose in arms if place % 2 == 0 else reversed(arms):
            seconds[whose].append(arms[whose].step())
    return seconds


def measured_steps(name: str, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    arms = make_arms(name, asked, folder, ARMS)
    row: dict[str, Any] = {"job": name, "precision": asked.precision, **gate(arms, asked.precision)}
    if not row["agree"]:
        return row
    seconds = take_turns(arms, asked.rounds)
    row |= {"kernels": arms[OURS].kernels, "seconds": {key: statistics.median(one) for key, one in seconds.items()}}
    for whose in (DEFAULT, TUNED):
        ratios = [theirs / ours for theirs, ours in zip(seconds[whose], seconds[OURS])]
        row[f"against_{whose}"] = {"median": statistics.median(ratios), "interval": interval(ratios)}
    del arms
    gc.collect()
    row["memory"] = {whose: memory_alone(name, whose, asked, folder) for whose in ARMS}
    for whose in (DEFAULT, TUNED):
        row[f"memory_of_{whose}"] = row["memory"][OURS] / row["memory"][whose]
    return row


# ---------------------------------------------------------------------------------------------------------------------
# Memory, in a process of its own: most of it above what the process has after its imports


def memory_alone(name: str, whose: str, asked: argparse.Namespace, folder: Path) -> int:
    flags = ["--precision", asked.precision, "--device", asked.device, *(["--quick"] if asked.quick else [])]
    command = [sys.executable, "-W", "ignore", __file__, name, *flags, "--memory_of", whose, str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def memory_here(name: str, whose: str, asked: argparse.Namespace, folder: Path) -> int:
    gc.collect()
    if asked.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
        before = resident("VmRSS")
    arm = make_arms(name, asked, folder, (whose,))[whose]
    for _ in range(2):
        arm.step()
    if asked.device != "cpu":
        return torch.cuda.max_memory_allocated() - before
    return resident("VmHWM") - before


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


# ---------------------------------------------------------------------------------------------------------------------
# The page


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| job | precision | against default | against tuned | seconds a step | memory of default | of tuned |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if not row["agree"]:
            lines.append(f"| {row['job']} | {row['precision']} | void: the two do not agree | | | | |")
            continue
        ratios = " | ".join(
            f"**{row[key]['median']:.2f}** ({row[key]['interval'][0]:.2f} to {row[key]['interval'][1]:.2f})"
            for key in ("against_default", "against_tuned")
        )
        seconds = ", ".join(f"{row['seconds'][whose]:.2f}" for whose in ARMS)
        memory = f"{row['memory_of_default']:.2f} | {row['memory_of_tuned']:.2f}"
        lines.append(f"| {row['job']} | {row['precision']} | {ratios} | {seconds} | {memory} |")
    return "\n".join(lines)


def refuse_busy(asked: argparse.Namespace) -> None:
    load = os.getloadavg()[0]
    if load > IDLE and not asked.busy:
        sys.exit(
            f"error: the load is {load:.2f}, and what is measured beside other work is worth little; --busy: anyway"
        )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument("jobs", nargs="*", help=f"of {', '.join(JOBS)}; default: all of them")
    made.add_argument("--precision", choices=("no", "bf16"), nargs="+", default=["no", "bf16"])
    made.add_argument("--device", default="cpu")
    made.add_argument("--rounds", type=int, default=10, help="steps of each arm")
    made.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    made.add_argument("--quick", action="store_true", help="small models; nothing is written")
    made.add_argument("--busy", action="store_true", help="measure whatever else the machine does")
    made.add_argument("--memory_of", nargs=2, help=argparse.SUPPRESS)
    return made


def main() -> None:
    asked = parser().parse_args()
    unknown = [name for name in asked.jobs if name not in JOBS]
    if unknown:
        sys.exit(f"error: there is no job {unknown[0]!r}; there are {', '.join(JOBS)}")
    torch.set_num_threads(asked.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    precisions = asked.precision
    if asked.memory_of:
        whose, folder = asked.memory_of
        asked.precision = precisions[0]
        return print(memory_here(asked.jobs[0], whose, asked, Path(folder)))
    refuse_busy(asked)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"steps": []}
    for name in asked.jobs or JOBS:
        for asked.precision in precisions:
            with tempfile.TemporaryDirectory() as folder:
                row = measured_steps(name, asked, Path(folder))
            row |= {"threads": asked.threads, "load": os.getloadavg()[0], "device": asked.device}
            print(table([row]).splitlines()[-1], flush=True)
            if not asked.quick:
                found["steps"] = [
                    one for one in found["steps"] if one["job"] != name or one["precision"] != asked.precision
                ]
                found["steps"].append(row)
                found["versions"] = versions()
                replace(RESULTS, json.dumps(found, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
