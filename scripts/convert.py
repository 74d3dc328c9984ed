"""Turn a published checkpoint into a Triune model, or a Triune model into a published one:

    python scripts/convert.py openai-community/gpt2 gpt2-triune --check
    python scripts/convert.py google-bert/bert-base-uncased bert --head TriuneForSequenceClassification
    python scripts/convert.py runs/bert/model stock-bert --to bert --check

SRC is a folder or a Hub id, DST a new folder, with the tokenizer or image processor beside the weights. --check loads
both again and compares what they compute, on random inputs and, of texts, on a sentence.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import triune.conversion as conversion
import triune.modeling as modeling
from triune.configuration import CONFIGS, stack_reading
from triune.conversion.files import Source
from triune.training.arguments import parse_words, script_parser
from triune.training.console import silence


NATIVE = "triune"
SENTENCE = "The quick brown fox jumps over the lazy dog."
OUTPUTS = ("logits_per_image", "prediction_logits", "logits", "last_hidden_state")
ALLOWED = 1e-4  # of the largest answer, in float32


def parser() -> argparse.ArgumentParser:
    made = script_parser(__doc__, "convert.py SRC DST [--to FAMILY] [--head HEAD] [--check]")
    made.add_argument("source", metavar="SRC", help="a folder or a Hub id")
    made.add_argument("target", metavar="DST", help="a new folder")
    made.add_argument("--to", help=f"of a Triune model: {', '.join(conversion.FAMILIES)}; default: what it came from")
    made.add_argument("--head", help="another one than the checkpoint has, by the name of a class of triune.modeling")
    made.add_argument("--revision", help="of a repository of the Hub")
    made.add_argument("--check", action="store_true", help="compare what both compute")
    return made


def own_model(source: str) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(source)
    head = next(iter(config.architectures or ()), None)
    if head not in config.heads:
        raise ValueError(f"{source!r} was saved as {head!r}, and not as one of {', '.join(config.heads)}")
    return getattr(modeling, head).from_pretrained(source).eval()


def convert(given: argparse.Namespace) -> None:
    where = Source(given.source, revision=given.revision)
    native = where.config().get("model_type") in CONFIGS
    if Path(given.target).exists() and any(Path(given.target).iterdir()):
        raise ValueError(f"{given.target!r} is not empty: name a new folder")
    if native:
        if given.head:
            raise ValueError(f"head={given.head!r}: a Triune model keeps its head; leave it out")
        model = own_model(given.source)
        conversion.save(model, given.target, family=given.to, beside=given.source)
        print(f"{given.source}: {type(model).__name__}, {len(model.state_dict())} tensors -> {given.target}")
        theirs, ours = published(given.target), model
    else:
        if given.to not in (None, NATIVE):
            raise ValueError(f"to={given.to!r}: {given.source} is a published model, which becomes a Triune model")
        ours, report = conversion.load(
            given.source, head=given.head, revision=given.revision, output_loading_info=True
        )
        ours.save_pretrained(given.target)
        where.carry(Path(given.target))
        for line in told(report):
            print(line)
        theirs = None if given.head else published(given.source, revision=given.revision)
    if given.check:
        check(given, ours, theirs)


def told(report: conversion.Report) -> list[str]:
    lines = [f"{report.family} -> {report.head}: {report.converted} tensors, all of them accounted for"]
    for what, names in (
        ("stood there twice", report.copies),
        ("of another head, left out", report.left_out),
        ("not there, starts fresh", report.fresh),
    ):
        lines += [f"  {what}: {', '.join(names)}"] if names else []
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# The check


def published(source: str, **where) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(source, **where)
    return getattr(transformers, config.architectures[0]).from_pretrained(source, **where).eval()


def inputs_of(model: PreTrainedModel, folder: str) -> dict[str, dict[str, torch.Tensor]]:
    """Random ones, and of texts a sentence, where there is a tokenizer."""
    generator, random, real = torch.Generator().manual_seed(0), {}, {}
    texts, images = (stack_reading(model.config, kind) for kind in ("tokens", "patches"))
    if texts:
        length = min(16, texts.max_position_embeddings)
        random["input_ids"] = torch.randint(3, texts.vocab_size, (2, length), generator=generator)
        if (Path(folder) / "tokenizer_config.json").is_file():
            real |= AutoTokenizer.from_pretrained(folder)(SENTENCE, return_tensors="pt")
            real = {name: real[name] for name in ("input_ids", "attention_mask")}
    if images:
        rows, columns = images.grid
        patch, channels = images.embedding["patch_size"], images.embedding["num_channels"]
        shape = (2, channels, rows * patch, columns * patch)
        random["pixel_values"] = torch.randn(shape, generator=generator)
        real = {**real, "pixel_values": random["pixel_values"][:1]} if real else {}
    if model.config.is_encoder_decoder:
        random["decoder_input_ids"] = random["input_ids"].flip(1)
        real = {**real, "decoder_input_ids": real["input_ids"]} if real else {}
    return {"random inputs": random, **({"a sentence": real} if real else {})}


@torch.no_grad()
def answer(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    found = model(**inputs)
    output = next(found[name] for name in OUTPUTS if found.get(name) is not None)
    return (output[0] if isinstance(output, tuple) else output).float()


def check(given: argparse.Namespace, ours: PreTrainedModel, theirs: PreTrainedModel | None) -> None:
    if theirs is None:
        raise ValueError(f"head={given.head!r}: another head than the checkpoint's has nothing to be compared with")
    for what, inputs in inputs_of(ours, given.target).items():
        wanted, found = answer(theirs, inputs), answer(ours, inputs)
        difference, largest = (float(one.abs().max()) for one in (wanted - found, wanted))
        print(f"{what}: largest difference {difference:.3g}, of answers up to {largest:.3g}")
        if not difference <= ALLOWED * max(1.0, largest):
            raise ValueError(f"on {what} the two do not compute the same")


def main(argv: list[str]) -> None:
    silence()
    try:
        convert(parse_words(parser(), argv, ("to", "head", "revision", "check")))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
