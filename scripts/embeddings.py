"""Write the token embeddings of a trained model to be looked at: vectors.tsv and metadata.tsv, for the Embedding
Projector (https://projector.tensorflow.org, "Load").

    python scripts/embeddings.py runs/bert                              # into runs/bert/embeddings
    python scripts/embeddings.py user/model --output_dir there --most 3000

A line of vectors.tsv is the vector of a token, the same line of metadata.tsv its text and id, below a line of names.
Rows of the table that no token uses are left out.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from triune.training import prediction
from triune.training.arguments import parse_words, script_parser
from triune.training.console import silence
from triune.training.report import replace


VECTORS, METADATA = "vectors.tsv", "metadata.tsv"
COLUMNS = ("token", "id")
SEEN = str.maketrans({"\n": "↵", "\r": "↵", "\t": "⇥"})  # what would end a line or a column


def parser() -> argparse.ArgumentParser:
    made = script_parser(__doc__, "embeddings.py MODEL [--output_dir FOLDER] [--most NUMBER]")
    made.add_argument("model", metavar="MODEL", help="a model folder, a run folder or a Hub id")
    made.add_argument("--output_dir", help="default: embeddings, beside the model folder")
    made.add_argument("--most", type=int, help="only so many tokens, those of the lowest ids (all)")
    return made


def table_of(name: str) -> tuple[torch.Tensor, list[str]]:
    """The vector of each token and how it is written."""
    saved = prediction.load(name)
    tokenizer = getattr(saved.processor, "tokenizer", saved.processor)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"{name!r} reads no tokens (its task is {saved.task}): there are no token embeddings to write"
        )
    vectors = saved.model.get_input_embeddings().weight.detach().float().cpu()
    count = min(len(tokenizer), len(vectors))
    return vectors[:count], tokenizer.convert_ids_to_tokens(list(range(count)))


def as_tsv(rows) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def write(name: str, output_dir: str | None, most: int | None) -> Path:
    if most is not None and most < 1:
        raise ValueError(f"most={most} is not allowed: it must be at least 1")
    model = prediction.locate(name)
    if output_dir is None and not Path(model).is_dir():
        raise ValueError(f"{name!r} is no folder here: say with --output_dir where to write")
    folder = Path(output_dir) if output_dir else Path(model).parent / "embeddings"
    vectors, tokens = (part[:most] for part in table_of(model))
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / VECTORS, as_tsv(vectors.tolist()))
    replace(folder / METADATA, as_tsv([COLUMNS, *((token.translate(SEEN), id) for id, token in enumerate(tokens))]))
    print(f"{len(tokens):,} tokens of {vectors.shape[1]} numbers: {folder / VECTORS}, {folder / METADATA}")
    return folder


def main(argv: list[str]) -> None:
    silence()
    try:
        given = parse_words(parser(), argv, ("output_dir", "most"))
        write(given.model, given.output_dir, given.most)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
