"""How much of what a model writes it has read: the longest run of tokens that stands in the training text as well.

    longest_copied_run([5, 6, 7, 8], torch.tensor([1, 5, 6, 7, 2]))  # 3

Any text shares some runs with any other; a sentence that is learnt by heart shares all of it.
"""

from collections.abc import Sequence

import numpy as np
import torch


def longest_copied_run(written: Sequence[int], text: torch.Tensor) -> int:
    """Tokens in a row, anywhere in both. At each place of the text: how long the run is that ends there; one more than
    at the place before, where the token is the same."""
    tokens = text.numpy()
    ending = np.zeros(len(tokens) + 1, dtype=np.int32)
    longest = 0
    for token in written:
        ending[1:] = np.where(tokens == token, ending[:-1] + 1, 0)
        longest = max(longest, int(ending.max()))
    return longest
