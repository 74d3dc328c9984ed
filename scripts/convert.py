"""Turn a published checkpoint into a Triune model, or a Triune model into a published one:

    python scripts/convert.py openai-community/gpt2 gpt2-triune --check
    python scripts/convert.py google-bert/bert-base-uncased bert --head TriuneForSequenceClassification
    python scripts/convert.py mae_pretrain_vit_base.pth mae --check
    python scripts/convert.py runs/bert/model stock-bert --to bert --check

SRC is a folder, a Hub id or a file of OpenAI (CLIP), Meta (MAE, DINO) or timm (ViT); DST a new folder, with the
tokenizer or image processor beside the weights. --check compares what both compute, on random inputs and, of texts, on
a sentence.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import triune.conversion as conversion
import triune.modeling as modeling
from triune.configuration import CONFIGS, stack_reading
from triune.configuration.configuration_triune import FamilyConfig
from triune.conversion.checking import Inputs, answer, random_inputs
from triune.conversion.files import Source
from triune.training.arguments import parse_words, script_parser
from triune.training.console import silence


NATIVE = "triune"
SENTENCE = "The quick brown fox jumps over the lazy dog."
ALLOWED = 1e-4  # of the largest answer, in float32


def parser() -> argparse.ArgumentParser:
    made = script_parser(__doc__, "convert.py SRC DST [--to FAMILY] [--head HEAD] [--check]")
    made.add_argument("source", metavar="SRC", help="a folder, a Hub id or a file")
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
    if given.head and given.check:
        raise ValueError(f"head={given.head!r}: under another head there is nothing that --check could compare with")
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
        theirs, ours = (published(given.target) if given.check else None), model
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
        theirs = original(where, ours) if given.check else None
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


def original(source: Source, ours: PreTrainedModel) -> PreTrainedModel:
    """What transformers makes of it; of a layout that it does not read, what it makes of ours in today's."""
    if "model_type" in source.config():
        return published(source.name, **source.where)
    with tempfile.TemporaryDirectory() as folder:
        return published(str(conversion.save(ours, Path(folder) / "today")))


def published(source: str, **where) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(source, **where)
    return getattr(transformers, config.architectures[0]).from_pretrained(source, **where).eval()


def sentences(config: FamilyConfig, folder: str) -> Inputs:
    """What a sentence is, where there is a tokenizer beside the model."""
    if stack_reading(config, "tokens") is None or not (Path(folder) / "tokenizer_config.json").is_file():
        return {}
    found = AutoTokenizer.from_pretrained(folder)(SENTENCE, return_tensors="pt")
    real = {name: found[name] for name in ("input_ids", "attention_mask")}
    others = {name: one[:1] for name, one in random_inputs(config).items() if name == "pixel_values"}
    return {**real, **others, **({"decoder_input_ids": real["input_ids"]} if config.is_encoder_decoder else {})}


def check(given: argparse.Namespace, ours: PreTrainedModel, theirs: PreTrainedModel) -> None:
    for what, inputs in (
        ("random inputs", random_inputs(ours.config)),
        ("a sentence", sentences(ours.config, given.target)),
    ):
        if not inputs:
            continue
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
