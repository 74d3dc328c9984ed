"""What a Triune model is: the configurations, their presets, and the export of the code. No torch."""

from triune.configuration.configuration_triune import TriuneConfig
from triune.configuration.configuration_triune_clip import TriuneCLIPConfig, clip_preset
from triune.configuration.configuration_triune_mae import TriuneMAEConfig, mae_preset
from triune.configuration.configuration_triune_seq2seq import TriuneSeq2SeqConfig, seq2seq_preset
from triune.configuration.family import CONFIGS, merged, preset_of, stack_reading, stacks_of
from triune.configuration.presets import PRESETS, preset


__all__ = [
    *("CONFIGS", "PRESETS", "TriuneCLIPConfig", "TriuneConfig", "TriuneMAEConfig", "TriuneSeq2SeqConfig"),
    *("clip_preset", "mae_preset", "merged", "preset", "preset_of", "seq2seq_preset", "stack_reading", "stacks_of"),
]
