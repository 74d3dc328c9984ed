"""Measure a saved model of the family on held-out data, as the last evaluation of a run does:

    python scripts/eval.py runs/bert/model
    python scripts/eval.py runs/bert/model --train_file my.txt --output_file metrics.json
    python scripts/eval.py user/model recipes/bert.yaml
    torchrun --nproc_per_node 2 scripts/eval.py runs/bert/model

The task follows from the model, a folder or a Hub id; the data from flags, else the recipe, else the run that the
model lies in, whose last numbers then come out again. The flags are those of data and evaluation in `train.py --help`.
Of data without a validation side a share is held out, as in training, and that is what is measured.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from accelerate import PartialState

from triune.configuration.configuration_triune import FamilyConfig
from triune.training.arguments import Arguments, script_parser
from triune.training.console import Console, before_after, silence
from triune.training.environment import TORCH, choose_threads, set_kernels, versions
from triune.training.evaluation import FLAGS, answers, changed, check_classes, judged, recorded_page, run_of
from triune.training.metrics import collapsed
from triune.training.prediction import load_config, load_model, load_saved_processor, locate, task_of
from triune.training.report import plain, replace
from triune.training.run import header, make_accelerator, make_task


def parser() -> argparse.ArgumentParser:
    flags = ", ".join(f"--{name}" for name in sorted(FLAGS))
    made = script_parser(__doc__, "eval.py MODEL [recipe.yaml] [--flag value ...]", more=f"\n{flags}")
    made.add_argument("--output_file", help="write metrics, baselines, data, model and versions there, as JSON")
    made.add_argument("--json", action="store_true", help="print the same to stdout, and nothing else")
    return made


def split(words: list[str]) -> tuple[str, str | None, list[str]]:
    """The model, the recipe, and the flags behind them."""
    count = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    if not 1 <= count <= 2:
        parser().error(f"MODEL and at most one recipe come first, got {words[:count] or 'none'}")
    model, recipe = [*words[:count], None][:2]
    return locate(model), recipe, words[count:]


def target(path: str | None) -> Path | None:
    """The file to write, checked before there is anything to lose."""
    if path is None:
        return None
    if Path(path).is_dir():
        raise ValueError(f"output_file={path!r} is a folder: name a file in it, such as {Path(path, 'metrics.json')}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return Path(path)


def evaluate(model: str, arguments: Arguments, config: FamilyConfig, quiet: bool) -> dict[str, Any]:
    """Build what a run builds, ask the model once, and show it. Gives what is written down."""
    settings, run = arguments.training, run_of(model)
    page = recorded_page(run)
    accelerator = make_accelerator(settings)
    console = Console(main=accelerator.is_main_process and not quiet)
    threads = choose_threads(page.get("threads") if accelerator.num_processes == 1 else None)
    console.header({**header(accelerator, threads), "model": model})
    task = make_task(arguments)
    for text in task.describe():
        console.line("data", text)
    check_classes(task, config)
    as_trained = page if settings.fast_fp32 == "auto" and accelerator.device.type == "cpu" else {}
    attention = arguments.model.attn_implementation or as_trained.get("attention")
    network = load_model(model, task.head, attention).to(accelerator.device)
    task.prepare(network.config)
    if settings.torch_compile:
        network.compile()
    set_kernels(as_trained.get("kernels", TORCH))
    network = accelerator.prepare_model(network, evaluation_mode=True)
    records = answers(task, network, accelerator, settings.per_device_eval_batch_size, full=True)
    metrics, baselines = task.measure(records), task.baselines()
    console.heading(f"{task.name} on all of the held-out data: {len(records.label):,} answers")
    for text in task.preview(network) if accelerator.is_main_process else ():
        console.show(*console.hanging(text))
    console.end(before_after({}, metrics, baselines), title="evaluation")
    for warning in filter(None, (collapsed(records), changed(arguments, run, task.fingerprint))):
        console.warning(warning)
    return {
        "model": model,
        "task": task.name,
        "metrics": {name: plain(value) for name, value in metrics.items()},
        "baselines": {
            name: {other: plain(value) for other, value in reached.items()} for name, reached in baselines.items()
        },
        "answers": len(records.label),
        "data": {"fingerprint": task.fingerprint, "description": task.describe()},
        "arguments": {name: value for name, value in arguments.as_dict().items() if name in FLAGS},
        "versions": versions(),
    }


def run(argv: list[str]) -> None:
    own, words = parser().parse_known_args(argv)
    model, recipe, flags = split(words)
    file, config = target(own.output_file), load_config(model)
    arguments = judged(model, config, recipe, flags)
    if arguments.model.task is None:
        arguments.model.task = task_of(config, model)
    if not arguments.model.tokenizer_name:
        load_saved_processor(model, config)  # training would make one
    found = json.dumps(evaluate(model, arguments, config, own.json), indent=1)
    if PartialState().is_main_process:
        if file:
            replace(file, found + "\n")
        if own.json:
            print(found)


def main(argv: list[str]) -> None:
    silence()
    try:
        run(argv)
    except (ValueError, OSError) as error:
        main_process = os.environ.get("RANK", "0") == "0"
        sys.exit(f"error: {error}" if main_process else 2)


if __name__ == "__main__":
    main(sys.argv[1:])
    PartialState().destroy_process_group()
