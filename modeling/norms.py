"""The norm axis. Both classes are torch's own: fused, and recognised by name by transformers and by servers."""

from torch import nn


# Same constructor: (size, eps=..., [bias=...]); same call: norm(hidden_states).
NORMS: dict[str, type[nn.Module]] = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}
