"""How a Triune model computes. Importing this package makes the family known to transformers' auto classes, so that
`AutoModel.from_pretrained` needs no `trust_remote_code` where Triune is installed."""

import transformers

from triune.configuration.configuration_triune import HEADS, TriuneConfig
from triune.configuration.configuration_triune_clip import TriuneCLIPConfig
from triune.configuration.configuration_triune_mae import TriuneMAEConfig
from triune.configuration.configuration_triune_seq2seq import TriuneSeq2SeqConfig
from triune.modeling import modeling_triune
from triune.modeling.modeling_triune import *  # noqa: F403 - the heads, as its __all__ lists them
from triune.modeling.modeling_triune_clip import TriuneCLIPModel
from triune.modeling.modeling_triune_mae import TriuneForMaskedImageModeling
from triune.modeling.modeling_triune_seq2seq import TriuneForConditionalGeneration, TriuneSeq2SeqModel


transformers.AutoConfig.register("triune", TriuneConfig, exist_ok=True)
for name, head in HEADS.items():
    auto_class = getattr(transformers, head.auto_class)
    auto_class.register(TriuneConfig, getattr(modeling_triune, name), exist_ok=True)

transformers.AutoConfig.register("triune-clip", TriuneCLIPConfig, exist_ok=True)
for auto_class in (transformers.AutoModel, transformers.AutoModelForZeroShotImageClassification):
    auto_class.register(TriuneCLIPConfig, TriuneCLIPModel, exist_ok=True)

transformers.AutoConfig.register("triune-mae", TriuneMAEConfig, exist_ok=True)
for auto_class in (transformers.AutoModelForMaskedImageModeling, transformers.AutoModelForPreTraining):
    auto_class.register(TriuneMAEConfig, TriuneForMaskedImageModeling, exist_ok=True)

transformers.AutoConfig.register("triune-seq2seq", TriuneSeq2SeqConfig, exist_ok=True)
transformers.AutoModel.register(TriuneSeq2SeqConfig, TriuneSeq2SeqModel, exist_ok=True)
transformers.AutoModelForSeq2SeqLM.register(TriuneSeq2SeqConfig, TriuneForConditionalGeneration, exist_ok=True)


__all__ = [
    "TriuneForMaskedImageModeling",
    *modeling_triune.__all__,
    "TriuneCLIPModel",
    "TriuneForConditionalGeneration",
    "TriuneSeq2SeqModel",
]
