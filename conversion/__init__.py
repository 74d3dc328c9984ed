"""Published checkpoints of other architectures as Triune models, and back."""

from triune.conversion.families import FAMILIES
from triune.conversion.loading import Report, load
from triune.conversion.saving import save


__all__ = ["FAMILIES", "Report", "load", "save"]
