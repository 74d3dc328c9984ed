"""The feed-forward axis. Both kinds name their projections as Llama does, which is what LoRA, tensor parallelism,
quantisers and servers look for: `up_proj` widens, `down_proj` returns, `gate_proj` is the gated kind's own."""

import torch
from torch import nn

from .parts import build_activation


class FeedForward(nn.Module):
    """down(act(up(x)))"""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, bias: bool, dropout: float):
        super().__init__()
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.act_fn = build_activation(activation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.dropout(self.act_fn(self.up_proj(x))))


class GatedFeedForward(FeedForward):
    """down(act(gate(x)) * up(x)): SwiGLU and GeGLU, by activation. https://arxiv.org/abs/2002.05202"""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, bias: bool, dropout: float):
        super().__init__(hidden_size, intermediate_size, activation, bias, dropout)
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.dropout(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))


FEED_FORWARDS: dict[str, type[FeedForward]] = {"plain": FeedForward, "gated": GatedFeedForward}
