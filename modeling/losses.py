"""Losses as pure functions, with the contract of `transformers`: labels of -100 are ignored; `num_items_in_batch`,
when the trainer gives it, is the number of labels in all micro-batches of a step and replaces the count of this one,
so that gradient accumulation equals the large batch. Where every label is ignored the loss is 0, not NaN."""

import torch
import torch.nn.functional as F


IGNORED = -100


def check_labels(labels: torch.Tensor, shape: tuple[int, ...], meaning: str) -> None:
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(f"labels must have shape {meaning} = {tuple(shape)}, got {tuple(labels.shape)}")


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean over the labels that count; logits (..., classes), labels (...)."""
    labels = labels.to(logits.device).flatten()
    total = F.cross_entropy(logits.float().flatten(0, -2), labels, ignore_index=IGNORED, reduction="sum")
    if num_items_in_batch is None:
        num_items_in_batch = (labels != IGNORED).sum().clamp(min=1)
    if torch.is_tensor(num_items_in_batch):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch


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


def classification_loss(logits, labels, problem_type=None, num_items_in_batch=None, **kwargs) -> torch.Tensor:
    """One answer per input. Without a `problem_type`: one output is a regression, integer labels are one class each,
    float labels several classes at once."""
    batch, num_labels = logits.shape
    if problem_type is None:
        single = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
        problem_type = "regression" if num_labels == 1 else single
    if problem_type == "single_label_classification":
        check_labels(labels, (batch,), "(batch,)")
        return cross_entropy(logits, labels, num_items_in_batch)
    labels = labels.to(logits.device, torch.float32)
    if num_labels > 1 or labels.dim() > 1:
        check_labels(labels, logits.shape, "(batch, num_labels)")
    compare = F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits
    total = compare(logits.float(), labels.view_as(logits), reduction="sum")
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)
