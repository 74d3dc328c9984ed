"""The head axis: pooling, what stands in front of a decoder and behind it, and classifiers."""

import torch
from torch import nn

from .parts import build_activation


# ---------------------------------------------------------------------------------------------------------------------
# Pooling: hidden states (batch, length, hidden) and the mask of real tokens (batch, length) -> (batch, hidden); of
# "cls_and_mean" (batch, 2 * hidden), of "patches" (batch, patches * hidden)


def first_token(x: torch.Tensor, mask: torch.Tensor, num_prefix: int, num_placed: int) -> torch.Tensor:
    return x[:, 0]


def mean_token(x: torch.Tensor, mask: torch.Tensor, num_prefix: int, num_placed: int) -> torch.Tensor:
    """The mean of real tokens, CLS and registers left out."""
    real = mask[:, num_prefix:, None]
    share = (real / real.sum(1, keepdim=True).clamp(min=1)).to(x.dtype)  # first, so that no sum leaves half precision
    return (x[:, num_prefix:] * share).sum(1)


def last_token(x: torch.Tensor, mask: torch.Tensor, num_prefix: int, num_placed: int) -> torch.Tensor:
    """The last real token, wherever the padding is."""
    places = torch.arange(x.shape[1], device=x.device)
    last = (places * mask).argmax(-1)
    return x[torch.arange(x.shape[0], device=x.device), last]


def register_token(x: torch.Tensor, mask: torch.Tensor, num_prefix: int, num_placed: int) -> torch.Tensor:
    return x[:, num_placed:num_prefix].mean(1)


def all_patches(x: torch.Tensor, mask: torch.Tensor, num_prefix: int, num_placed: int) -> torch.Tensor:
    """Side by side, each in its place, as a linear map on pixels sees them."""
    return x[:, num_prefix:].flatten(1)


def first_and_mean(x: torch.Tensor, mask: torch.Tensor, num_prefix: int, num_placed: int) -> torch.Tensor:
    """Side by side, as DINOv2's classifiers see them."""
    return torch.cat(
        [first_token(x, mask, num_prefix, num_placed), mean_token(x, mask, num_prefix, num_placed)], dim=-1
    )


POOLINGS = {
    **{"cls": first_token, "mean": mean_token, "cls_and_mean": first_and_mean, "last": last_token},
    **{"registers": register_token, "patches": all_patches},
}


class Pooler(nn.Module):
    """One vector for the whole input; `dense` is BERT's projection and tanh after it."""

    def __init__(self, hidden_size: int, kind: str, num_prefix: int, num_placed: int, dense: bool = False):
        super().__init__()
        self.pool = POOLINGS[kind]
        self.num_prefix, self.num_placed = num_prefix, num_placed
        self.dense = nn.Linear(hidden_size, hidden_size) if dense else nn.Identity()
        self.activation = nn.Tanh() if dense else nn.Identity()

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        pooled = self.pool(x, real_tokens(x, attention_mask), self.num_prefix, self.num_placed)
        return self.activation(self.dense(pooled))

    def reads(self, x: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Which tokens are pooled, (batch, length): one of each text or picture, or all that are there."""
        mask = real_tokens(x, attention_mask)
        if self.pool not in (first_token, last_token):
            return mask.bool()
        places = torch.arange(x.shape[1], device=x.device).expand_as(mask)[..., None]
        place = self.pool(places, mask, self.num_prefix, self.num_placed)
        return torch.zeros_like(mask, dtype=torch.bool).scatter_(1, place, True)

    def extra_repr(self) -> str:
        return self.pool.__name__


class NoPooler(nn.Module):
    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        return None

    def reads(self, x: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        return x.new_zeros(x.shape[:2], dtype=torch.bool)


def real_tokens(x: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """1 for each that is no padding (batch, length)."""
    if torch.is_tensor(attention_mask) and attention_mask.dim() == 2:
        return attention_mask[:, -x.shape[1] :].to(x.device, torch.long)
    return torch.ones(x.shape[:2], device=x.device, dtype=torch.long)


# ---------------------------------------------------------------------------------------------------------------------
# In front of the decoder


def keep_positions(x: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The hidden states that need logits: the last so many (0: all), or those that a tensor names, either by index,
    for all samples (positions,) or each (batch, positions), or as a mask (batch, length), which flattens them.
    transformers has this as `slice_logits_to_keep`, but not in every version that we support."""
    if isinstance(logits_to_keep, int):
        return x[:, -logits_to_keep:] if logits_to_keep else x
    if logits_to_keep.dtype == torch.bool:
        return x[logits_to_keep]
    return x[:, logits_to_keep] if logits_to_keep.dim() == 1 else x.take_along_dim(logits_to_keep[..., None], dim=1)


class PredictionTransform(nn.Module):
    """BERT's masked-LM transform: projection, activation, norm."""

    def __init__(self, hidden_size: int, activation: str, norm: nn.Module, dense_bias: bool):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size, bias=dense_bias)
        self.act_fn = build_activation(activation)
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.act_fn(self.dense(x)))


TRANSFORMS: dict[str, type[nn.Module]] = {"plain": nn.Identity, "transform": PredictionTransform}

# ---------------------------------------------------------------------------------------------------------------------
# Behind the decoder


class Softcap(nn.Module):
    """Logits between -cap and cap, nearly unchanged around 0. https://arxiv.org/abs/2408.00118"""

    def __init__(self, cap: float):
        super().__init__()
        self.cap = cap

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return self.cap * torch.tanh(logits / self.cap)

    def extra_repr(self) -> str:
        return f"cap={self.cap:g}"


# ---------------------------------------------------------------------------------------------------------------------
# Classifiers


class LinearClassifier(nn.Linear):
    def __init__(self, size: int, num_labels: int, activation: str, dropout: float, bias: bool):
        super().__init__(size, num_labels, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.dropout(x))


class MLPClassifier(nn.Module):
    def __init__(
        self, size: int, num_labels: int, activation: str, dropout: float, bias: bool, hidden_size: int | None
    ):
        super().__init__()
        self.dense = nn.Linear(size, hidden_size or size, bias=bias)
        self.act_fn = build_activation(activation)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size or size, num_labels, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self.dropout(self.act_fn(self.dense(x))))


CLASSIFIERS: dict[str, type[nn.Module]] = {"linear": LinearClassifier, "mlp": MLPClassifier}
