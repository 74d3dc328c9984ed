"""Losses as pure functions, with the contract of `transformers`: labels of -100 are ignored; `num_items_in_batch`,
when the trainer gives it, is the number of labels in all micro-batches of a step and replaces the count of this one,
so that gradient accumulation equals the large batch. Where every label is ignored the loss is 0, not NaN."""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


IGNORED = -100


def check_labels(labels: torch.Tensor, shape: tuple[int, ...], meaning: str) -> None:
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(f"labels must have shape {meaning} = {tuple(shape)}, got {tuple(labels.shape)}")


def asked(labels: torch.Tensor | None, loss_only: bool) -> torch.Tensor | None:
    """Whose hidden states the loss reads, where nothing else is to be computed: as `wanted` of a stack."""
    return labels != IGNORED if loss_only and labels is not None else None


def shifted(labels: torch.Tensor | None, shift_labels: torch.Tensor | None = None) -> torch.Tensor | None:
    """What each position is to predict, the next label, and the last one nothing."""
    if shift_labels is not None or labels is None:
        return shift_labels
    return F.pad(labels[..., 1:], (0, 1), value=IGNORED)


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
# Without the logits

ROWS = 512  # positions whose logits are there at once


def lean_loss(hidden_states, labels, before, decoder, after, num_items_in_batch=None) -> torch.Tensor:
    """`token_loss` of `after(decoder(before(hidden_states)))`, of the positions alone whose labels count, and some at
    a time: where one in seven is asked, and a vocabulary is large, most of the work and memory was for nothing."""
    if labels is None:
        raise ValueError("loss_only gives the loss alone, and needs labels")
    check_labels(labels, hidden_states.shape[:-1], "(batch, length)")
    labels = labels.to(hidden_states.device)
    counted = labels != IGNORED
    x, wanted = before(hidden_states[counted]), labels[counted]
    share = mean_over(torch.ones((), device=x.device), counted.sum(), num_items_in_batch)
    if is_plain(decoder):
        return LinearCrossEntropy.apply(x, decoder.weight, decoder.bias, wanted, share, getattr(after, "cap", None))
    return share * F.cross_entropy(after(decoder(x)).float(), wanted, reduction="sum")


def is_plain(decoder: torch.nn.Module) -> bool:
    """Whether a decoder is its weight and bias, and nobody (LoRA, a quantiser, tensor parallelism, a hook) has put
    something in between."""
    hooked = decoder._forward_hooks or decoder._forward_pre_hooks or hasattr(decoder, "_hf_hook")
    return type(decoder) is torch.nn.Linear and type(decoder.weight.data) is torch.Tensor and not hooked


class LinearCrossEntropy(torch.autograd.Function):
    """The cross-entropies of a linear map added up, times `share`; `ROWS` at a time. Gradients are made with the
    logits, in their place, and in one piece of memory for all parts; those of the weight are added up in float32.
    `cap` bounds the logits as `Softcap` does."""

    @staticmethod
    def forward(ctx, x, weight, bias, labels, share, cap):
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        sums = torch.promote_types(dtype, torch.float32)
        # float16 ends at 6e-8: its gradients are divided behind, where those of the loss have been scaled up
        now, later = (torch.ones_like(share), share) if dtype == torch.float16 else (share, torch.ones_like(share))
        total = torch.zeros((), dtype=sums, device=x.device)
        dx = torch.empty_like(x, dtype=dtype)
        dweight = torch.zeros_like(weight) if ctx.needs_input_grad[1] and not len(x) else None
        dbias = None if bias is None else torch.zeros_like(bias, dtype=sums)
        with torch.autocast(device, enabled=False):
            x, weight_now = x.to(dtype), weight.to(dtype)
            memory = x.new_empty(min(ROWS, len(x)), len(weight))
            exact = memory if dtype == sums else torch.empty_like(memory, dtype=sums)
            for start in range(0, len(x), ROWS):
                part = slice(start, start + ROWS)
                product, logits = (one[: len(x[part])] for one in (memory, exact))
                copy_into(logits, torch.mm(x[part], weight_now.mT, out=product))
                total += slopes_in_place(logits, bias, labels[part, None], now, cap)
                dbias = None if bias is None else dbias.add_(logits.sum(0))
                torch.mm(copy_into(product, logits), weight_now, out=dx[part])
                if ctx.needs_input_grad[1]:
                    dweight = plus_product(dweight, product.mT, x[part], sums)
        ctx.save_for_backward(dx, dweight, dbias, later)
        return total * later

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        *own, later = ctx.saved_tensors
        factor = gradient * later
        if factor.device.type != "cpu" or factor != 1:  # to look costs a GPU more than to multiply
            own = (None if one is None else one * factor for one in own)
        return *own, None, None, None


def copy_into(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    return target if target.data_ptr() == source.data_ptr() else target.copy_(source)


def plus_product(total: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor, dtype) -> torch.Tensor:
    if total is None:
        return (left @ right).to(dtype)
    return total.addmm_(left, right) if left.dtype == dtype else total.add_(left @ right)


def slopes_in_place(logits, bias, wanted: torch.Tensor, share: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Turns products into the gradients of their logits, softmax minus one-hot, times `share`; gives the loss."""
    logits = logits if bias is None else logits.add_(bias)
    bend = bounded(logits, cap)
    highest = logits.amax(-1, keepdim=True)
    answers = logits.gather(1, wanted) - highest
    sums = logits.sub_(highest).exp_().sum(-1, keepdim=True)
    logits.mul_(share / sums).scatter_add_(1, wanted, -share.to(logits.dtype).expand(wanted.shape))
    if bend is not None:
        logits.mul_(bend)
    return share * (sums.log() - answers).sum()


def bounded(logits: torch.Tensor, cap: float | None) -> torch.Tensor | None:
    """Bounds them in place, and gives the slope."""
    if cap is None:
        return None
    share = torch.tanh(logits / cap)
    logits.copy_(cap * share)
    return 1 - share.square()


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
