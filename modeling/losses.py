"""Losses as pure functions, with the contract of `transformers`: labels of -100 are ignored; `num_items_in_batch`,
when the trainer gives it, is the number of labels in all micro-batches of a step and replaces the count of this one,
so that gradient accumulation equals the large batch. Where every label is ignored the loss is 0, not NaN."""

import torch
import torch.nn.functional as F


IGNORED = -100


def check_labels(labels: torch.Tensor, shape: tuple[int, ...], meaning: str) -> None:
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(f"labels must have shape {meaning} = {tuple(shape)}, got {tuple(labels.shape)}")


def mean_over(total: torch.Tensor, own_count: torch.Tensor | int, given_count: torch.Tensor | int | None):
    """A sum, divided by what the trainer counted over all micro-batches, or else by what was counted here."""
    count = own_count if given_count is None else given_count
    if torch.is_tensor(count):
        return total / count.to(total.device).clamp(min=1)
    return total / max(count, 1)


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean over the labels that count; logits (..., classes), labels (...)."""
    labels = labels.to(logits.device).flatten()
    total = F.cross_entropy(logits.float().flatten(0, -2), labels, ignore_index=IGNORED, reduction="sum")
    return mean_over(total, (labels != IGNORED).sum(), num_items_in_batch)


def token_loss(logits, labels, vocab_size=None, num_items_in_batch=None, **kwargs) -> torch.Tensor:
    """Each position has its own label: masked language modeling, token classification."""
    check_labels(labels, logits.shape[:-1], "(batch, length)")
    return cross_entropy(logits, labels, num_items_in_batch)


def next_token_loss(logits, labels, vocab_size=None, num_items_in_batch=None, shift_labels=None, **kwargs):
    """Each position is to predict the next label. `shift_labels`, if given, is already moved by one."""
    if shift_labels is not None:
        check_labels(shift_labels, logits.shape[:-1], "(batch, length)")
        return cross_entropy(logits, shift_labels, num_items_in_batch)
    check_labels(labels, logits.shape[:-1], "(batch, length), with logits for every position (logits_to_keep=0)")
    return cross_entropy(logits[:, :-1], labels[:, 1:], num_items_in_batch)


# ---------------------------------------------------------------------------------------------------------------------
# One answer per input


def one_class_loss(logits, labels, num_items_in_batch) -> torch.Tensor:
    labels = labels.squeeze(-1) if labels.dim() == 2 and labels.shape[1] == 1 else labels
    check_labels(labels, logits.shape[:1], "(batch,)")
    if labels.is_floating_point():
        raise ValueError(f"labels of single_label_classification must be integers, got {labels.dtype}")
    return cross_entropy(logits, labels, num_items_in_batch)


def elementwise(compare):
    """A loss of each output against its own label: one number, or `num_labels` of them, for each input."""

    def loss(logits, labels, num_items_in_batch) -> torch.Tensor:
        labels = labels.to(logits.device, torch.float32)
        if logits.shape[1] > 1 or labels.dim() > 1:
            check_labels(labels, logits.shape, "(batch, num_labels)")
        else:
            check_labels(labels, logits.shape[:1], "(batch,)")
        total = compare(logits.float(), labels.view_as(logits), reduction="sum")
        return mean_over(total, labels.numel(), num_items_in_batch)

    return loss


CLASSIFICATION_LOSSES = {
    "single_label_classification": one_class_loss,
    "multi_label_classification": elementwise(F.binary_cross_entropy_with_logits),
    "regression": elementwise(F.mse_loss),
}


def classification_loss(logits, labels, problem_type=None, num_items_in_batch=None, **kwargs) -> torch.Tensor:
    """By `problem_type`. Without one, as transformers does: one output is a regression, integer labels are one class
    each, float labels several classes at once."""
    if problem_type is None:
        classes = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
        problem_type = "regression" if logits.shape[1] == 1 else classes
    if problem_type not in CLASSIFICATION_LOSSES:
        raise ValueError(f"problem_type={problem_type!r} is not one of {', '.join(CLASSIFICATION_LOSSES)}")
    return CLASSIFICATION_LOSSES[problem_type](logits, labels, num_items_in_batch)
