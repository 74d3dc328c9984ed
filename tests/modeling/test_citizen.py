"""A Triune model is a first-class citizen of transformers: whatever the library, its Trainer, PEFT, exporters and
servers do with a model, they can do with this one, and the numbers stay the same.

Every test compares with something that is not the code under test: another kernel, a loop written here, a formula,
the same model without the feature. Models are tiny and have large weights, so that a wrong number shows.
"""

import copy
import gc
import itertools

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors import safe_open
from torch import nn
from transformers import AutoModel, DynamicCache, Trainer, TrainingArguments
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from triune.configuration import TriuneConfig
from triune.modeling import (
    TriuneForCausalLM,
    TriuneForImageClassification,
    TriuneForMaskedLM,
    TriuneForSequenceClassification,
    TriuneForTokenClassification,
    TriuneModel,
)


VOCAB, LENGTH, LAYERS = 99, 10, 2
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
IMAGES = {"type": "patches", "image_size": 8, "patch_size": 4}
MIXED = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 3}
HEADS = {"masked": TriuneForMaskedLM, "causal": TriuneForCausalLM, "image": TriuneForImageClassification}


# ---------------------------------------------------------------------------------------------------------------------
# Models and inputs


def make_config(**changes) -> TriuneConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64}
    text = {} if "patches" in str(changes.get("embedding")) else {"vocab_size": VOCAB, "max_position_embeddings": 48}
    return TriuneConfig(**{**sizes, **text, "initializer_range": 0.2, **changes})


def make(head: type, **changes):
    torch.manual_seed(0)
    return head(make_config(**changes)).eval()


def make_head(kind: str, **changes):
    own = {"masked": {}, "causal": {"attention": "causal"}, "image": {"embedding": IMAGES, "num_labels": 3}}[kind]
    return make(HEADS[kind], **{**own, **changes})


def tokens(batch: int = 2, length: int = LENGTH, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def pixels(batch: int = 2, height: int = 8, width: int = 8, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def inputs_of(kind: str, batch: int = 2, length: int = LENGTH, seed: int = 1) -> dict[str, torch.Tensor]:
    if kind == "image":
        return {"pixel_values": pixels(batch, seed=seed)}
    return {"input_ids": tokens(batch, length, seed)}


def labels_of(kind: str, inputs: dict) -> torch.Tensor:
    return torch.tensor([2, 0, 1, 2])[: len(inputs["pixel_values"])] if kind == "image" else inputs["input_ids"]


def left_padded(prompts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    length = max(map(len, prompts))
    ids = torch.stack([F.pad(prompt, (length - len(prompt), 0)) for prompt in prompts])
    mask = torch.stack([F.pad(torch.ones_like(prompt), (length - len(prompt), 0)) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def close(one, other, **tolerance) -> None:
    torch.testing.assert_close(one, other, **{**CLOSE, **tolerance})


@torch.no_grad()
def logits(model, **inputs) -> torch.Tensor:
    return model(**inputs).logits


@torch.no_grad()
def states(model, **inputs) -> torch.Tensor:
    return model(**inputs).last_hidden_state


def product(**axes) -> list:
    """One pytest parameter per combination: names to dicts of configuration fields, merged."""
    combined = []
    for names in itertools.product(*axes.values()):
        merged = {}
        for axis, name in zip(axes.values(), names):
            merged |= axis[name]
        combined.append(pytest.param(merged, id="-".join(names)))
    return combined


# ---------------------------------------------------------------------------------------------------------------------
# Attention kernels

DIRECTIONS = {"causal": {"attention": "causal"}, "bidirectional": {"attention": "bidirectional"}}
POSITIONS = {kind: {"position": kind} for kind in ("learned", "rotary", "relative")}
SHAPES = {
    "full": {},
    "window": {"sliding_window": 3},
    "mixed": MIXED,
    "grouped": {"num_key_value_heads": 2},
    "grouped-window": {"num_key_value_heads": 2, "sliding_window": 3},
}
PADDING = {
    "unpadded": torch.ones(2, LENGTH, dtype=torch.long),
    "left": torch.tensor([[0] * 4 + [1] * 6, [1] * LENGTH]),
    "right": torch.tensor([[1] * 7 + [0] * 3, [1] * LENGTH]),
}


@pytest.fixture
def flex_calls(monkeypatch):
    """Flex attention run without its compiler, which takes seconds per shape; counts how often it was called."""
    calls, flex = [], ALL_ATTENTION_FUNCTIONS["flex_attention"]

    def counted(*args, **kwargs):
        calls.append(args)
        return flex(*args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flex_attention", counted)
    with torch.compiler.set_stance("force_eager"):
        yield calls


def of_kernel(model, kernel: str, mask: torch.Tensor) -> torch.Tensor:
    """Hidden states of the tokens that are not padding, computed with a kernel."""
    model.set_attn_implementation(kernel)
    return states(model, input_ids=tokens(), attention_mask=mask)[mask.bool()]


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("changes", product(direction=DIRECTIONS, position=POSITIONS, shape=SHAPES))
def test_kernels_agree(changes, padding, flex_calls):
    """sdpa and flex attention against eager, for every mask and kind of position."""
    model = make(TriuneModel, **changes)
    eager = of_kernel(model, "eager", PADDING[padding])
    close(of_kernel(model, "sdpa", PADDING[padding]), eager)
    close(of_kernel(model, "flex_attention", PADDING[padding]), eager)
    assert len(flex_calls) == LAYERS


@pytest.mark.parametrize("kernel", ["sdpa", "flex_attention"])
def test_kernels_agree_on_images(kernel, flex_calls):
    """sdpa and flex attention against eager, for an image model with CLS and register tokens."""
    model = make(TriuneModel, embedding={**IMAGES, "num_register_tokens": 2}, position="learned")
    model.set_attn_implementation("eager")
    eager = states(model, pixel_values=pixels())
    model.set_attn_implementation(kernel)
    close(states(model, pixel_values=pixels()), eager)


@pytest.mark.slow
@pytest.mark.parametrize("changes", product(direction=DIRECTIONS, position={"relative": {"position": "relative"}}))
def test_flex_attention_compiled(changes):
    """Flex attention through the real compiler against eager, with a bias and padding."""
    model = make(TriuneModel, **changes)
    eager = of_kernel(model, "eager", PADDING["left"])
    close(of_kernel(model, "flex_attention", PADDING["left"]), eager)


def test_kernels_give_equal_gradients():
    """The gradients of sdpa against those of eager, for the relative bias and every other parameter."""
    model = make(TriuneForCausalLM, attention="causal", position="relative", num_key_value_heads=2)
    gradients = {}
    for kernel in ("eager", "sdpa"):
        model.set_attn_implementation(kernel)
        model.zero_grad()
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        gradients[kernel] = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    close(gradients["sdpa"], gradients["eager"])


# -- flash: a stand-in, because there is no GPU here ------------------------------------------------------------------


def flash_attn(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
    """What flash_attn_func documents, written out: (batch, length, heads, size); a causal mask and a window aligned to
    the last query and key; -1 stands for no limit; grouped heads."""
    repeats = q.shape[2] // k.shape[2]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    distance = torch.arange(k.shape[2])[None] - torch.arange(q.shape[2])[:, None] - (k.shape[2] - q.shape[2])
    left, right = window_size
    seen = (distance <= 0) if causal else torch.ones_like(distance, dtype=torch.bool)
    seen = seen & ((distance >= -left) | (left < 0)) & ((distance <= right) | (right < 0))
    scores = (q @ k.transpose(2, 3) * softmax_scale).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def flash_attn_varlen(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
):
    """The same for sequences laid end to end."""
    pieces = []
    for (start_q, end_q), (start_k, end_k) in zip(
        itertools.pairwise(cu_seqlens_q.tolist()), itertools.pairwise(cu_seqlens_k.tolist())
    ):
        piece = q[None, start_q:end_q], k[None, start_k:end_k], v[None, start_k:end_k]
        pieces.append(flash_attn(*piece, dropout_p, softmax_scale, causal, window_size)[0])
    return torch.cat(pieces)


@pytest.fixture
def flash(monkeypatch):
    """transformers' own flash path, with the two kernels above in the place of the package's."""
    from transformers import modeling_flash_attention_utils as utils

    functions = (flash_attn, flash_attn_varlen, None, utils._pad_input, utils._unpad_input)
    processors = (utils._lazy_define_process_function(flash_attn_varlen), dict)
    monkeypatch.setattr(utils, "lazy_import_flash_attention", lambda *args, **kwargs: (functions, processors))


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize(
    "changes",
    product(
        direction=DIRECTIONS,
        position={kind: {"position": kind} for kind in ("learned", "rotary")},
        shape=SHAPES,
    ),
)
def test_flash_attention_dispatch(changes, padding, flash):
    """The flash path against eager, with kernels written from flash attention's documentation; not run on a GPU."""
    model = make(TriuneModel, **changes)
    eager = of_kernel(model, "eager", PADDING[padding])
    model.config._attn_implementation = "flash_attention_2"  # past the check for the package
    found = states(model, input_ids=tokens(), attention_mask=PADDING[padding])[PADDING[padding].bool()]
    close(found, eager)


def test_flash_attention_decodes_with_a_cache(flash):
    """Greedy tokens of the flash path against eager's, windows and left padding included; not run on a GPU."""
    model = make(TriuneForCausalLM, attention="causal", position="rotary", num_key_value_heads=2, **MIXED)
    batch = left_padded([tokens(1, length, seed=length)[0] for length in (3, 7)])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    model.set_attn_implementation("eager")
    eager = model.generate(**batch, **options)
    model.config._attn_implementation = "flash_attention_2"
    assert model.generate(**batch, **options).tolist() == eager.tolist()


def test_relative_positions_refuse_flash_attention():
    """Flash kernels take no bias on the scores: asking for them is an error, when building and afterwards."""
    config = make_config(position="relative")
    with pytest.raises(ValueError, match="does not support Flash Attention"):
        TriuneModel._from_config(config, attn_implementation="flash_attention_2")
    with pytest.raises(ValueError, match="does not support Flash Attention"):
        TriuneModel(config).set_attn_implementation("flash_attention_2")
    assert make(TriuneModel, position="rotary")._supports_flash_attn


class Recorder:
    """An attention implementation that computes what eager does and keeps what it was given."""

    def __init__(self):
        self.calls = []

    def __call__(self, module, query, key, value, attention_mask, **kwargs):
        self.calls.append((module, attention_mask, kwargs))
        k, v = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
        out = F.scaled_dot_product_attention(query, k, v, is_causal=module.is_causal, scale=kwargs["scaling"])
        return out.transpose(1, 2), None


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "recorder", recorder)
    return recorder


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_arguments_of_the_kernel(direction, recorder):
    """What a kernel is handed, against the configuration: window, causality, dropout, scale, positions, the caller's
    own arguments. With flash a window of n + 1 is n on each side; not run on a GPU."""
    options = {"type": direction, "scale": 0.3}
    model = make(TriuneModel, attention=options, position="rotary", attention_probs_dropout_prob=0.25, **MIXED)
    model.set_attn_implementation("recorder")
    places = torch.arange(5, 5 + LENGTH)[None]
    model.train()(input_ids=tokens(), position_ids=places, use_cache=False, own_argument="kept")
    model.eval()(input_ids=tokens(), position_ids=places, use_cache=False)
    assert [module.layer_idx for module, _, _ in recorder.calls] == [0, 1, 0, 1]
    for module, mask, kwargs in recorder.calls:
        assert mask is None  # transformers makes no masks for kernels that it does not know
        assert module.is_causal == (direction == "causal")
        assert kwargs["scaling"] == 0.3
        assert torch.equal(kwargs["position_ids"], places)
        window = MIXED["sliding_window"] + (direction == "bidirectional")
        assert kwargs["sliding_window"] == (window if module.layer_idx == 1 else None)
    assert [kwargs["dropout"] for _, _, kwargs in recorder.calls] == [0.25, 0.25, 0.0, 0.0]
    assert [kwargs.get("own_argument") for _, _, kwargs in recorder.calls] == ["kept", "kept", None, None]


def test_default_scale(recorder):
    """Without a scale of its own the kernel is handed head_dim ** -0.5."""
    model = make(TriuneModel, head_dim=16)
    model.set_attn_implementation("recorder")
    model(input_ids=tokens())
    assert [kwargs["scaling"] for _, _, kwargs in recorder.calls] == [0.25, 0.25]


# ---------------------------------------------------------------------------------------------------------------------
# Caches and generation

GENERATORS = {
    **{kind: {"position": kind} for kind in ("none", "learned", "sinusoidal", "rotary", "relative")},
    "grouped": {"position": "rotary", "num_key_value_heads": 2, "attention": {"type": "causal", "qk_norm": True}},
    "window": {"position": "rotary", "sliding_window": 4},
    "mixed": {"position": {"type": "rotary", "local_theta": 100.0}, **MIXED},
    "window-first": {"position": "rotary", **MIXED, "layer_types": MIXED["layer_types"][::-1]},
    "relative-window": {"position": "relative", "sliding_window": 4},
    "relative-mixed": {"position": "relative", **MIXED},
    "relative-grouped": {"position": "relative", "num_key_value_heads": 1},
    "post-norm": {"position": "learned", "norm_placement": "post"},
}
NEW = 7


def make_generator(name: str) -> TriuneForCausalLM:
    model = make(TriuneForCausalLM, **{"attention": "causal", **GENERATORS[name]})
    model.generation_config.pad_token_id = 0
    return model


def greedy(model, **inputs) -> list:
    length = 0 if "inputs_embeds" in inputs else inputs["input_ids"].shape[1]
    return model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[:, length:].tolist()


@torch.no_grad()
def greedy_by_hand(model, prompt: torch.Tensor) -> list[int]:
    """One prompt, no cache, no padding: the whole sequence through the model for every new token."""
    ids = prompt[None]
    for _ in range(NEW):
        chosen = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1)
        ids = torch.cat([ids, chosen[:, None]], dim=1)
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("cache", ["dynamic", "static", None])
@pytest.mark.parametrize("name", GENERATORS)
def test_caches_give_the_tokens_of_no_cache(name, cache):
    """Greedy generation with each cache against a loop without one."""
    model, prompts = make_generator(name), tokens()
    how = {"use_cache": False} if cache is None else {"cache_implementation": cache}
    found = greedy(model, input_ids=prompts, attention_mask=torch.ones_like(prompts), **how)
    assert found == [greedy_by_hand(model, prompt) for prompt in prompts]


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("cache", ["dynamic", "static", None])
@pytest.mark.parametrize("name", GENERATORS)
def test_left_padding_changes_nothing(name, cache, kernel):
    """A left-padded batch of prompts against the same prompts one by one, unpadded, without a cache."""
    model = make_generator(name)
    model.set_attn_implementation(kernel)
    prompts = [tokens(1, length, seed=length)[0] for length in (2, 9, 5)]
    how = {"use_cache": False} if cache is None else {"cache_implementation": cache}
    found = greedy(model, **left_padded(prompts), **how)
    assert found == [greedy_by_hand(model, prompt) for prompt in prompts]


@pytest.mark.parametrize("name", GENERATORS)
def test_prefill_in_pieces(name):
    """Logits of a sequence fed in pieces through one cache against the whole sequence at once."""
    model, ids = make_generator(name), tokens(2, 12)
    whole = logits(model, input_ids=ids, use_cache=False)
    cache, pieces = DynamicCache(config=model.config), []
    for piece in ids.split([5, 1, 4, 1, 1], dim=1):
        pieces.append(logits(model, input_ids=piece, past_key_values=cache, use_cache=True))
    close(torch.cat(pieces, dim=1), whole)
    assert cache.get_seq_length() == 12


@pytest.mark.parametrize("name", ["learned", "mixed", "relative"])
def test_beam_search(name):
    """The score that beam search reports against the sequence's log probability, computed in one forward; and its
    sequences with a cache against those without."""
    model, prompts = make_generator(name), tokens()
    options = {"num_beams": 3, "max_new_tokens": NEW, "do_sample": False}
    found = model.generate(prompts, **options, return_dict_in_generate=True, output_scores=True)
    log_probs = logits(model, input_ids=found.sequences, use_cache=False).log_softmax(-1)[:, LENGTH - 1 : -1]
    chosen = log_probs.gather(-1, found.sequences[:, LENGTH:, None])[..., 0]
    close(found.sequences_scores, chosen.sum(-1) / NEW)
    assert found.sequences.tolist() == model.generate(prompts, **options, use_cache=False).tolist()


@pytest.mark.parametrize("name", ["learned", "window", "relative"])
def test_sampling_with_a_seed(name):
    """Sampled tokens against a loop of softmax and multinomial with the same seed and no cache."""
    model, ids = make_generator(name), tokens()
    torch.manual_seed(7)
    found = model.generate(ids, max_new_tokens=NEW, do_sample=True, temperature=0.7, top_k=0, top_p=1.0)
    torch.manual_seed(7)
    for _ in range(NEW):
        probabilities = (logits(model, input_ids=ids, use_cache=False)[:, -1] / 0.7).softmax(-1)
        ids = torch.cat([ids, torch.multinomial(probabilities, 1)], dim=1)
    assert found.tolist() == ids.tolist()


def test_generation_ends_at_the_end_token():
    """A row that produced the end token is padded from there on; against the same row without an end token."""
    model = make_generator("learned")
    free = greedy(model, input_ids=tokens())
    end = free[0][2]
    stop = free[0].index(end) + 1
    ended = greedy(model, input_ids=tokens(), eos_token_id=end)
    assert ended[0][:stop] == free[0][:stop]
    assert set(ended[0][stop:]) <= {0}


def test_token_type_ids_pass_through_generate():
    """A tokenizer's token_type_ids are accepted by a model without segments and change nothing."""
    model, ids = make_generator("learned"), tokens()
    assert greedy(model, input_ids=ids, token_type_ids=torch.ones_like(ids)) == greedy(model, input_ids=ids)


SMALL_CACHE = {"num_blocks": 32, "page_size": 8, "max_batch_tokens": 64}  # the default fills the memory


@pytest.mark.parametrize(
    "name", ["learned", "mixed", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rotary", "grouped"))]
)
def test_continuous_batching(name):
    """generate_batch, which packs requests into one row with a paged cache, against a loop per prompt."""
    model = make_generator(name)
    prompts = [tokens(1, length, seed=length)[0] for length in (9, 3, 6)]
    options = transformers.GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    found = model.generate_batch(
        [prompt.tolist() for prompt in prompts],
        generation_config=options,
        continuous_batching_config=transformers.ContinuousBatchingConfig(**SMALL_CACHE),
        progress_bar=False,
    )
    in_order = [found[key].generated_tokens for key in sorted(found, key=lambda key: int(key.split("_")[-1]))]
    assert in_order == [greedy_by_hand(model, prompt) for prompt in prompts]


def test_continuous_batching_refuses_relative_positions():
    """Slots of a packed row are no distances: generate_batch with relative positions is an error, not fewer tokens."""
    model = make_generator("relative")
    options = transformers.GenerationConfig(max_new_tokens=2, do_sample=False, eos_token_id=-1, pad_token_id=0)
    with pytest.raises(ValueError, match="relative"):
        model.generate_batch(
            [[5, 6, 7], [8, 9]],
            generation_config=options,
            continuous_batching_config=transformers.ContinuousBatchingConfig(**SMALL_CACHE),
            progress_bar=False,
        )


# ---------------------------------------------------------------------------------------------------------------------
# Inputs


@pytest.mark.parametrize("position", ["learned", "rotary", "relative"])
@pytest.mark.parametrize("head", [TriuneForMaskedLM, TriuneForCausalLM])
def test_inputs_embeds_equal_input_ids(head, position):
    """Vectors of the embedding layer as inputs_embeds against the tokens themselves, forward and generate."""
    direction = "causal" if head is TriuneForCausalLM else "bidirectional"
    model = make(head, attention=direction, position=position, embedding={"type": "tokens", "scale": True})
    ids = tokens()
    vectors = model.get_input_embeddings()(ids)
    close(logits(model, inputs_embeds=vectors), logits(model, input_ids=ids))
    if head is TriuneForCausalLM:
        assert greedy(model, inputs_embeds=vectors) == greedy(model, input_ids=ids)


def test_embedding_scale():
    """A scaled embedding against the row of the table times sqrt(hidden_size)."""
    model = make(TriuneModel, embedding={"type": "tokens", "scale": True})
    embedding = model.get_input_embeddings()
    close(embedding(tokens()), embedding.weight[tokens()] * 32**0.5)


def test_exactly_one_input():
    """No input, or two, is an error that names the three."""
    model, ids = make(TriuneModel), tokens()
    for inputs in ({}, {"input_ids": ids, "inputs_embeds": model.get_input_embeddings()(ids)}):
        with pytest.raises(ValueError, match="input_ids, pixel_values and inputs_embeds"):
            model(**inputs)


@pytest.mark.parametrize("position", ["none", "learned", "sinusoidal", "rotary", "relative"])
def test_default_position_ids(position):
    """Positions counted from 0 and given explicitly against none given."""
    model = make(TriuneModel, position=position)
    given = states(model, input_ids=tokens(), position_ids=torch.arange(LENGTH)[None])
    close(given, states(model, input_ids=tokens()))


def test_position_ids_choose_rows():
    """Learned positions at given places against vectors that already hold those rows, at place 0 of a zero table."""
    model, places = make(TriuneModel), torch.tensor([[7, 3, 40, 0, 1]])
    table = model.positions.table.weight
    vectors = model.get_input_embeddings()(tokens(1, 5)) + table[places] - table[:5]
    close(states(model, inputs_embeds=vectors), states(model, input_ids=tokens(1, 5), position_ids=places))


def test_rotary_positions_are_relative():
    """Rotary positions shifted by a constant against the same positions unshifted: only distances count."""
    model = make(TriuneModel, position="rotary")
    places = torch.arange(LENGTH)[None]
    shifted = states(model, input_ids=tokens(), position_ids=places + 23)
    close(shifted, states(model, input_ids=tokens(), position_ids=places), atol=1e-4)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("position", ["learned", "rotary", "relative"])
def test_packed_sequences(position, kernel):
    """Two texts in one row, positions restarting, against each text alone: transformers separates them in the mask."""
    model = make(TriuneForCausalLM, attention="causal", position=position)
    model.set_attn_implementation(kernel)
    parts = [tokens(1, 6, seed=2), tokens(1, 4, seed=3)]
    places = torch.cat([torch.arange(6), torch.arange(4)])[None]
    packed = logits(model, input_ids=torch.cat(parts, 1), position_ids=places, use_cache=False)
    alone = torch.cat([logits(model, input_ids=part, use_cache=False) for part in parts], 1)
    close(packed, alone)


# ---------------------------------------------------------------------------------------------------------------------
# Training: checkpointing, tied and resized embeddings


CHECKPOINTED = {
    "learned": {},
    "rotary-gated": {"position": "rotary", "feed_forward": "gated", "norm": "rmsnorm"},
    "relative": {"position": "relative"},
    "relative-mixed": {"position": "relative", **MIXED},
    "layer-scale": {"residual": {"type": "layer_scale", "init": 0.5}},
    "dropout": {"hidden_dropout_prob": 0.2, "residual": {"type": "plain", "stochastic_depth": 0.3}},
}


def loss_and_gradients(model, inputs: dict, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    model.train().zero_grad()
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize("name", CHECKPOINTED)
@pytest.mark.parametrize("kind", HEADS)
def test_gradient_checkpointing(kind, name, reentrant):
    """Loss and gradients with checkpointing against those without, dropout included."""
    changes = CHECKPOINTED[name]
    if kind == "image" and name in ("rotary-gated", "relative-mixed"):
        changes = {"position": "relative", "feed_forward": "gated"}
    model, inputs = make_head(kind, **changes), inputs_of(kind)
    plain = loss_and_gradients(model, inputs, labels_of(kind, inputs))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    close(loss_and_gradients(model, inputs, labels_of(kind, inputs)), plain)


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_tied_embeddings_share_storage(kind, tmp_path):
    """Decoder and embeddings are one tensor before saving, once in the file, and one tensor after loading."""
    model = make_head(kind)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()
    loaded = type(model).from_pretrained(tmp_path)
    for one in (model, loaded):
        assert one.get_output_embeddings().weight is one.get_input_embeddings().weight
    close(logits(loaded, **inputs_of(kind)), logits(model, **inputs_of(kind)))


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_untied_embeddings_stay_apart(kind, tmp_path):
    """Untied decoders are saved and loaded as tensors of their own, with the same logits."""
    model = make_head(kind, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.lm_head.weight.data_ptr() != loaded.model.embed_tokens.weight.data_ptr()
    close(logits(loaded, **inputs_of(kind)), logits(model, **inputs_of(kind)))


@pytest.mark.parametrize("size", [VOCAB + 8, VOCAB - 30], ids=["up", "down"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("lm_head", ["plain", "transform", {"type": "plain", "bias": True}], ids=str)
@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_resized_embeddings(kind, lm_head, tied, size, tmp_path):
    """Logits of the tokens that stay against those before; scale, bias, tie, class and a save survive."""
    options = {"tie_word_embeddings": tied, "embedding": {"type": "tokens", "scale": True}, "lm_head": lm_head}
    model = make_head(kind, **options)
    if model.lm_head.bias is not None:
        nn.init.normal_(model.lm_head.bias)
    ids = tokens() % (VOCAB - 30)
    before, embedding = logits(model, input_ids=ids), type(model.get_input_embeddings())
    model.resize_token_embeddings(size)
    kept = min(size, VOCAB)
    after = logits(model, input_ids=ids)
    assert after.shape[-1] == size == model.config.vocab_size == model.get_input_embeddings().num_embeddings
    close(after[..., :kept], before[..., :kept])
    assert type(model.get_input_embeddings()) is embedding
    assert model.get_input_embeddings().embed_scale == 32**0.5
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    model(input_ids=torch.full((1, 4), size - 1), labels=torch.full((1, 4), size - 1)).loss.backward()
    model.save_pretrained(tmp_path)
    close(logits(type(model).from_pretrained(tmp_path), input_ids=ids), after)


# ---------------------------------------------------------------------------------------------------------------------
# Compile and export

COMPILED = {
    **{kind: (kind, {}) for kind in HEADS},
    "relative": ("masked", {"position": "relative"}),
    "window": ("causal", {"position": "rotary", **MIXED}),
    "scaled": ("image", {"residual": "layer_scale", "position": {"type": "sinusoidal", "dimensions": 2}}),
}


@pytest.fixture
def fresh_dynamo():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_without_graph_breaks(name, fresh_dynamo):
    """Logits of one graph (fullgraph) against eager, for two batch sizes and lengths with a single compilation."""
    kind, changes = COMPILED[name]
    model, graphs = make_head(kind, **changes), []

    def backend(graph, examples):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)
    for batch, length in ((2, LENGTH), (3, 7)):
        inputs = inputs_of(kind, batch, length)
        close(logits(compiled, **inputs), logits(model, **inputs))
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_compiles_training(kind, fresh_dynamo):
    """Loss and gradients of one graph (fullgraph, aot_eager) against eager."""
    model, inputs = make_head(kind), inputs_of(kind)
    plain = loss_and_gradients(model, inputs, labels_of(kind, inputs))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    model.zero_grad()
    loss = compiled(**inputs, labels=labels_of(kind, inputs)).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    close((loss.detach(), gradients), plain)


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_compiles_with_inductor(kind, fresh_dynamo):
    """Logits of one graph with the default backend against eager."""
    model, inputs = make_head(kind), inputs_of(kind)
    close(logits(torch.compile(model, fullgraph=True), **inputs), logits(model, **inputs))


def export_inputs(kind: str, batch: int, length: int) -> dict[str, torch.Tensor]:
    inputs = inputs_of(kind, batch, length)
    if kind != "image":
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][0, -2:] = 0
    return inputs


def dynamic_axes(kind: str) -> dict[str, dict[int, torch.export.Dim]]:
    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", max=48)
    names = ("pixel_values",) if kind == "image" else ("input_ids", "attention_mask")
    return {name: {0: batch} if kind == "image" else {0: batch, 1: length} for name in names}


@pytest.mark.parametrize("name", COMPILED)
def test_torch_export(name):
    """The exported program, run on another batch and length, against the model."""
    kind, changes = COMPILED[name]
    model = make_head(kind, **changes, use_cache=False)
    program = torch.export.export(
        model, (), export_inputs(kind, 2, LENGTH), dynamic_shapes=dynamic_axes(kind), strict=False
    )
    other = export_inputs(kind, 5, 7)
    close(program.module()(**other).logits, logits(model, **other))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_transformers_exporter(name):
    """transformers' DynamoExporter with dynamic shapes, run on another batch and length, against the model."""
    exporters = pytest.importorskip("transformers.exporters")
    kind, changes = COMPILED[name]
    model = make_head(kind, **changes, use_cache=False)
    settings = exporters.DynamoConfig(dynamic=True)
    exported = exporters.DynamoExporter().export(model, export_inputs(kind, 2, LENGTH), config=settings)
    other = export_inputs(kind, 5, 7)
    close(exported(**other).logits, logits(model, **other))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_onnx(name, tmp_path):
    """ONNX Runtime on another batch and length against the model."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    kind, changes = COMPILED[name]
    model = make_head(kind, **changes, use_cache=False)
    path = str(tmp_path / "model.onnx")
    example = export_inputs(kind, 2, LENGTH)
    with (
        torch.no_grad()
    ):  # with gradients torch's exporter cannot decompose attention with a trained bias, T5's neither
        torch.onnx.export(
            model, kwargs=example, f=path, dynamo=True, dynamic_shapes=dynamic_axes(kind), output_names=["logits"]
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    other = export_inputs(kind, 5, 7)
    (found,) = session.run(["logits"], {name: value.numpy() for name, value in other.items()})
    close(torch.from_numpy(found), logits(model, **other), atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Devices and number formats

OFFLOADED = {
    **COMPILED,
    "segments": ("masked", {"embedding": {"type": "tokens", "type_vocab_size": 2, "norm": "after"}}),
    "untied": ("causal", {"tie_word_embeddings": False, "lm_head": "transform"}),
    "registers": ("image", {"embedding": {**IMAGES, "num_register_tokens": 2, "norm": "after"}}),
}


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
@pytest.mark.parametrize("kind", HEADS)
def test_device_map(kind, device_map, tmp_path):
    """A model loaded with a device map against the one that was saved."""
    model = make_head(kind)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, device_map=device_map)
    close(logits(loaded, **inputs_of(kind)), logits(model, **inputs_of(kind)))


@pytest.mark.parametrize("name", OFFLOADED)
def test_offload_to_disk(name, tmp_path):
    """A model whose every weight waits on disk against the one that was saved."""
    kind, changes = OFFLOADED[name]
    model, inputs = make_head(kind, **changes), inputs_of(kind)
    model.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=str(tmp_path / "offload")
    )
    assert {parameter.device.type for parameter in loaded.parameters()} == {"meta"}
    close(logits(loaded, **inputs), logits(model, **inputs))


@pytest.mark.parametrize("on_disk", ["model.embeddings", "model.positions", "model.layers.1", "model.norm"])
@pytest.mark.parametrize("name", ["segments", "registers"])
def test_offload_of_one_module(name, on_disk, tmp_path):
    """A model split between memory and disk at one module against the one that was saved."""
    accelerate = pytest.importorskip("accelerate")
    kind, changes = OFFLOADED[name]
    model, inputs = make_head(kind, **changes, tie_word_embeddings=False), inputs_of(kind)
    expected = logits(model, **inputs)
    blocks = [f"model.layers.{index}" for index in range(LAYERS)]
    blocks += [f"model.{name}" for name, _ in model.model.named_children() if name != "layers"]
    blocks += [name for name, _ in model.named_children() if name != "model"]
    device_map = {block: "disk" if block == on_disk else "cpu" for block in blocks}
    split = accelerate.dispatch_model(
        model, device_map=device_map, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True
    )
    assert any(parameter.device.type == "meta" for parameter in split.get_submodule(on_disk).parameters())
    close(logits(split, **inputs), expected)


def test_offload_of_interpolated_positions(tmp_path):
    """An image of another size on a model whose weights wait on disk against the same model in memory."""
    accelerate = pytest.importorskip("accelerate")
    model = make_head("image")
    inputs = {"pixel_values": pixels(2, 16, 8), "interpolate_pos_encoding": True}
    expected = logits(model, **inputs)
    accelerate.disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    close(logits(model, **inputs), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("name", [*COMPILED, "registers"])
def test_half_precision(name, kernel, dtype):
    """Logits in half precision near those in single precision, padding included; loss and gradients finite."""
    kind, changes = OFFLOADED[name]
    model = make_head(kind, **changes, norm="rmsnorm")
    model.set_attn_implementation(kernel)
    inputs = export_inputs(kind, 2, LENGTH)
    full = logits(model, **inputs)
    half = model.to(dtype)
    found = logits(half, **inputs)
    assert found.dtype == dtype
    assert (found.float() - full).norm() / full.norm() < (0.05 if dtype == torch.bfloat16 else 0.01)
    loss = half(**inputs, labels=labels_of(kind, inputs)).loss
    loss.backward()
    assert loss.isfinite()
    assert loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in half.parameters())


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16, "auto"], ids=str)
@pytest.mark.parametrize("kind", HEADS)
def test_dtype_of_from_pretrained(kind, dtype, tmp_path):
    """The dtype asked for, or with auto the one saved, is that of every weight after loading."""
    model = make_head(kind).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=dtype)
    expected = torch.float16 if dtype == torch.float16 else torch.bfloat16
    assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
    assert loaded.config.dtype == loaded.dtype == expected


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("name", [*COMPILED, "grouped"])
def test_autocast(name, kernel):
    """Logits under bfloat16 autocast near those in single precision; gradients finite and in single precision."""
    kind, changes = COMPILED.get(name, ("causal", GENERATORS["grouped"]))
    model, inputs = make_head(kind, **changes), inputs_of(kind)
    model.set_attn_implementation(kernel)
    full = logits(model, **inputs)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**inputs, labels=labels_of(kind, inputs))
    assert (outputs.logits.float() - full).norm() / full.norm() < 0.05
    outputs.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


# ---------------------------------------------------------------------------------------------------------------------
# LoRA


def take_a_step(model, kind: str) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    for _ in range(2):  # the first moves B only: A's gradient passes through B, which starts at 0
        optimizer.zero_grad()
        model(**inputs_of(kind), labels=labels_of(kind, inputs_of(kind))).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("kind", HEADS)
def test_lora_without_target_modules(kind):
    """PEFT's defaults: q_proj and v_proj of every layer, no effect at first, only A and B train, merging is exact."""
    peft = pytest.importorskip("peft")
    model, inputs = make_head(kind), inputs_of(kind)
    plain = logits(model, **inputs)
    adapted = peft.get_peft_model(model, peft.LoraConfig())
    wrapped = {name.rpartition(".layers.")[2] for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    assert wrapped == {f"{index}.self_attn.{name}" for index in range(LAYERS) for name in ("q_proj", "v_proj")}
    close(logits(adapted, **inputs), plain, atol=0, rtol=0)
    trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 2 * len(wrapped)
    assert all("lora_A" in name or "lora_B" in name for name in trainable)
    take_a_step(adapted, kind)
    adapted.eval()
    trained = logits(adapted, **inputs)
    assert (trained - plain).abs().max() > 1e-3
    close(logits(adapted.merge_and_unload(), **inputs), trained)


@pytest.mark.parametrize("kind", HEADS)
def test_add_adapter(kind, tmp_path):
    """transformers' own adapters: a trained one is saved alone and gives the same logits on a fresh base model."""
    peft = pytest.importorskip("peft")
    model, inputs = make_head(kind), inputs_of(kind)
    plain = logits(model, **inputs)
    model.add_adapter(peft.LoraConfig())
    close(logits(model, **inputs), plain, atol=0, rtol=0)
    take_a_step(model, kind)
    model.eval()
    trained = logits(model, **inputs)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()
    assert not (tmp_path / "model.safetensors").exists()
    fresh = make_head(kind)
    fresh.load_adapter(str(tmp_path))
    close(logits(fresh.eval(), **inputs), trained)
    model.disable_adapters()
    close(logits(model, **inputs), plain)


def test_lora_targets_of_others_are_kept():
    """PEFT's table names q_proj and v_proj for this model type and is otherwise as PEFT ships it."""
    constants = pytest.importorskip("peft.utils.constants")
    table = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    assert table["triune"] == ["q_proj", "v_proj"]
    assert table["bert"] == ["query", "value"]


# ---------------------------------------------------------------------------------------------------------------------
# Trainer

SEGMENTED = {"embedding": {"type": "tokens", "type_vocab_size": 2}}
RAGGED = torch.where(torch.arange(LENGTH)[None] > torch.arange(8)[:, None], tokens(8), -100)  # 9, 8, ... 2 labels
TASKS = {
    "masked": (TriuneForMaskedLM, SEGMENTED, RAGGED),
    "causal": (TriuneForCausalLM, {"attention": "causal"}, RAGGED),
    "tokens": (TriuneForTokenClassification, {"num_labels": 3}, torch.where(RAGGED < 0, RAGGED, RAGGED % 3)),
    "sequences": (TriuneForSequenceClassification, {"num_labels": 3}, tokens(8, 1)[:, 0] % 3),
    "regression": (TriuneForSequenceClassification, {"num_labels": 1}, torch.arange(8.0) / 4 - 1),
    "two-numbers": (
        TriuneForSequenceClassification,
        {"num_labels": 2, "problem_type": "regression"},
        torch.arange(16.0).view(8, 2) / 8 - 1,
    ),
    "several-classes": (TriuneForSequenceClassification, {"num_labels": 3}, (tokens(8, 3) % 2).float()),
    "images": (TriuneForImageClassification, {"embedding": IMAGES, "num_labels": 3}, tokens(8, 1)[:, 0] % 3),
}


def rows_of(task: str) -> list[dict[str, torch.Tensor]]:
    columns = {"pixel_values": pixels(8)} if task == "images" else {"input_ids": tokens(8)}
    if task == "masked":
        columns["token_type_ids"] = tokens(8) % 2
    columns["labels"] = TASKS[task][2]
    return [{name: column[index] for name, column in columns.items()} for index in range(8)]


@pytest.fixture
def few_objects():
    """The Trainer collects garbage, which takes long in a process that has loaded this much: set that aside."""
    gc.freeze()
    yield
    gc.unfreeze()


def make_trainer(model, rows, folder, **settings) -> Trainer:
    settings = {"per_device_train_batch_size": 8, "learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 0, **settings}
    arguments = TrainingArguments(
        output_dir=str(folder),
        lr_scheduler_type="constant",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **settings,
    )
    return Trainer(model, arguments, train_dataset=rows)


@pytest.mark.parametrize("task", ["masked", "causal", "images"])
def test_training_lowers_the_loss(task, tmp_path, few_objects):
    """The loss on eight rows after twenty steps of transformers' Trainer against the loss before."""
    head, changes, _ = TASKS[task]
    model, rows = make(head, **changes, initializer_range=0.02), rows_of(task)
    batch = transformers.default_data_collator(rows)
    with torch.no_grad():
        before = model.eval()(**batch).loss
    make_trainer(model, rows, tmp_path, max_steps=20, optim="adamw_torch", learning_rate=1e-2).train()
    with torch.no_grad():
        after = model.eval()(**batch).loss
    assert after < 0.5 * before


@pytest.mark.parametrize("task", TASKS)
def test_gradient_accumulation(task, tmp_path, few_objects):
    """Weights after one step of four micro-batches of two against one batch of eight, with unequal label counts."""
    head, changes, _ = TASKS[task]
    weights = []
    for size, steps in ((8, 1), (2, 4)):
        model = make(head, **changes)
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        make_trainer(model, rows_of(task), tmp_path, max_steps=1, **settings).train()
        weights.append(dict(model.named_parameters()))
    close(weights[1], weights[0], atol=1e-5, rtol=0)


def test_trainer_keeps_token_type_ids(tmp_path):
    """The Trainer drops columns that forward does not name: of a tokenizer's columns and the labels it drops none."""
    datasets = pytest.importorskip("datasets")
    columns = ("input_ids", "attention_mask", "token_type_ids", "labels", "unknown")
    rows = datasets.Dataset.from_dict({name: tokens().tolist() for name in columns})
    for head, changes in (
        (TriuneForMaskedLM, {}),
        (TriuneForCausalLM, {"attention": "causal"}),
        (TriuneForSequenceClassification, {}),
        (TriuneForTokenClassification, {}),
    ):
        trainer = make_trainer(make(head, **changes), rows, tmp_path)
        (batch,) = trainer.get_train_dataloader()
        assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}


# ---------------------------------------------------------------------------------------------------------------------
# Servers: the contract of transformers' attention backends (vLLM, SGLang)


class ServerLayer:
    """What a server keeps for a layer: its own mask and cache. Here: attention over everything, or the past."""

    def __init__(self, causal: bool, window: int | None):
        self.causal, self.window, self.scale = causal, window, None

    def forward(self, q, k, v) -> torch.Tensor:
        heads, length = q.shape[0], q.shape[1]
        distance = torch.arange(length)[:, None] - torch.arange(length)[None]
        seen = distance >= 0 if self.causal else torch.ones(length, length, dtype=torch.bool)
        seen = seen if self.window is None else seen & (distance < self.window)
        k, v = (x.repeat_interleave(heads // len(x), 0) for x in (k, v))
        weights = (q @ k.mT * self.scale).masked_fill(~seen, -torch.inf).softmax(-1)
        return (weights @ v).transpose(0, 1).reshape(length, -1)  # (tokens, heads * size): a server has no batch


def server_attention(
    module, query, key, value, attention_mask, scaling=None, attention_instances=None, **kwargs
) -> tuple[torch.Tensor, None]:
    assert attention_mask is None
    layer = attention_instances[module.layer_idx]
    layer.scale = scaling
    return layer.forward(query[0], key[0], value[0]), None


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "server", server_attention)


def serve(model, ids: torch.Tensor | None = None, hidden: torch.Tensor | None = None) -> torch.Tensor:
    """One forward as a server calls it: no batch dimension of its own, tuples, its layers as an argument."""
    config = model.config
    causal = all(getattr(module, "is_causal", True) for module in model.modules())
    windows = [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]
    length = len(ids) if hidden is None else len(hidden)
    with torch.no_grad():
        return model(
            input_ids=None if ids is None else ids[None],
            inputs_embeds=None if hidden is None else hidden[None],
            position_ids=torch.arange(length)[None],
            attention_instances={index: ServerLayer(causal, window) for index, window in enumerate(windows)},
            use_cache=False,
            return_dict=False,
        )[0][0]


SERVED = {
    "learned": {"attention": "causal"},
    "rotary": {"attention": "causal", "position": "rotary", "num_key_value_heads": 2, "norm": "rmsnorm"},
    "mixed": {"attention": "causal", "position": "rotary", **MIXED},
    "scaled": {"attention": {"type": "causal", "scale": 0.2}, "embedding": {"type": "tokens", "scale": True}},
    "encoder": {"norm_placement": "post", "embedding": {"type": "tokens", "norm": "after", "type_vocab_size": 2}},
    "encoder-rotary": {"position": "rotary", "embedding": {"type": "tokens", "norm": "first"}},
}


@pytest.mark.parametrize("name", SERVED)
def test_served_through_another_kernel(name, server):
    """Hidden states of the base model under a server's kernel, which gets no mask, against eager."""
    config = make_config(**SERVED[name])
    torch.manual_seed(0)
    model = AutoModel.from_config(config, attn_implementation="server").eval()
    assert type(model) is TriuneModel
    assert type(model).is_backend_compatible()
    served = serve(model, tokens(1)[0])
    model.set_attn_implementation("eager")
    close(served, states(model, input_ids=tokens(1))[0])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("embedding", ["tokens", IMAGES], ids=["text", "image"])
def test_is_causal_tells_encoders(direction, embedding):
    """Servers take a model for an encoder if any module says is_causal=False: so for bidirectional attention only."""
    model = make(TriuneModel, embedding=embedding, attention=direction)
    marks = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    assert len(marks) == LAYERS + 1
    assert set(marks) == {direction == "causal"}


def test_a_kernel_that_ignores_the_bias_is_refused(server):
    """Relative positions under a kernel that takes no bias: an error, not other numbers."""
    model = make(TriuneModel, attention="causal", position="relative")
    model.set_attn_implementation("server")
    with pytest.raises(ValueError, match="relative"):
        serve(model, tokens(1)[0])


TP_STYLES = {"colwise", "colwise_rep", "rowwise", "rowwise_rep", "replicate", "replicated_with_grad_allreduce"}
PLANNED = {
    "plain": {},
    "gated": {"feed_forward": "gated", "norm": "rmsnorm"},
    "qk-norm": {"attention": {"type": "causal", "qk_norm": True}},
    "no-bias": {"attention": {"type": "bidirectional", "qkv_bias": False, "out_bias": False}},
    "post-norm": {"norm_placement": "post"},
    "image": {"embedding": IMAGES},
    "relative": {"position": "relative", "feed_forward": "gated"},
}


@pytest.mark.parametrize("name", PLANNED)
def test_tensor_parallel_plan(name):
    """Every rule of the plan names modules that exist, in a style that servers know; every linear map of a layer has
    its rule, colwise where heads or channels are made and rowwise where they are summed. Attention with relative
    positions stays whole: their bias has a column per head."""
    model = make(TriuneModel, **PLANNED[name])
    plan = model.config.base_model_tp_plan
    assert set(plan) <= {name.replace("layers.0.", "layers.*.") for name, _ in model.named_modules()}
    assert set(plan.values()) <= TP_STYLES
    for linear, module in model.layers[0].named_modules():
        if isinstance(module, nn.Linear) and not (name == "relative" and "self_attn" in linear):
            expected = "rowwise" if linear.endswith(("o_proj", "down_proj")) else "colwise"
            assert plan[f"layers.*.{linear}"] == expected


@pytest.mark.parametrize("name", PLANNED)
def test_pipeline_plan(name):
    """Every entry of the plan is a child of the base model, in the order of computation, with one list of layers."""
    model = make(TriuneModel, **PLANNED[name])
    children = [child for child, _ in model.named_children()]
    plan = list(model.config.base_model_pp_plan)
    assert set(plan) <= set(children)
    assert plan == sorted(plan, key=["embed_tokens", "embeddings", "layers", "norm"].index)
    assert [child for child in plan if isinstance(getattr(model, child), nn.ModuleList)] == ["layers"]
    assert ("norm" in plan) == (not isinstance(model.norm, nn.Identity))


class Missing(nn.Identity):
    """What pipelines put in the place of a module that another stage owns: it returns its first argument."""

    def forward(self, *args, **kwargs):
        return args[0] if args else next(iter(kwargs.values()))


def make_stage(model, first: bool, last: bool, tied: bool):
    """A copy of the base model that owns one half of the layers, as servers cut it by the plan: what stands before the
    layers stays on the first stage, and on the last where its table is also the decoder's."""
    stage = copy.deepcopy(model)
    plan = list(model.config.base_model_pp_plan)
    middle = plan.index("layers")
    for name in plan[:middle]:
        if not (first or (tied and last)):
            setattr(stage, name, Missing())
    owned = range(LAYERS // 2) if first else range(LAYERS // 2, LAYERS)
    for index in range(LAYERS):
        if index not in owned:
            stage.layers[index] = Missing()
    for name in plan[middle + 1 :]:
        if not last:
            setattr(stage, name, Missing())
    return stage


STAGED = {
    **SERVED,
    "sinusoidal": {"attention": "causal", "position": "sinusoidal"},
    "relative": {"attention": "causal", "position": "relative"},
    "post-norm": {"attention": "causal", "norm_placement": "post"},
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", STAGED)
def test_two_pipeline_stages(name, tied):
    """Two stages, the second fed the first's hidden states as inputs_embeds, against the whole model."""
    model = make(TriuneModel, **STAGED[name])
    ids = tokens()
    hidden = states(make_stage(model, True, False, tied), input_ids=ids, use_cache=False)
    found = states(make_stage(model, False, True, tied), inputs_embeds=hidden, use_cache=False)
    close(found, states(model, input_ids=ids, use_cache=False))


class Quantized(nn.Module):
    """A linear map with weights of 8 bits, as weight-only quantisers put in the place of every nn.Linear."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        rounded = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


@pytest.mark.parametrize("name", [*COMPILED, "untied"])
def test_quantised_by_name(name):
    """Every nn.Linear but the decoder replaced by name with one of 8 bits, against the same rounding of the weights
    in place; what is left in floating point is no matrix of a layer."""
    kind, changes = OFFLOADED[name]
    model, inputs = make_head(kind, **changes, feed_forward="gated"), inputs_of(kind)
    rounded, quantized = copy.deepcopy(model), copy.deepcopy(model)
    decoder = model.get_output_embeddings()
    linears = [
        path for path, module in model.named_modules() if isinstance(module, nn.Linear) and module is not decoder
    ]
    assert not any(isinstance(module, Conv1D) for module in model.modules())
    for path in linears:
        replacement = Quantized(rounded.get_submodule(path))
        with torch.no_grad():
            rounded.get_submodule(path).weight.copy_(replacement.weight * replacement.scale)
        quantized.set_submodule(path, replacement)
    left = [
        path
        for path, parameter in quantized.model.layers.named_parameters()
        if parameter.dim() > 1 and parameter.is_floating_point()
    ]
    assert left == []
    close(logits(quantized, **inputs), logits(rounded, **inputs))


# ---------------------------------------------------------------------------------------------------------------------
# Outputs and losses


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("kind", HEADS)
def test_hidden_states_and_attentions(kind, placement):
    """One state per layer and the input, one attention per layer, rows summing to one; the last state of text is the
    output of the backbone, that of images stands before the final norm."""
    model = make_head(kind, norm_placement=placement)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**inputs_of(kind), output_hidden_states=True, output_attentions=True)
        last = model.model(**inputs_of(kind)).last_hidden_state
    length = 5 if kind == "image" else LENGTH
    assert len(outputs.hidden_states) == LAYERS + 1
    assert len(outputs.attentions) == LAYERS
    assert {tuple(state.shape) for state in outputs.hidden_states} == {(2, length, 32)}
    assert {tuple(weights.shape) for weights in outputs.attentions} == {(2, 4, length, length)}
    for weights in outputs.attentions:
        close(weights.sum(-1), torch.ones(2, 4, length))
    close(outputs.hidden_states[-1] if kind != "image" else model.model.norm(outputs.hidden_states[-1]), last)
    if kind == "image" and placement == "pre":
        assert not torch.allclose(outputs.hidden_states[-1], last)
    with torch.no_grad():
        first = model.model.embed(**inputs_of(kind))
    close(outputs.hidden_states[0], first)


def test_attention_weights_give_the_output():
    """The attention weights that are returned, applied by hand to the values, against the attention's output."""
    model = make(TriuneModel, num_hidden_layers=1)
    model.set_attn_implementation("eager")
    attention = model.layers[0].self_attn
    seen = {}
    attention.o_proj.register_forward_pre_hook(lambda module, args: seen.update(mixed=args[0]))
    attention.v_proj.register_forward_hook(lambda module, args, output: seen.update(values=output))
    with torch.no_grad():
        weights = model(tokens(), output_attentions=True).attentions[0]
    values = seen["values"].view(2, LENGTH, 4, 8).transpose(1, 2)
    close((weights @ values).transpose(1, 2).flatten(2), seen["mixed"])


@pytest.mark.parametrize("task", TASKS)
def test_tuples(task):
    """return_dict=False gives the values of the output object, in its order, with labels and without."""
    head, changes, _ = TASKS[task]
    model = make(head, **changes, use_cache=False)
    batch = transformers.default_data_collator(rows_of(task))
    without = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        for inputs in (batch, without):
            whole = model(**inputs)
            close(model(**inputs, return_dict=False), whole.to_tuple())
        close(model(**without, return_dict=False)[0], whole.logits)


def test_base_model_output():
    """The base model returns last_hidden_state, pooler_output and, when caching, past_key_values, and no more."""
    assert list(make(TriuneModel)(tokens())) == ["last_hidden_state", "pooler_output"]
    causal = make(TriuneModel, attention="causal")(tokens())
    assert list(causal) == ["last_hidden_state", "pooler_output", "past_key_values"]
    assert causal.past_key_values.get_seq_length() == LENGTH


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 4, 9])], ids=["last", "three", "chosen"])
def test_logits_to_keep(keep):
    """Logits of chosen places against the same places of all logits."""
    model = make_head("causal", lm_head="transform")
    every = logits(model, input_ids=tokens())
    wanted = every[:, keep] if torch.is_tensor(keep) else every[:, -keep:]
    close(logits(model, input_ids=tokens(), logits_to_keep=keep), wanted)


def loss_by_hand(task: str, found: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The sum of the loss over labels and their number, from torch's own functions."""
    if task == "causal":
        found, labels = found[:, :-1], labels[:, 1:]
    if task in ("regression", "two-numbers"):
        return F.mse_loss(found, labels.view_as(found), reduction="sum"), labels.numel()
    if task == "several-classes":
        return F.binary_cross_entropy_with_logits(found, labels, reduction="sum"), labels.numel()
    total = F.cross_entropy(found.flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="sum")
    return total, int((labels != -100).sum())


@pytest.mark.parametrize("task", TASKS)
def test_losses(task):
    """Every loss against torch's functions: the mean over labels, and with num_items_in_batch, as a number or a
    tensor, the sum divided by it."""
    head, changes, labels = TASKS[task]
    model = make(head, **changes)
    batch = transformers.default_data_collator(rows_of(task))
    with torch.no_grad():
        outputs = model(**batch)
        total, count = loss_by_hand(task, outputs.logits, labels)
        close(outputs.loss, total / count)
        close(model(**batch, num_items_in_batch=40).loss, total / 40)
        close(model(**batch, num_items_in_batch=torch.tensor(40)).loss, total / 40)


def test_shift_labels():
    """Labels that are already moved by one against labels that are not, and their count against num_items_in_batch."""
    model, ids = make_head("causal"), tokens()
    moved = F.pad(ids[:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        plain = model(input_ids=ids, labels=ids).loss
        close(model(input_ids=ids, labels=ids, shift_labels=moved).loss, plain)
        counted = model(input_ids=ids, labels=ids, shift_labels=moved, num_items_in_batch=2 * (LENGTH - 1)).loss
    close(counted, plain)


@pytest.mark.parametrize("task", ["masked", "causal", "tokens", "sequences", "images"])
def test_no_labels_at_all(task):
    """Where every label is ignored the loss is 0 and its gradients are 0, not NaN."""
    head, changes, _ = TASKS[task]
    model = make(head, **changes)
    batch = transformers.default_data_collator(rows_of(task))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = model(**batch).loss
    loss.backward()
    assert loss == 0
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)
