"""One backbone, three models, in under a minute on a laptop: `make demo`, or `python scripts/demo.py`.

Three configurations that differ in one field each are trained for a few seconds: a masked and a causal language model
on the Zen of Python, which they are meant to learn by heart, and an image model on drawn shapes, tested on shapes it
has not seen. Each is then saved with its code and loaded by a process that has never heard of Triune. No network.
"""

import argparse
import codecs
import contextlib
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers

from triune.configuration import TriuneConfig
from triune.modeling import TriuneForCausalLM, TriuneForImageClassification, TriuneForMaskedLM


SIZES = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
PAD, MASK, END = 0, 1, 2
SHAPES = ["circle", "square", "cross"]

# A process without Triune: it sees a folder, the two libraries, and nothing else.
STRANGER = """
import sys, torch, transformers
sys.modules["triune"] = None  # whatever asks for it fails
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
folder, auto_class = sys.argv[1:]
model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()
inputs, expected = torch.load(f"{folder}/golden.pt", weights_only=True)
with torch.no_grad():
    print((model(**inputs).logits - expected).abs().max().item())
"""


# ---------------------------------------------------------------------------------------------------------------------
# Data: 19 lines of text, and pictures of three shapes


def zen_of_python() -> list[list[str]]:
    """The aphorisms of `import this`, in words."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    lines = codecs.decode(this.s, "rot13").splitlines()[2:]
    return [line.lower().rstrip(".!").split() for line in lines]


class Words:
    def __init__(self, lines: list[list[str]]):
        self.names = ["[PAD]", "[MASK]", "[END]", *sorted({word for line in lines for word in line})]
        self.ids = {word: index for index, word in enumerate(self.names)}
        self.length = max(map(len, lines)) + 1

    def encode(self, lines: list[list[str]]) -> dict[str, torch.Tensor]:
        rows = [[self.ids[word] for word in line] + [END] for line in lines]
        ids = torch.tensor([row + [PAD] * (self.length - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def draw(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy 16x16 pictures of a circle, a square or a cross, of any size, anywhere: (count, 1, 16, 16) and labels."""
    labels = torch.randint(0, 3, (count,), generator=generator)
    radius = torch.rand(count, 1, 1, generator=generator) * 2 + 4
    centre = 6 + torch.rand(2, count, 1, 1, generator=generator) * 3
    y, x = (torch.arange(16.0).view(shape) - middle for shape, middle in zip([(1, 16, 1), (1, 1, 16)], centre))
    outlines = [
        ((x**2 + y**2).sqrt() - radius).abs() < 0.8,
        (torch.maximum(x.abs(), y.abs()) - radius).abs() < 0.8,
        (torch.minimum(x.abs(), y.abs()) < 0.8) & (torch.maximum(x.abs(), y.abs()) < radius),
    ]
    pictures = torch.stack(outlines).float()[labels, torch.arange(count)]
    noise = torch.randn(count, 16, 16, generator=generator) * 0.15
    return (pictures + noise)[:, None], labels


# ---------------------------------------------------------------------------------------------------------------------
# Training: one loop for all three


def train(model, batches, steps: int) -> str:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    start, first = time.perf_counter(), None
    for _ in range(steps):
        loss = model(**next(batches)).loss
        first = loss.item() if first is None else first
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    return f"loss {first:.2f} -> {loss.item():.2f} in {steps} steps, {time.perf_counter() - start:.0f} s"


def masked_batches(batch, generator):
    while True:
        ids = batch["input_ids"]
        chosen = (torch.rand(ids.shape, generator=generator) < 0.3) & (ids > END)
        yield {**batch, "input_ids": ids.masked_fill(chosen, MASK), "labels": ids.masked_fill(~chosen, -100)}


def causal_batches(batch):
    while True:
        yield {**batch, "labels": batch["input_ids"].masked_fill(batch["input_ids"] == PAD, -100)}


def picture_batches(generator):
    while True:
        pictures, labels = draw(32, generator)
        yield {"pixel_values": pictures, "labels": labels}


# ---------------------------------------------------------------------------------------------------------------------
# What they say


@torch.no_grad()
def fill(model, words: Words, line: str) -> str:
    batch = words.encode([[("[MASK]" if word == "___" else word) for word in line.split()]])
    probabilities = model(**batch).logits[0].softmax(-1)
    place = batch["input_ids"][0].tolist().index(MASK)
    best = probabilities[place].argmax().item()
    return f"{line.replace('___', '[' + words.names[best] + ']')}   ({probabilities[place, best]:.0%})"


def continue_line(model, words: Words, prompt: str) -> str:
    ids = torch.tensor([[words.ids[word] for word in prompt.split()]])
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=words.length - ids.shape[1], do_sample=False)
    new = [words.names[index] for index in out[0, ids.shape[1] :].tolist() if index not in (END, PAD)]
    return f"{prompt} | {' '.join(new)}"


def picture_rows(picture: torch.Tensor) -> list[str]:
    """Two pixels a character, from dark to light."""
    levels = (picture[0].clamp(0, 1) * 1.999).long()
    return ["".join(" ▄▀█"[2 * top + bottom] for top, bottom in zip(*pair)) for pair in levels.view(8, 2, 16).tolist()]


@torch.no_grad()
def classify(model, generator) -> str:
    pictures, labels = draw(600, generator)
    guesses = model(pictures).logits.softmax(-1)
    right = (guesses.argmax(-1) == labels).float().mean().item()
    rows = zip(*(picture_rows(pictures[index]) for index in range(4)))
    captions = [f"{SHAPES[g.argmax()]} {g.max():.0%}".ljust(16) for g in guesses[:4]]
    drawn = "\n".join("  " + "   ".join(row) for row in [*rows, captions])
    return f"{drawn}\n  right on {right:.1%} of 600 pictures it has not seen (a guess: 33.3%)"


# ---------------------------------------------------------------------------------------------------------------------
# What they have in common, and what a stranger gets


def summary(models: dict) -> str:
    lines = [f"  {'':6}{'reads':>10}{'attention':>16}{'embeddings':>14}{'the stack':>14}{'head':>12}{'total':>12}"]
    for name, model in models.items():
        backbone = model.base_model
        total = model.num_parameters()
        stack = sum(p.numel() for part in (backbone.layers, backbone.norm) for p in part.parameters())
        inputs = sum(p.numel() for p in backbone.parameters()) - stack
        kinds = [model.config.embedding["type"], model.config.attention["type"]]
        head = f"{total - inputs - stack:,}" if total > inputs + stack else "tied"
        lines.append(f"  {name:6}{kinds[0]:>10}{kinds[1]:>16}{inputs:>14,}{stack:>14,}{head:>12}{total:>12,}")
    same = {tuple(type(module) for module in model.base_model.layers.modules()) for model in models.values()}
    assert len(same) == 1, "the three stacks are built from different classes"
    return "\n".join(lines)


@torch.no_grad()
def stranger_difference(model, inputs: dict, auto_class: str) -> tuple[float, list[str]]:
    """Save a model, load it in a process without Triune, and compare the logits."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        torch.save((inputs, model(**inputs).logits), Path(folder, "golden.pt"))
        command = [sys.executable, "-c", STRANGER, folder, auto_class]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        files = sorted(file.name for file in Path(folder).iterdir() if file.name != "golden.pt")
    return float(result.stdout.split()[-1]), files


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="training steps for each model (default: 400)")
    steps = parser.parse_args().steps
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    lines = zen_of_python()
    words = Words(lines)
    batch = words.encode(lines)
    text = {"vocab_size": len(words.names), "max_position_embeddings": words.length}
    text |= {"pad_token_id": PAD, "bos_token_id": END, "eos_token_id": END}
    patches = {"type": "patches", "image_size": 16, "patch_size": 4, "num_channels": 1}
    id2label = dict(enumerate(SHAPES))
    bert = TriuneForMaskedLM(TriuneConfig(**SIZES, **text))
    gpt = TriuneForCausalLM(TriuneConfig(**SIZES, **text, attention="causal"))
    vit = TriuneForImageClassification(TriuneConfig(**SIZES, embedding=patches, id2label=id2label))

    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads\n")
    print("One backbone, three models; parameters:\n" + summary({"BERT": bert, "GPT": gpt, "ViT": vit}))

    print(f"\nBERT fills the gap    {train(bert, masked_batches(batch, generator), steps)}")
    for line in ("beautiful is better than ___", "___ is better than implicit", "errors should never ___ silently"):
        print("  " + fill(bert, words, line))
    print(f"\nGPT continues         {train(gpt, causal_batches(batch), steps)}")
    for prompt in ("namespaces are", "if the implementation is hard", "now is"):
        print("  " + continue_line(gpt, words, prompt))
    print(f"\nViT names the shape   {train(vit, picture_batches(generator), steps)}")
    print(classify(vit, generator))

    print("\nSaved with its code, loaded by a process that cannot import Triune: largest difference of the logits")
    pictures, _ = draw(4, generator)
    for name, model, inputs, auto_class in (
        ("BERT", bert, batch, "AutoModelForMaskedLM"),
        ("GPT", gpt, batch, "AutoModelForCausalLM"),
        ("ViT", vit, {"pixel_values": pictures}, "AutoModelForImageClassification"),
    ):
        difference, files = stranger_difference(model, inputs, auto_class)
        print(f"  {name:5} {difference}   {auto_class}.from_pretrained(folder, trust_remote_code=True)")
    print("  the folder: " + " ".join(files))


if __name__ == "__main__":
    main()
