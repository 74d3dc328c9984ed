"""The one backbone: BERT, GPT and ViT are this file, read with another configuration.

Parts come first, small to large: the attention kernel, attention, a layer, and the stack that assembles them from the
configuration. What varies is chosen once, when the stack is built, from the tables of the sibling files; a part that
is absent is an object that does nothing. `forward` has no modes: the cache object tells prefill from decoding, the
attention implementation is transformers' choice, and one field of the configuration gives both the mask and
`is_causal`.

Shapes: x, hidden_states (batch, length, hidden); q, k, v (batch, heads, length, head).
"""

import contextlib
import functools
import math
import shutil
from pathlib import Path

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
    find_packed_sequence_indices,
    packed_sequence_mask_function,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from triune.configuration.configuration_card import TAGS, put_card
from triune.configuration.configuration_triune import TriuneConfig

from .embeddings import PatchEmbedding, PatchInput, TokenEmbedding, TokenInput
from .feed_forward import FEED_FORWARDS
from .norms import NORMS
from .parts import build
from .positions import POSITIONS, Frame
from .residuals import RESIDUALS, ScaledResidual
from .selection import EVERYTHING, Tokens, narrow, select


BIASED_KERNELS = ("eager", "sdpa", "flex_attention")  # those that take an addend to the scores

# ---------------------------------------------------------------------------------------------------------------------
# Masks


def same_document(position_ids: torch.Tensor | None, batch_size: int):
    """A mask function under which the documents of a packed row do not see each other; None where nothing is packed.

    A row is packed if its positions go up by one and fall back to the lowest: 0 1 2 0 1. Others, such as 4 3 2 1 0,
    are one document. As in transformers, a traced model takes the mask without looking.
    """
    documents = None if position_ids is None else find_packed_sequence_indices(position_ids)
    if documents is None:
        return None
    starts = torch.diff(documents, dim=-1, prepend=documents[:, :1]) != 0
    lowest = position_ids == position_ids.amin(-1, keepdim=True)
    packed = (lowest | ~starts).all(-1, keepdim=True)
    return packed_sequence_mask_function((documents * packed).expand(batch_size, -1))


def keep_documents_apart(create_mask):
    """transformers' causal masks do it by themselves, where neither a mask nor a cache is given; its others do not."""

    def create(inputs_embeds, attention_mask, past_key_values, position_ids, **kwargs):
        alone = attention_mask is None and past_key_values is None
        return create_mask(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            and_mask_function=same_document(position_ids if alone else None, inputs_embeds.shape[0]),
            **kwargs,
        )

    return create


MASKS = {
    "bidirectional": {
        "full_attention": keep_documents_apart(create_bidirectional_mask),
        "sliding_attention": keep_documents_apart(create_bidirectional_sliding_window_mask),
    },
    "causal": {
        "full_attention": create_causal_mask,
        "sliding_attention": create_sliding_window_causal_mask,
    },
}

# ---------------------------------------------------------------------------------------------------------------------
# Attention


def eager_attention(
    module: nn.Module,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, step by step, and the one implementation that returns the attention weights."""
    k, v = (states.repeat_interleave(module.num_key_value_groups, dim=1) for states in (k, v))
    scores = torch.matmul(q, k.transpose(2, 3)) * scaling  # (batch, heads, queries, keys)
    for addend in (position_bias, attention_mask):
        scores = scores if addend is None else scores + addend
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, v).transpose(1, 2).contiguous(), weights


def own_cache(past_key_values: Cache | None) -> Cache | None:
    """The stack's own keys and values: a decoder's cache holds those of what it reads beside them."""
    return getattr(past_key_values, "self_attention_cache", past_key_values)


class Attention(nn.Module):
    """Multi-head attention with grouped keys and values; kernel, mask, positions and cache all come from outside."""

    def __init__(self, config: TriuneConfig, layer_idx: int, rotate, source_size: int | None = None):
        super().__init__()
        options, heads, kv_heads = config.attention, config.num_attention_heads, config.num_key_value_heads
        self.config = config  # the kernel reads the attention implementation here
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = heads // kv_heads
        self.scaling = options["scale"] or config.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.is_causal = options["type"] == "causal"
        self.sliding_window = attention_window(config, layer_idx)
        self.rotate = rotate
        source_size = source_size or config.hidden_size
        self.q_proj = nn.Linear(config.hidden_size, heads * self.head_dim, bias=options["qkv_bias"])
        self.k_proj = nn.Linear(source_size, kv_heads * self.head_dim, bias=options["qkv_bias"])
        self.v_proj = nn.Linear(source_size, kv_heads * self.head_dim, bias=options["qkv_bias"])
        self.o_proj = nn.Linear(heads * self.head_dim, config.hidden_size, bias=options["out_bias"])
        self.q_norm = build(NORMS, config.norm, self.head_dim) if options["qk_norm"] else nn.Identity()
        self.k_norm = build(NORMS, config.norm, self.head_dim) if options["qk_norm"] else nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rotation: tuple[torch.Tensor, ...] = (),
        past_key_values: Cache | None = None,
        given: Tokens = EVERYTHING,
        gives: Tokens = EVERYTHING,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`given`: the tokens that `hidden_states` holds. `gives`: those that are answered, which see all of them."""
        q = self.queries(narrow(hidden_states, given, gives), gives)
        k, v = self.keys_and_values(hidden_states, given)
        q, k = self.rotate(q, k, *rotation)
        if past_key_values is not None:
            k, v = own_cache(past_key_values).update(k, v, self.layer_idx)
        return self.attend(q, k, v, attention_mask, gives, **kwargs)

    def queries(self, x: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        return tokens.spread(self.q_norm(self.split(self.q_proj(x)))).transpose(1, 2)

    def keys_and_values(self, x: torch.Tensor, tokens: Tokens = EVERYTHING) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = self.k_norm(self.split(self.k_proj(x))), self.split(self.v_proj(x))
        return tokens.spread(k).transpose(1, 2), tokens.spread(v).transpose(1, 2)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (x.shape[-1] // self.head_dim, self.head_dim))  # (batch, length, heads, head)

    def attend(self, q, k, v, attention_mask, gives: Tokens, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        out, weights = kernel(
            self,
            q,
            k,
            v,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(gives.pick(out.reshape(q.shape[0], q.shape[2], -1))), weights

    def extra_repr(self) -> str:
        return f"causal={self.is_causal}, head_dim={self.head_dim}, window={self.sliding_window}"


class CrossAttention(Attention):
    """The same attention with keys and values of a source: the hidden states that an encoder returned. They have no
    positions here, and with a cache they are computed once."""

    def __init__(self, config: TriuneConfig, layer_idx: int, source_size: int):
        super().__init__(config, layer_idx, rotate=None, source_size=source_size)
        self.is_causal, self.sliding_window = False, None

    def forward(
        self,
        hidden_states,
        source,
        source_mask=None,
        past_key_values: EncoderDecoderCache | None = None,
        tokens: Tokens = EVERYTHING,
    ):
        k, v = self.remembered(source, past_key_values)
        return self.attend(self.queries(hidden_states, tokens), k, v, source_mask, tokens)

    def remembered(self, source: torch.Tensor, past_key_values: EncoderDecoderCache | None):
        if past_key_values is None:
            return self.keys_and_values(source)
        if not past_key_values.is_updated.get(self.layer_idx):
            past_key_values.cross_attention_cache.update(*self.keys_and_values(source), self.layer_idx)
            past_key_values.is_updated[self.layer_idx] = True
        seen = past_key_values.cross_attention_cache.layers[self.layer_idx]
        return seen.keys, seen.values


def attention_window(config: TriuneConfig, layer_idx: int) -> int | None:
    """What kernels call the window: the token itself counts, so a window of n on each side is n + 1."""
    if config.layer_types[layer_idx] == "full_attention":
        return None
    return config.sliding_window + (config.attention["type"] == "bidirectional")


# ---------------------------------------------------------------------------------------------------------------------
# Layer


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def pre_norm(x: torch.Tensor, norm: nn.Module, sublayer, narrowed=same) -> torch.Tensor:
    return narrowed(x) + sublayer(norm(x))


def post_norm(x: torch.Tensor, norm: nn.Module, sublayer, narrowed=same) -> torch.Tensor:
    return norm(narrowed(x) + sublayer(x))


PLACEMENTS = {"pre": pre_norm, "post": post_norm}


class CrossBranch(nn.Module):
    """A decoder's third sublayer, between the other two: attention to what an encoder returned."""

    def __init__(self, config: TriuneConfig, layer_idx: int, source_size: int, residual: nn.Module):
        super().__init__()
        self.add = PLACEMENTS[config.norm_placement]
        self.norm = build(NORMS, config.norm, config.hidden_size)
        self.attn = CrossAttention(config, layer_idx, source_size)
        self.residual = residual
        self.attn.o_proj.ends_branch = True

    def forward(self, hidden_states: torch.Tensor, tokens: Tokens, *source) -> torch.Tensor:
        def attend(x):
            return self.residual(self.attn(x, *source, tokens=tokens)[0], tokens)

        return self.add(hidden_states, self.norm, attend)


class NoCrossBranch(nn.Module):
    """A stack that reads nothing but its own input."""

    def forward(self, hidden_states: torch.Tensor, tokens: Tokens, *source) -> torch.Tensor:
        return hidden_states


class TransformerLayer(GradientCheckpointingLayer):
    """Attention, then feed-forward, each added to the residual stream. In a decoder that reads a source, attention to
    it in between."""

    def __init__(self, config: TriuneConfig, layer_idx: int, rotate, source_size: int | None = None):
        super().__init__()
        size, dropout = config.hidden_size, config.hidden_dropout_prob
        residual = {name: value for name, value in config.residual.items() if name != "zero_init"}  # `_init_weights`'
        drop_path = residual.pop("stochastic_depth") * layer_idx / max(config.num_hidden_layers - 1, 1)
        in_front = config.embedding["norm"] == "first" and layer_idx == 0  # its attention norm stands in `embeddings`
        self.add = PLACEMENTS[config.norm_placement]
        self.attn_norm = nn.Identity() if in_front else build(NORMS, config.norm, size)
        self.self_attn = Attention(config, layer_idx, rotate)
        self.attn_residual = build(RESIDUALS, residual, size, dropout, drop_path)
        self.cross = NoCrossBranch()
        if source_size:
            reading = build(RESIDUALS, residual, size, dropout, drop_path)
            self.cross = CrossBranch(config, layer_idx, source_size, reading)
        self.mlp_norm = build(NORMS, config.norm, size)
        self.mlp = build(FEED_FORWARDS, config.feed_forward, size, config.intermediate_size, config.hidden_act)
        self.mlp_residual = build(RESIDUALS, residual, size, dropout, drop_path)
        for projection in (self.self_attn.o_proj, self.mlp.down_proj):
            projection.ends_branch = True  # into the residual stream: `_init_weights` starts it smaller or at zero

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor | None = None,
        source: torch.Tensor | None = None,
        source_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        given: Tokens = EVERYTHING,
        gives: Tokens = EVERYTHING,
        **kwargs,
    ):
        # The first three are given by place: reentrant checkpointing follows gradients only there.
        kwargs |= {"past_key_values": past_key_values, "given": given, "gives": gives}
        if position_bias is not None:
            kwargs["position_bias"] = position_bias

        def attend(x):
            return self.attn_residual(self.self_attn(x, **kwargs)[0], gives)

        def transform(x):
            return self.mlp_residual(self.mlp(x), gives)

        hidden_states = self.add(hidden_states, self.attn_norm, attend, lambda x: narrow(x, given, gives))
        hidden_states = self.cross(hidden_states, gives, source, source_mask, past_key_values)
        return self.add(hidden_states, self.mlp_norm, transform)


# ---------------------------------------------------------------------------------------------------------------------
# Stack


class TriunePreTrainedModel(PreTrainedModel):
    """What every model of the family shares: its configuration, what transformers may do with it, and its start."""

    config: TriuneConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerLayer"]  # noqa: RUF012 - transformers' class fields; FSDP2 wants each name found
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": TransformerLayer, "attentions": Attention}  # noqa: RUF012

    def __init__(self, config: TriuneConfig, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        self.model_tags = [*TAGS]  # transformers adds to this list: each model has its own
        config.check()
        for base in type(self).__mro__:
            config.check_head(base.__name__)
        if nn.LayerNorm(1).weight.device.type == "cpu":  # not where sizes alone are asked for
            config.check_memory(torch.get_default_dtype().itemsize)

    @property
    def _supports_flash_attn(self) -> bool:
        """Flash kernels take no addend to the scores."""
        return not self.config.adds_to_scores

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """
        | parameter                                  | start                                           |
        |--------------------------------------------|-------------------------------------------------|
        | weights of linear maps and embeddings      | N(0, initializer_range)                         |
        | of o_proj and down_proj in pre-norm stacks | N(0, initializer_range / sqrt(2 * layers)): the |
        |                                            | residual stream keeps its size (GPT-2)          |
        | the same with residual["zero_init"]        | 0: a fresh layer adds nothing (nanochat)        |
        | CLS and register tokens                    | N(0, initializer_range)                         |
        | biases; norms; layer scale                 | 0; weight 1, bias 0; residual["init"]           |
        | the slope of PReLU                         | 1/4                                             |
        """
        super()._init_weights(module)
        std = self.config.initializer_range
        ends_branch = getattr(module, "ends_branch", False)
        if ends_branch and self.config.residual["zero_init"]:
            init.zeros_(module.weight)
        elif ends_branch and self.config.norm_placement == "pre":
            init.normal_(module.weight, std=std / math.sqrt(2 * self.config.num_hidden_layers))
        elif isinstance(module, PatchInput):
            for tokens in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                init.normal_(tokens, std=std)
        elif isinstance(module, ScaledResidual):
            init.constant_(module.scale, module.init)
        elif isinstance(module, nn.PReLU):
            init.constant_(module.weight, 0.25)

    @functools.wraps(PreTrainedModel.save_pretrained)
    def save_pretrained(self, save_directory, *args, **kwargs):
        with unchanged(Path(save_directory, "README.md")):  # transformers writes the Hub's card over it
            super().save_pretrained(save_directory, *args, **kwargs)
        with contextlib.suppress(OSError):  # safetensors writes for its owner only; the umask shows in other files
            for weights in Path(save_directory).glob("model*.safetensors"):
                shutil.copymode(Path(save_directory, "config.json"), weights)

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        """The last step of every way of pushing."""
        heads = self.config.heads
        head = next((base.__name__ for base in type(self).__mro__ if base.__name__ in heads), "TriuneModel")
        own = {"revision": kwargs.get("revision"), "token": kwargs.get("token")}
        put_card(working_dir, repo_id, self.config, heads.get(head), self.num_parameters(), **own)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


@contextlib.contextmanager
def unchanged(file: Path):
    """A file that is there now is there afterwards, as it was."""
    before = file.read_bytes() if file.is_file() else None
    try:
        yield
    finally:
        if before is not None and not (file.is_file() and file.read_bytes() == before):
            file.write_bytes(before)


class Transformer(TriunePreTrainedModel):
    """The stack: `embed` turns the input into the hidden states of layer 0, `encode` sends them through the layers.

    Heads and compositions call the two in a row, or do something in between (MAE drops patches there). With a
    `source_size` the layers also read a source of that width: the hidden states of an encoder.
    """

    def __init__(self, config: TriuneConfig, source_size: int | None = None):
        super().__init__(config)
        text = config.embedding["type"] == "tokens"
        self.embed_tokens, self.embeddings = INPUTS[config.embedding["type"]](config)
        frame = Frame(
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            head_dim=config.head_dim,
            num_positions=config.num_positions,
            causal=config.attention["type"] == "causal",
            grid=None if text else config.grid,
            num_prefix=config.num_placed_tokens,
        )
        self.positions = build(POSITIONS, config.position, frame)
        self.layers = nn.ModuleList(
            TransformerLayer(config, layer_idx, self.positions.rotate, source_size)
            for layer_idx in range(config.num_hidden_layers)
        )
        self.norm = build(NORMS, config.norm, config.hidden_size) if config.final_norm else nn.Identity()
        self.masks = MASKS[config.attention["type"]]
        self.main_input_name = "input_ids" if text else "pixel_values"

    def embed(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> torch.Tensor:
        given = [value for value in (input_ids, pixel_values, inputs_embeds) if value is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of input_ids, pixel_values and inputs_embeds")
        if inputs_embeds is not None and not self.owns_first_layer():
            return inputs_embeds
        grid = self.embeddings.grid(given[0] if inputs_embeds is None else None, interpolate_pos_encoding)
        x = self.embed_tokens(given[0]) if inputs_embeds is None else inputs_embeds
        if not x.shape[1]:
            raise ValueError(f"the input has no tokens: its shape is {tuple(given[0].shape)}")
        if position_ids is None:
            position_ids = next_positions(x, past_key_values)
        addend = self.positions.addend(x, self.embeddings.places(x, position_ids), grid)
        return self.embeddings(x, addend, token_type_ids)

    def owns_first_layer(self) -> bool:
        """Not so in a later stage of a pipeline, where transformers and vLLM put an identity in its place and hand
        over the hidden states of the stage before as `inputs_embeds`."""
        return not isinstance(self.layers[0], nn.Identity)

    def encode(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | dict | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        source: torch.Tensor | None = None,
        wanted: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """`wanted` (batch, length): the tokens whose hidden states are read; those of the others come back as zeros,
        where it saves work. Where the hidden states of every layer are asked for, nothing is left out."""
        own = own_cache(past_key_values)
        layer_types = dict.fromkeys(self.config.layer_types)  # each kind once, in an order that does not vary
        masks = attention_mask  # `generate` with a static cache hands over the finished masks by layer type
        if not isinstance(masks, dict):
            masks = {
                kind: self.masks[kind](
                    config=self.config,
                    inputs_embeds=hidden_states,
                    attention_mask=attention_mask,
                    past_key_values=own,
                    position_ids=position_ids,  # as given: only then can they restart
                )
                for kind in layer_types
            }
        if position_ids is None:
            position_ids = next_positions(hidden_states, own)
        rotations = {kind: self.positions.rotation(hidden_states, position_ids, kind) for kind in layer_types}
        biases = {kind: self.position_bias(hidden_states, own, kind) for kind in layer_types}
        shown = any(kwargs.get(name, getattr(self.config, name)) for name in SHOWN)
        given, last = select(None if shown else wanted, attention_mask)
        hidden_states = given.pick(hidden_states)
        for layer, kind in zip(self.layers, self.config.layer_types):
            hidden_states = layer(
                hidden_states,
                biases[kind],
                source,
                attention_mask=masks[kind],
                rotation=rotations[kind],
                position_ids=position_ids,
                past_key_values=past_key_values,
                given=given,
                gives=last if layer is self.layers[-1] else given,
                **kwargs,
            )
        return last.spread(self.norm(hidden_states))

    def position_bias(self, x: torch.Tensor, past_key_values: Cache | None, kind: str) -> torch.Tensor | None:
        """The addend to the scores of the layers of one kind; refused where the kernel would ignore it."""
        bias = self.positions.bias(x, past_key_values, self.config.layer_types.index(kind))
        if bias is None:
            return None
        if self.config._attn_implementation not in BIASED_KERNELS:
            raise ValueError(
                "position 'relative' adds to the attention scores, which attention implementation "
                f"{self.config._attn_implementation!r} does not take: use one of {', '.join(BIASED_KERNELS)}"
            )
        return bias.expand(x.shape[0], -1, -1, -1)  # flex attention reads it by sample


SHOWN = ("output_hidden_states", "output_attentions")


def next_positions(x: torch.Tensor, past_key_values: Cache | None) -> torch.Tensor:
    """The positions that follow what the cache has seen: (1, length)."""
    seen = 0 if past_key_values is None else past_key_values.get_seq_length()
    return torch.arange(x.shape[1], device=x.device)[None] + seen


def build_text_input(config: TriuneConfig) -> tuple[nn.Module, nn.Module]:
    entry, size = config.embedding, config.hidden_size
    embed_tokens = TokenEmbedding(config.vocab_size, size, scale=entry["scale"])
    return embed_tokens, TokenInput(
        size, entry["type_vocab_size"], norm=build_input_norm(config), dropout=config.hidden_dropout_prob
    )


def build_image_input(config: TriuneConfig) -> tuple[nn.Module, nn.Module]:
    entry, size = config.embedding, config.hidden_size
    channels, patch = entry["num_channels"], entry["patch_size"]
    widths = (channels * patch**2, size)
    norms = [build(NORMS, config.norm, width) if entry["patch_norms"] else nn.Identity() for width in widths]
    embed_patches = PatchEmbedding(channels, patch, size, bias=entry["bias"], norms=norms)
    return embed_patches, PatchInput(
        size, entry, config.grid, norm=build_input_norm(config), dropout=config.hidden_dropout_prob
    )


def build_input_norm(config: TriuneConfig) -> nn.Module:
    return nn.Identity() if config.embedding["norm"] == "none" else build(NORMS, config.norm, config.hidden_size)


INPUTS = {"tokens": build_text_input, "patches": build_image_input}
