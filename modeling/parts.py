"""How a part is chosen: by the type of its entry in the configuration, an activation by its name, once, when the model
is built."""

from torch import nn
from transformers.activations import ACT2FN


def build(table: dict[str, type[nn.Module]], entry: dict, *sizes, **shared) -> nn.Module:
    """The class that `entry["type"]` names in `table`, made from `sizes` and the entry's own options."""
    options = {key: value for key, value in entry.items() if key != "type"}
    return table[entry["type"]](*sizes, **shared, **options)


# The table has formulas under some names that are one kernel of torch: the same to the last digits of float32, in a
# third of the time and a sixth of the memory.
TANH = dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate"), "gelu_pytorch_tanh")
ONE_KERNEL = {**TANH, "gelu_python": "gelu"}


def build_activation(name: str) -> nn.Module:
    """transformers' activation of this name, or torch's ELU, which that table lacks."""
    return nn.ELU() if name == "elu" else ACT2FN[ONE_KERNEL.get(name, name)]
