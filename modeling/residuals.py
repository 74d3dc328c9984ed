"""The residual axis: what happens to a sublayer's output on its way into the residual stream."""

import torch
import torch.nn.functional as F
from torch import nn

from .selection import EVERYTHING, Tokens


class Residual(nn.Module):
    """Dropout, then stochastic depth: in training the whole branch of a sample is left out with probability
    `drop_path`, and scaled up otherwise. https://arxiv.org/abs/1603.09382"""

    def __init__(self, hidden_size: int, dropout: float, drop_path: float):
        super().__init__()
        self.dropout, self.drop_path = dropout, drop_path

    def forward(self, y: torch.Tensor, tokens: Tokens = EVERYTHING) -> torch.Tensor:
        y = F.dropout(y, self.dropout, self.training)
        if not self.training or self.drop_path == 0.0:
            return y
        kept = tokens.random(y) >= self.drop_path
        return y * kept.to(y.dtype) / (1.0 - self.drop_path)

    def extra_repr(self) -> str:
        return f"dropout={self.dropout:g}, drop_path={self.drop_path:g}"


class ScaledResidual(Residual):
    """Layer scale: a trained factor per channel that starts small. https://arxiv.org/abs/2103.17239"""

    def __init__(self, hidden_size: int, dropout: float, drop_path: float, init: float):
        super().__init__(hidden_size, dropout, drop_path)
        self.init = init
        self.scale = nn.Parameter(torch.empty(hidden_size))

    def forward(self, y: torch.Tensor, tokens: Tokens = EVERYTHING) -> torch.Tensor:
        return super().forward(y * self.scale, tokens)


RESIDUALS: dict[str, type[Residual]] = {"plain": Residual, "layer_scale": ScaledResidual}
