"""Cross-entropy of the right answers, and what language models make of it: perplexity and bits per character."""

import math

import datasets
import evaluate
import numpy as np

from .in_memory import InMemory


DESCRIPTION = """
Cross-entropy: the mean of -log p(right answer), in nats. Perplexity is its exponential: as uncertain as a choice among
so many equally likely answers. Bits per character is the sum in bits by the characters of the text, which does not
depend on the tokenizer, if every character is scored once.
"""

INPUTS = """
Args:
    losses (list of float): -log p(right answer) of each answer, in nats.
    characters (float, optional): the characters of the text that the losses belong to.

Returns:
    loss (float), perplexity (float), and with `characters` bits_per_character (float); for all of them less is better.

Example:
    >>> metric = evaluate.load("cross_entropy.py")
    >>> metric.compute(losses=[math.log(2), math.log(8)], characters=8)
    {'loss': 1.3862943611198906, 'perplexity': 4.0, 'bits_per_character': 0.5}
"""

CITATION = """
@article{jelinek1977perplexity,
  title={Perplexity---a measure of the difficulty of speech recognition tasks},
  author={Jelinek, Frederick and Mercer, Robert L. and Bahl, Lalit R. and Baker, James K.},
  journal={The Journal of the Acoustical Society of America},
  volume={62},
  number={S1},
  pages={S63},
  year={1977}
}
"""


class CrossEntropy(InMemory, evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"losses": datasets.Value("float64")}),
        )

    def _compute(self, losses: np.ndarray, characters: float | None = None) -> dict[str, float]:
        if characters is not None and not characters > 0:
            raise ValueError(f"characters={characters} is not allowed: it must be above 0")
        total = math.fsum(losses.tolist())  # rounded once, whatever the order
        loss = total / len(losses)
        with np.errstate(over="ignore"):
            results = {"loss": loss, "perplexity": float(np.exp(loss))}
        if characters is not None:
            results["bits_per_character"] = total / math.log(2) / characters
        return results
