"""Token after token with as little as possible between them: what `generate` does on a processor where it can.

Small models are slowed down by what stands around each token (masks, checks, caches that are copied to grow), large
ones by reading their weights. So keys and values lie in memory that has room, only the layers themselves are called,
and for the time of a long text the weights of linear maps lie in the order in which a single row reads them fastest.
The tokens are those that transformers' loop gives; whatever it can do beyond this is left to it.
"""

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from .single_rows import one_row_at_a_time


KNOWN = {"attention_mask", "past_key_values", "use_cache", "logits_to_keep", "position_ids", "cache_position"}
UNASKED = (
    *("return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("prefill_chunk_size", "is_assistant"),
)


class RoomyLayer(DynamicLayer):
    """The keys and values of a layer, with room for more: twice as much when it is used up."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = (one.new_empty(0) for one in (key_states, value_states))
        self.keys, self.values = appended(self.keys, key_states), appended(self.values, value_states)
        return self.keys, self.values


def appended(seen: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """(batch, heads, length, head) with the new ones behind: in place, where the memory goes on behind `seen`."""
    length = seen.shape[-2] if seen.dim() == 4 else 0
    total = length + new.shape[-2]
    room = seen.stride(1) // new.shape[-1] if length else 0  # positions between one head and the next
    if total > room:
        memory = new.new_empty(*new.shape[:2], max(2 * total, 128), new.shape[-1])
        if length:
            memory[:, :, :length] = seen
        seen = memory
    longer = seen.as_strided((*new.shape[:2], total, new.shape[-1]), seen.stride(), seen.storage_offset())
    longer[:, :, length:] = new
    return longer


def with_room(cache: DynamicCache) -> DynamicCache:
    """Layers that keep everything get room; those with a window drop what they no longer see, and stay."""
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def can_decode(
    model: nn.Module, input_ids: torch.Tensor, stop, generation_config, synced_gpus: bool, given: dict
) -> bool:
    """Whether a request is plain: on a processor, of a known length, without padding, from an empty cache, for tokens
    alone."""
    cache, mask = given.get("past_key_values"), given.get("attention_mask")
    return (
        input_ids.device.type == "cpu"
        and not synced_gpus
        and given.keys() <= KNOWN
        and bool(given.get("use_cache"))
        and type(cache) is DynamicCache
        and not cache.get_seq_length()
        and not any(getattr(generation_config, name, False) for name in UNASKED)
        and getattr(stop, "max_length", None) is not None
        and (mask is None or (mask.dim() == 2 and bool(mask.all())))
        and in_order(given.get("position_ids"), input_ids.shape[1])
        and drops_what_windows_do_not_see(cache, model.config)
        and model.config._attn_implementation in ("sdpa", "eager")
        and whole(model)
    )


def in_order(position_ids: torch.Tensor | None, length: int) -> bool:
    return position_ids is None or bool((position_ids == torch.arange(length)).all())


def drops_what_windows_do_not_see(cache: DynamicCache, config) -> bool:
    """A cache that was made without the configuration keeps all, and a mask has to hide it."""
    return len(cache.layers) == len(config.layer_types) or set(config.layer_types) == {"full_attention"}


def whole(model: nn.Module) -> bool:
    """Whether all layers are here, and nobody listens around them: neither a stage of a pipeline nor a hook."""
    around = (model, model.model)
    hooked = any(one._forward_hooks or one._forward_pre_hooks or hasattr(one, "_hf_hook") for one in around)
    return not hooked and not any(isinstance(layer, nn.Identity) for layer in model.model.layers)


@torch.no_grad()
def decode(model: nn.Module, input_ids: torch.Tensor, process, stop, generation_config, cache: DynamicCache, streamer):
    """The tokens of `input_ids`, and those that follow. `process` and `stop` are transformers'."""
    batch, length = input_ids.shape
    most = max(stop.max_length, length + 1)
    tokens = input_ids.new_empty(batch, most)
    tokens[:, :length] = input_ids
    pad = getattr(generation_config, "_pad_token_tensor", None)
    ends = any(hasattr(one, "eos_token_id") for one in stop)
    going_on = torch.ones(batch, dtype=torch.bool)
    logits = model(input_ids, past_key_values=with_room(cache), use_cache=True, logits_to_keep=1).logits[:, -1]
    with one_row_at_a_time(model, most - length if batch == 1 else 0):
        while True:
            scores = process(tokens[:, :length], logits.float())
            chosen = draw(scores) if generation_config.do_sample else scores.argmax(-1)
            tokens[:, length] = torch.where(going_on, chosen, pad) if ends else chosen
            length += 1
            if streamer is not None:
                streamer.put(tokens[:, length - 1])
            going_on &= ~stop(tokens[:, :length], None)
            if not going_on.any():
                break
            logits = next_logits(model, tokens[:, length - 1 : length], cache)
    if streamer is not None:
        streamer.end()
    return tokens[:, :length].clone()


def draw(scores: torch.Tensor) -> torch.Tensor:
    return torch.multinomial(scores.softmax(-1), num_samples=1)[:, 0]


def next_logits(model: nn.Module, token: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    """What a forward pass computes for one more token that sees all before it: (batch, vocabulary)."""
    stack = model.model
    position = torch.full((1, 1), cache.get_seq_length())
    x = stack.embed(token, position_ids=position, past_key_values=cache)
    kinds = dict.fromkeys(stack.config.layer_types)
    rotations = {kind: stack.positions.rotation(x, position, kind) for kind in kinds}
    biases = {kind: stack.position_bias(x, cache, kind) for kind in kinds}
    for layer, kind in zip(stack.layers, stack.config.layer_types):
        x = layer(x, biases[kind], attention_mask=None, rotation=rotations[kind], past_key_values=cache)
    return model.logits_of(stack.norm(x))[:, -1]
