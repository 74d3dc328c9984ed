"""What a model answers to held-out data: in a run, and by `scripts/eval.py`."""

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device

from triune.training.loading import evaluation_batches
from triune.training.metrics import Records, concatenate, record
from triune.training.tasks.task import Task


@torch.no_grad()
def answers(task: Task, model: torch.nn.Module, accelerator: Accelerator, per_device: int, full: bool) -> Records:
    """A record for each label, from all processes, on every process. The model is in evaluation mode within."""
    training = model.training
    model.eval()
    parts = []
    batches = evaluation_batches(
        task, task.evaluation(full), per_device, accelerator.num_processes, accelerator.process_index
    )
    for batch in batches:
        batch.pop("replaced", None)
        batch = send_to_device(batch, accelerator.device)
        labels = batch.pop("labels")
        parts.append(record(*task.pairs(model(**batch).logits, labels)))
    model.train(training)
    own = concatenate(parts)
    return concatenate(gather_object([own])) if accelerator.num_processes > 1 else own
