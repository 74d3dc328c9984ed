"""Text token by token: the same greedy tokens, or the row is void; and how near to what memory can deliver."""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import triune.conversion as conversion
from suites.measuring import against, markdown, read_bandwidth, shown, take_turns, timed


class Job(NamedTuple):
    fields: dict[str, Any]
    prompt: int = 16
    new: int = 128


JOBS = {
    "4M": Job({"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 2048}),
    "15M": Job({"n_embd": 384, "n_layer": 6, "n_head": 6, "vocab_size": 8192}),
    "124M": Job({}, new=96),
}


def rows(name: str, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    job = JOBS[name]
    new = 8 if asked.quick else job.new
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        GPT2LMHeadModel(GPT2Config(**job.fields)).save_pretrained(folder)
        models = {"default": GPT2LMHeadModel.from_pretrained(folder), "ours": conversion.load(folder)}
    models = {whose: model.to(asked.device).eval() for whose, model in models.items()}
    prompt = torch.randint(0, models["ours"].config.vocab_size, (1, job.prompt)).to(asked.device)
    plain = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def writing(model):
        return lambda: model.generate(prompt, attention_mask=torch.ones_like(prompt), **plain)

    row: dict[str, Any] = {"job": name, "parameters": models["ours"].num_parameters(), "new_tokens": new}
    row["same_tokens"] = torch.equal(*(writing(model)() for model in models.values()))
    if row["same_tokens"]:
        seconds = take_turns({whose: timed(writing(model)) for whose, model in models.items()}, asked.rounds)
        row["tokens_per_second"] = {whose: new / statistics.median(one) for whose, one in seconds.items()}
        row["against_default"] = against(seconds["default"], seconds["ours"])
        bandwidth, read = read_bandwidth(asked.device), 4 * read_for_a_token(models["ours"])
        row |= {"read_bandwidth": bandwidth, "share_of_bandwidth": read * row["tokens_per_second"]["ours"] / bandwidth}
    yield row


def read_for_a_token(model) -> int:
    """Parameters: all but the tables that are looked up, of which the tied one is the decoder too."""
    return model.num_parameters() - sum(one.numel() for one in model.model.positions.parameters())


def key(row: dict[str, Any]) -> tuple:
    return row["job"], row["device"]


def table(rows: list[dict[str, Any]]) -> str:
    titles = ["parameters", "against transformers' `generate`", "tokens a second: theirs, ours"]
    titles.append("of memory's bandwidth")

    def cells(row):
        if not row["same_tokens"]:
            return [row["job"], "void: other tokens", "", ""]
        speeds = ", ".join(f"{row['tokens_per_second'][whose]:.0f}" for whose in ("default", "ours"))
        return [row["job"], shown(row["against_default"]), speeds, f"{row['share_of_bandwidth']:.0%}"]

    return markdown(titles, map(cells, rows))
