"""Training steps: forward, backward, clipping, optimiser; and the memory that they take.

First the gate: without dropout, loss and norm of the gradient must agree, or the row is void. Then the arms take
turns, two steps at a time after one that does not count. Transformers runs twice, as a user gets it (`default`: AdamW
as torch makes it, kernels and memory as torch and the C library have them) and with the switches that Triune sets for
the whole process (`tuned`: fused AdamW, no cache, memory kept between steps, oneDNN's kernels where it is faster with
them). Memory is measured in processes of their own.
"""

import argparse
import ctypes
import gc
import json
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
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

import triune.conversion as conversion
import triune.modeling as modeling
from suites.measuring import against, markdown, matmul_peak, shown, synchronize, take_turns
from triune.training.environment import TORCH, Kernels, candidates, choose_kernels, keep_memory, set_kernels


RUN = Path(__file__).resolve().parent.parent / "run.py"
Batch = dict[str, torch.Tensor]
IGNORED = -100

# ---------------------------------------------------------------------------------------------------------------------
# Jobs


class Job(NamedTuple):
    """What both compute: transformers' model, its configuration without dropout, and a batch."""

    model: str
    fields: dict[str, Any]
    small: dict[str, Any]  # instead, to see that it runs
    batch: Callable[[Any, torch.Generator], Batch]
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
LEAN = {"loss_only": True}  # by which ours computes no more than the loss
JOBS = {
    "mlm": Job("BertForMaskedLM", NO_DROPOUT, {**SMALL, "vocab_size": 2000}, words(8, 128)),
    "mlm-padded": Job("BertForMaskedLM", NO_DROPOUT, {**SMALL, "vocab_size": 2000}, words(8, 128, padded=True)),
    "clm": Job(
        "GPT2LMHeadModel",
        GPT2,
        {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 2000},
        text(4, 256),
        tuned={"use_cache": False},
    ),
    "vit": Job(
        "ViTForImageClassification", {**NO_DROPOUT, "num_labels": 1000}, {**SMALL, "image_size": 64}, pictures(8)
    ),
    "t5": Job(
        "T5ForConditionalGeneration",
        {"dropout_rate": 0.0, "decoder_start_token_id": 0},
        {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 2, "d_kv": 32, "vocab_size": 2000},
        pairs(8, 128),
        tuned={"use_cache": False},
    ),
}

# ---------------------------------------------------------------------------------------------------------------------
# Arms


def ours(folder: Path) -> PreTrainedModel:
    """From the same file, but saved in between: so that memory is not that of a conversion."""
    saved = folder / "ours"
    if not saved.is_dir():
        conversion.load(folder).save_pretrained(saved)
    kind = getattr(modeling, json.loads((saved / "config.json").read_text())["architectures"][0])
    return kind.from_pretrained(saved)


OURS, DEFAULT, TUNED = "ours", "default", "tuned"
ARMS = (DEFAULT, TUNED, OURS)


class Arm:
    """A model and its optimiser, at work on one batch."""

    def __init__(self, whose: str, model: PreTrainedModel, batch: Batch, options: dict, precision: str):
        self.whose, self.model, self.batch, self.options = whose, model.train(), batch, options
        self.precision, self.chosen, self.words = precision, Kernels(), TORCH
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True if whose != DEFAULT else None)

    def forward(self) -> torch.Tensor:
        device = self.batch["labels"].device.type
        half = torch.autocast(device, torch.bfloat16) if self.precision == "bf16" else nullcontext()
        with half:
            return self.model(**self.batch, **self.options).loss

    def backward(self) -> tuple[float, float]:
        """Loss, and norm of the gradient."""
        loss = self.forward()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        return loss.item(), norm.item()

    def use(self, kernels: Kernels) -> None:
        set_kernels(kernels.products)
        if kernels.attention:
            self.model.set_attn_implementation(kernels.attention)

    def choose(self, chosen: Kernels | None = None) -> None:
        """What a training run would take here: of ours all that ours chooses from, of theirs whose products."""
        self.enter()  # memory that is kept moves what is fastest
        if chosen is not None:
            self.chosen = chosen
            return self.use(chosen)
        exact = self.precision == "no" and self.batch["labels"].device.type == "cpu"
        attentions = ("sdpa", "eager") if self.whose == OURS and self.batch["labels"].device.type == "cpu" else ()
        those = [Kernels()] if self.whose == DEFAULT else candidates(exact, attentions)
        self.chosen, self.words = choose_kernels(those, self.backward, self.use)
        self.use(self.chosen)
        return self.optimizer.zero_grad()

    def enter(self) -> None:
        """What is set for a whole process, as this arm has it."""
        set_kernels(self.chosen.products)
        give_memory_back() if self.whose == DEFAULT else keep_memory()

    def step(self) -> float:
        """Seconds."""
        synchronize()
        start = time.perf_counter()
        self.forward().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronize()
        return time.perf_counter() - start

    def turn(self) -> float:
        """Of two steps the mean, after one that does not count."""
        self.enter()
        self.step()
        return (self.step() + self.step()) / 2


def give_memory_back() -> None:
    """As a process does by itself that has freed something large: what the C library's thresholds then have become."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(-3, 32 * 2**20)
        library.mallopt(-1, 64 * 2**20)
        library.malloc_trim(0)


def make_arms(
    name: str, asked: argparse.Namespace, folder: Path, wanted: tuple[str, ...] = ARMS, chosen: Kernels | None = None
) -> dict[str, Arm]:
    """All from one file: those of transformers, and ours."""
    job, device = JOBS[name], asked.device
    kind = getattr(transformers, job.model)
    config = kind.config_class(**{**job.fields, **(job.small if asked.quick else {})})
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    batch = {key: value.to(device) for key, value in job.batch(config, torch.Generator().manual_seed(0)).items()}
    made = {}
    for whose in wanted:
        model = ours(folder) if whose == OURS else kind.from_pretrained(folder)
        options = {OURS: LEAN, TUNED: job.tuned, DEFAULT: {}}[whose]
        made[whose] = Arm(whose, model.to(device), batch, options, asked.precision)
        made[whose].choose(chosen)
    return made


# ---------------------------------------------------------------------------------------------------------------------
# Measuring

PRECISIONS = {"no": "float32", "bf16": "bfloat16"}
AGREE = {"no": (1e-5, 1e-4), "bf16": (2e-3, 2e-2)}  # relative differences of losses and of gradients' norms


def gate(arms: dict[str, Arm], precision: str) -> dict[str, Any]:
    """Whether all compute the same."""
    found = {}
    for whose, arm in arms.items():
        arm.enter()
        found[whose] = arm.backward()
    for arm in arms.values():
        arm.optimizer.zero_grad()
    loss, norm = found[DEFAULT]
    differences = [max(abs(own[0] - loss) / loss for own in found.values())]
    differences.append(max(abs(own[1] - norm) / norm for own in found.values()))
    passed = all(one <= most for one, most in zip(differences, AGREE[precision]))
    return {"loss_differs": differences[0], "norm_differs": differences[1], "agree": passed}


def measured(name: str, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    arms = make_arms(name, asked, folder)
    row: dict[str, Any] = {"job": name, "precision": asked.precision, **gate(arms, asked.precision)}
    if not row["agree"]:
        return row
    seconds = take_turns({whose: arm.turn for whose, arm in arms.items()}, asked.rounds)
    row["kernels"] = {whose: arm.words for whose, arm in arms.items()}
    row["seconds"] = {whose: statistics.median(one) for whose, one in seconds.items()}
    for whose in (DEFAULT, TUNED):
        row[f"against_{whose}"] = against(seconds[whose], seconds[OURS])
    row |= of_the_peak(arms[OURS], row["seconds"][OURS])
    chosen = {whose: arm.chosen for whose, arm in arms.items()}
    del arms
    gc.collect()
    row["memory"] = {whose: memory_alone(name, whose, chosen[whose], asked, folder) for whose in ARMS}
    for whose in (DEFAULT, TUNED):
        row[f"memory_of_{whose}"] = row["memory"][OURS] / row["memory"][whose]
    return row


def of_the_peak(arm: Arm, seconds: float) -> dict[str, float]:
    """How much of what the machine can multiply a step multiplies."""
    with FlopCounterMode(display=False) as counter:
        arm.backward()
    peak = matmul_peak(arm.precision, arm.batch["labels"].device.type)
    flops = counter.get_total_flops()
    return {"flops": flops, "matmul_peak": peak, "share_of_peak": flops / seconds / peak}


# ---------------------------------------------------------------------------------------------------------------------
# Memory, in a process of its own: most of it above what the process has after its imports


def memory_alone(name: str, whose: str, chosen: Kernels, asked: argparse.Namespace, folder: Path) -> int:
    flags = ["--precision", asked.precision, "--device", asked.device, *(["--quick"] if asked.quick else [])]
    flags += ["--threads", str(asked.threads)]
    of = ["--memory_of", whose, str(folder), chosen.products, chosen.attention or ""]
    command = [sys.executable, "-W", "ignore", RUN, "steps", name, *flags, *of]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def memory_here(name: str, whose: str, chosen: Kernels, asked: argparse.Namespace, folder: Path) -> int:
    gc.collect()
    if asked.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
        before = resident("VmRSS")
    if whose != DEFAULT:
        keep_memory()
    arm = make_arms(name, asked, folder, (whose,), chosen)[whose]
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
    titles = ["job", "precision", "against default", "against tuned", "seconds: default, tuned, ours"]
    titles += ["memory of default's", "of tuned's", "of the matmul peak"]

    def cells(row):
        precision = PRECISIONS[row["precision"]]
        if not row["agree"]:
            return [row["job"], precision, "void: the two do not agree", *[""] * 5]
        ratios = [shown(row[key]) for key in ("against_default", "against_tuned")]
        seconds = ", ".join(f"{row['seconds'][whose]:.2f}" for whose in ARMS)
        memory = [f"{row['memory_of_default']:.2f}", f"{row['memory_of_tuned']:.2f}"]
        return [row["job"], precision, *ratios, seconds, *memory, f"{row['share_of_peak']:.0%}"]

    return markdown(titles, map(cells, rows))


def key(row: dict[str, Any]) -> tuple:
    return row["job"], row["precision"], row["device"]


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--memory_of", nargs=4, help=argparse.SUPPRESS)


def rows(name: str, asked: argparse.Namespace):
    precisions = asked.precision
    if asked.memory_of:
        whose, folder, products, attention = asked.memory_of
        asked.precision = precisions[0]
        print(memory_here(name, whose, Kernels(products, attention or None), asked, Path(folder)))
        return
    for asked.precision in precisions:
        with tempfile.TemporaryDirectory() as folder:
            yield measured(name, asked, Path(folder))
    asked.precision = precisions
