"""Ask a model of the family: fill in hidden words, continue a text, write one from another, say what an image shows.

    python scripts/predict.py runs/bert/model "The with statement is used to [MASK] a block."
    python scripts/predict.py runs/nsp/model --file pairs.tsv
    python scripts/predict.py runs/gpt/model "The with statement" --max_new_tokens 50
    python scripts/predict.py runs/names/model "Return the absolute value of the argument." --num_beams 4
    python scripts/predict.py runs/t5/model "The <extra_id_0> statement opens <extra_id_1>."
    python scripts/predict.py runs/vit/model image.png folder/ --json
    python scripts/predict.py runs/clip/model image.png --labels "red square, blue circle"
    python scripts/predict.py runs/mae/model image.png --output_dir drawings
    python scripts/predict.py user/model --file lines.txt

What is asked follows from the model, a folder or a Hub id. Inputs are the arguments, the lines of `--file`, or those
of stdin. A continuation is drawn at random, the same for the same --seed; --temperature 0 takes the likeliest token.
Of two texts with a TAB between them a model of pairs says whether the second follows.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterable


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from triune.training import prediction
from triune.training.arguments import parse_words, script_parser
from triune.training.console import silence


TEMPERATURE = "below 1 likelier tokens are drawn more often (continue: 0.8, write: 0); 0: always the likeliest"
OPTIONS = {
    "top_k": {"type": int, "help": "answers shown of each mask (5), else (3); or draw from so many tokens (200)"},
    "max_new_tokens": {"type": int, "help": "continue, write: at most so many tokens (100)"},
    "temperature": {"type": float, "help": TEMPERATURE},
    "top_p": {"type": float, "help": "draw from the likeliest tokens that together have this probability (1)"},
    "seed": {"type": int, "help": "what is drawn, and what is hidden of an image, follows from it (0)"},
    "num_beams": {"type": int, "help": "write: look for the likeliest text with so many beams (1)"},
    "labels": {"action": "append", "help": "what an image may show, with commas between; may be repeated"},
    "template": {"action": "append", "help": "the sentence around a label (a picture of {}); may be repeated"},
    "output_dir": {"help": "of a model that draws what is hidden: a PNG of each image goes there"},
}


def parser() -> argparse.ArgumentParser:
    made = script_parser(__doc__, "predict.py MODEL [TEXT or IMAGE ...] [--file FILE] [--json] [--flag value]")
    made.add_argument("model", metavar="MODEL", help="a model folder, a run folder or a Hub id")
    made.add_argument("inputs", nargs="*", metavar="TEXT or IMAGE", help="texts; or images and folders of images")
    made.add_argument("--file", help="a file whose lines are the inputs")
    made.add_argument("--json", action="store_true", help="an object of JSON a line")
    made.add_argument("--batch_size", type=int, default=32, help="inputs of one forward pass (32)")
    for name, how in OPTIONS.items():
        made.add_argument(f"--{name}", **how)
    return made


def parse(argv: list[str]) -> argparse.Namespace:
    arguments = parse_words(parser(), argv, (*OPTIONS, "file", "json", "batch_size"))
    if arguments.file and arguments.inputs:
        raise ValueError(f"file={arguments.file!r} and inputs on the command line: give one of them")
    return arguments


def inputs_of(arguments: argparse.Namespace, task: str) -> Iterable[str]:
    """Arguments, lines of a file, or lines of stdin."""
    if arguments.inputs:
        found = iter(arguments.inputs)
    else:
        found = prediction.lines_of(arguments.file) if arguments.file else prediction.not_blank(sys.stdin)
    if prediction.WAYS[task].reads == "images":
        return prediction.image_paths(found)
    return prediction.plain_texts(found) if arguments.inputs else found


def separate(values: Iterable[str]) -> Iterable[str]:
    """Each may be several with commas between them."""
    return (part.strip() for value in values for part in value.split(",") if part.strip())


def predict(arguments: argparse.Namespace) -> int:
    """Print an answer to each input; gives the exit status."""
    saved = prediction.load(prediction.locate(arguments.model))
    if not arguments.inputs and not arguments.file and sys.stdin.isatty():
        parser().print_usage()
        print(f"for example: python scripts/predict.py {arguments.model} {prediction.example(saved)}")
        return 2
    given = {name: getattr(arguments, name) for name in OPTIONS if getattr(arguments, name) is not None}
    if "labels" in given:
        given["labels"] = list(separate(given["labels"]))
    inputs = iter(inputs_of(arguments, saved.task))
    first = next(inputs, None)
    if first is None:
        raise ValueError(f"nothing to answer: {arguments.file or 'stdin'} has no line that is not blank")
    failed = False
    found = prediction.answers(saved, itertools.chain([first], inputs), given, arguments.batch_size)
    for number, answer in enumerate(found):
        print(json.dumps(answer) if arguments.json else prediction.show(saved, answer, number), flush=True)
        failed |= "error" in answer
    return int(failed)


def main(argv: list[str]) -> int:
    silence()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal may not know what a model says
    try:
        return predict(parse(argv))
    except ValueError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
