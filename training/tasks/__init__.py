"""The tasks, by name."""

from triune.training.tasks.causal_lm import CausalLanguageModeling
from triune.training.tasks.contrastive import Contrastive
from triune.training.tasks.image_classification import ImageClassification
from triune.training.tasks.masked_image_modeling import MaskedImageModeling
from triune.training.tasks.masked_lm import MaskedLanguageModeling
from triune.training.tasks.pretraining import PreTraining
from triune.training.tasks.seq2seq import Seq2Seq
from triune.training.tasks.sequence_classification import SequenceClassification
from triune.training.tasks.span_corruption import SpanCorruptionModeling
from triune.training.tasks.task import Task


TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        MaskedLanguageModeling,
        CausalLanguageModeling,
        ImageClassification,
        SequenceClassification,
        PreTraining,
        Contrastive,
        MaskedImageModeling,
        Seq2Seq,
        SpanCorruptionModeling,
    )
}
