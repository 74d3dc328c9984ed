"""Does this machine train with several processes as with one? A minute's answer before a long run:

    python scripts/smoke.py --num_processes 8                                  # DDP on 8 GPUs, or processors with gloo
    python scripts/smoke.py --num_processes 8 --config_file recipes/accelerate/fsdp2.yaml

The same steps of a small model, once in one process and once dealt to several, with the same samples in a step: prints
the largest difference of the loss curve and of the final weights, and fails where it is too large.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from triune.training.report import read


PER_DEVICE, STEPS = 4, 20
ALLOWED = 1e-3  # of the curve, relative: other sums in float32 are 1e-6, GPU kernels and AdamW's first steps add to it
FLAGS = {
    **{
        "task": "causal_lm",
        "tokenizer_type": "characters",
        "vocab_size": 60,
        "max_seq_length": 32,
        "max_steps": STEPS,
        "warmup_steps": 5,
    },
    **{"config": "{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, position: rotary}"},
    **{"logging_steps": 1, "eval_steps": 10, "mixed_precision": "no", "fast_fp32": "no"},
}
LINES = [
    f"{number} times {other} is {number * other}, and {other} more is {number * other + other}.\n\n"
    for number in range(40)
    for other in range(40)
]


def command(processes: int, config_file: str | None) -> list[str]:
    """How so many processes are started: `accelerate launch --cpu` starts one, whatever it is told."""
    if processes == 1:
        return [sys.executable]
    if torch.cuda.is_available():
        chosen = ["--config_file", config_file] if config_file else ["--multi_gpu"]
        return [sys.executable, "-m", "accelerate.commands.launch", *chosen, "--num_processes", str(processes)]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


def train(folder: Path, text: Path, start: list[str], per_device: int) -> None:
    flags = {**FLAGS, "train_file": text, "output_dir": folder, "per_device_train_batch_size": per_device}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    subprocess.run([*start, "scripts/train.py", *words], check=True, stdout=subprocess.DEVNULL)


def losses(folder: Path) -> torch.Tensor:
    return torch.tensor([record["loss"] for record in read(folder)], dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--num_processes", type=int, required=True)
    parser.add_argument("--config_file", help="a launch configuration, on GPUs: recipes/accelerate/fsdp2.yaml")
    asked = parser.parse_args()
    if asked.num_processes < 2:
        sys.exit(f"error: --num_processes={asked.num_processes} must be at least 2")
    if asked.config_file and not torch.cuda.is_available():
        sys.exit("error: --config_file needs GPUs: on processors accelerate knows DDP only")
    with tempfile.TemporaryDirectory() as name:
        one, many, text = Path(name, "one"), Path(name, "many"), Path(name, "text.txt")
        text.write_text("".join(LINES))
        train(one, text, command(1, None), PER_DEVICE * asked.num_processes)
        train(many, text, command(asked.num_processes, asked.config_file), PER_DEVICE)
        ran = json.loads((many / "environment.json").read_text())
        curve = float(((losses(one) - losses(many)).abs() / losses(one)).max())
        weights = [load_file(folder / "model" / "model.safetensors") for folder in (one, many)]
    difference = max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0])
    print(
        f"{ran['world']} processes ({ran['launch']}) against 1, {STEPS} steps on {ran['device']}: largest difference"
    )
    print(f"  of the loss curve {curve:.1e} (relative), of the final weights {difference:.1e}")
    if ran["world"] != asked.num_processes:
        sys.exit(f"error: {ran['world']} processes ran, and {asked.num_processes} were asked for")
    if not curve < ALLOWED:
        sys.exit(f"error: more than {ALLOWED:g}: these processes do not train as one")


if __name__ == "__main__":
    main()
