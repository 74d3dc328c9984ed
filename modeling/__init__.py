"""How a Triune model computes. Importing this package makes the family known to transformers' auto classes, so that
`AutoModel.from_pretrained` needs no `trust_remote_code` where Triune is installed."""

import transformers

from triune.configuration.configuration_triune import HEADS, TriuneConfig
from triune.modeling import modeling_triune
from triune.modeling.modeling_triune import *  # noqa: F403 - the heads, as its __all__ lists them


transformers.AutoConfig.register("triune", TriuneConfig, exist_ok=True)
for name, head in HEADS.items():
    auto_class = getattr(transformers, head.auto_class)
    auto_class.register(TriuneConfig, getattr(modeling_triune, name), exist_ok=True)


__all__ = modeling_triune.__all__
