"""What a Triune model is: the configuration, its presets, and the export of the code. No torch."""

from triune.configuration.configuration_triune import TriuneConfig
from triune.configuration.configuration_triune_clip import TriuneCLIPConfig, clip_preset
from triune.configuration.presets import PRESETS, preset


__all__ = ["PRESETS", "TriuneCLIPConfig", "TriuneConfig", "clip_preset", "preset"]
