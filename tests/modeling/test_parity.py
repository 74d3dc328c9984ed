"""Triune computes what the published models compute: transformers' own modules with random weights, copied by name
into Triune, give the same logits. Tiny sizes always; base sizes in the slow tests.

The tables here map names one way and transpose where GPT-2 stores transposed matrices. They are the tests' own: the
library's conversion must not be checked with itself.
"""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
import transformers as hf

from triune.configuration import preset
from triune.modeling import TriuneForCausalLM, TriuneForImageClassification, TriuneForMaskedLM, TriuneModel


# ---------------------------------------------------------------------------------------------------------------------
# Copying weights: (pattern of the reference's name, Triune's name); \d groups are kept. A function splits or turns.


def transposed(weight):
    return {"": weight.T if weight.dim() == 2 else weight}


def thirds(names, turn):
    """A fused matrix into three (attention) or two (gate and up)."""

    def split(weight):
        weight = weight.T if turn and weight.dim() == 2 else weight
        return dict(zip(names, weight.chunk(len(names))))

    return split


BERT = [
    (r"bert\.embeddings\.word_embeddings", "model.embed_tokens"),
    (r"bert\.embeddings\.position_embeddings", "model.positions.table"),
    (r"bert\.embeddings\.token_type_embeddings", "model.embeddings.segments"),
    (r"bert\.embeddings\.LayerNorm", "model.embeddings.norm"),
    (r"bert\.encoder\.layer\.(\d+)\.attention\.self\.query", r"model.layers.\1.self_attn.q_proj"),
    (r"bert\.encoder\.layer\.(\d+)\.attention\.self\.key", r"model.layers.\1.self_attn.k_proj"),
    (r"bert\.encoder\.layer\.(\d+)\.attention\.self\.value", r"model.layers.\1.self_attn.v_proj"),
    (r"bert\.encoder\.layer\.(\d+)\.attention\.output\.dense", r"model.layers.\1.self_attn.o_proj"),
    (r"bert\.encoder\.layer\.(\d+)\.attention\.output\.LayerNorm", r"model.layers.\1.attn_norm"),
    (r"bert\.encoder\.layer\.(\d+)\.intermediate\.dense", r"model.layers.\1.mlp.up_proj"),
    (r"bert\.encoder\.layer\.(\d+)\.output\.dense", r"model.layers.\1.mlp.down_proj"),
    (r"bert\.encoder\.layer\.(\d+)\.output\.LayerNorm", r"model.layers.\1.mlp_norm"),
    (r"bert\.pooler\.dense", "model.pooler.dense"),
    (r"cls\.predictions\.transform\.dense", "transform.dense"),
    (r"cls\.predictions\.transform\.LayerNorm", "transform.norm"),
    (r"cls\.predictions\.decoder", "lm_head"),
    (r"cls\.predictions\.bias", None),  # the decoder's bias under its second name
]
GPT2 = [
    (r"transformer\.wte", "model.embed_tokens"),
    (r"transformer\.wpe", "model.positions.table"),
    (r"transformer\.h\.(\d+)\.ln_1", r"model.layers.\1.attn_norm"),
    (r"transformer\.h\.(\d+)\.ln_2", r"model.layers.\1.mlp_norm"),
    (r"transformer\.h\.(\d+)\.attn\.c_attn", r"model.layers.\1.self_attn.", thirds(["q_proj", "k_proj", "v_proj"], 1)),
    (r"transformer\.h\.(\d+)\.attn\.c_proj", r"model.layers.\1.self_attn.o_proj", transposed),
    (r"transformer\.h\.(\d+)\.mlp\.c_fc", r"model.layers.\1.mlp.up_proj", transposed),
    (r"transformer\.h\.(\d+)\.mlp\.c_proj", r"model.layers.\1.mlp.down_proj", transposed),
    (r"transformer\.ln_f", "model.norm"),
    (r"lm_head", "lm_head"),
]
VIT = [
    (r"vit\.embeddings\.cls_token", "model.embeddings.cls_token"),
    (r"vit\.embeddings\.position_embeddings", "model.positions.table.weight", lambda weight: {"": weight[0]}),
    (
        r"vit\.embeddings\.patch_embeddings\.projection",
        "model.embed_tokens.projection",
        lambda weight: {"": weight.flatten(1) if weight.dim() == 4 else weight},
    ),
    (r"vit\.layers\.(\d+)\.layernorm_before", r"model.layers.\1.attn_norm"),
    (r"vit\.layers\.(\d+)\.layernorm_after", r"model.layers.\1.mlp_norm"),
    (r"vit\.layers\.(\d+)\.attention\.([qkvo]_proj)", r"model.layers.\1.self_attn.\2"),
    (r"vit\.layers\.(\d+)\.mlp\.fc1", r"model.layers.\1.mlp.up_proj"),
    (r"vit\.layers\.(\d+)\.mlp\.fc2", r"model.layers.\1.mlp.down_proj"),
    (r"vit\.layernorm", "model.norm"),
    (r"classifier", "classifier"),
]
LLAMA = [
    (r"model\.layers\.(\d+)\.input_layernorm", r"model.layers.\1.attn_norm"),
    (r"model\.layers\.(\d+)\.post_attention_layernorm", r"model.layers.\1.mlp_norm"),
    (r"(model|lm_head)(.*?)", r"\1\2"),  # all else has the same name
]
MODERNBERT = [
    (r"model\.embeddings\.tok_embeddings", "model.embed_tokens"),
    (r"model\.embeddings\.norm", "model.embeddings.norm"),
    (r"model\.layers\.(\d+)\.attn_norm", r"model.layers.\1.attn_norm"),
    (r"model\.layers\.(\d+)\.attn\.Wqkv", r"model.layers.\1.self_attn.", thirds(["q_proj", "k_proj", "v_proj"], 0)),
    (r"model\.layers\.(\d+)\.attn\.Wo", r"model.layers.\1.self_attn.o_proj"),
    (r"model\.layers\.(\d+)\.mlp_norm", r"model.layers.\1.mlp_norm"),
    (r"model\.layers\.(\d+)\.mlp\.Wi", r"model.layers.\1.mlp.", thirds(["gate_proj", "up_proj"], 0)),
    (r"model\.layers\.(\d+)\.mlp\.Wo", r"model.layers.\1.mlp.down_proj"),
    (r"model\.final_norm", "model.norm"),
    (r"head\.dense", "transform.dense"),
    (r"head\.norm", "transform.norm"),
    (r"decoder", "lm_head"),
]


def renamed(table, name, weight):
    for pattern, target, *change in table:
        match = re.fullmatch(rf"{pattern}(\.weight|\.bias|)", name)
        if match and target is None:
            return {}
        if match:
            parts = change[0](weight) if change else {"": weight}
            return {match.expand(target) + part + match.groups()[-1]: value for part, value in parts.items()}
    raise AssertionError(f"no rule for {name}")


def copy_weights(reference, model, table):
    """Give both models fresh random weights that are the same, every tensor accounted for. Large ones: each layer then
    changes the hidden states much, and a wrong constant (an epsilon, an activation) shows in the logits."""
    with torch.no_grad():
        for parameter in reference.parameters():
            fan_in = parameter.shape[-1] if parameter.dim() == 2 else 1
            parameter.normal_(std=0.3 if parameter.dim() == 1 else 2.0 / fan_in**0.5)
    state = {}
    for name, weight in reference.state_dict().items():
        state |= renamed(table, name, weight.clone())
    model.load_state_dict(state, strict=True)
    return reference.eval(), model.eval()


# ---------------------------------------------------------------------------------------------------------------------
# The pairs, at two sizes: the reference's configuration and Triune's preset with the same sizes

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 99}
FF = {"intermediate_size": 64}


def bert(**sizes):
    reference = hf.BertForMaskedLM(hf.BertConfig(**sizes))
    return copy_weights(reference, TriuneForMaskedLM(preset("bert-base", **sizes)), BERT)


def gpt2(**sizes):
    names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
    names |= {"intermediate_size": "n_inner"}
    special = {"bos_token_id": sizes.get("vocab_size", 50257) - 1, "eos_token_id": sizes.get("vocab_size", 50257) - 1}
    reference = hf.GPT2LMHeadModel(hf.GPT2Config(**{names.get(k, k): v for k, v in sizes.items()}, **special))
    return copy_weights(reference, TriuneForCausalLM(preset("gpt2", **sizes, **special)), GPT2)


def vit(image_size=224, patch_size=16, **sizes):
    sizes.pop("vocab_size", None)
    images = {"image_size": image_size, "patch_size": patch_size}
    reference = hf.ViTForImageClassification(hf.ViTConfig(**sizes, **images, num_labels=7))
    model = TriuneForImageClassification(preset("vit-b16", **sizes, embedding=images, num_labels=7))
    return copy_weights(reference, model, VIT)


def llama(**sizes):
    reference = hf.LlamaForCausalLM(
        hf.LlamaConfig(**sizes, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    )
    return copy_weights(reference, TriuneForCausalLM(preset("llama-mini", **sizes)), LLAMA)


def modernbert(**sizes):
    layers = sizes.get("num_hidden_layers", 22)
    kinds = ["sliding_attention" if index % 3 else "full_attention" for index in range(layers)]
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
    window = {"sliding_window": 4} if layers == 3 else {}
    reference_window = {"local_attention": 8} if window else {}
    reference = hf.ModernBertForMaskedLM(hf.ModernBertConfig(**sizes, **special, **reference_window))
    config = preset("modernbert-base", **sizes, **window, layer_types=kinds, pad_token_id=0)
    assert reference.config.sliding_window == config.sliding_window
    return copy_weights(reference, TriuneForMaskedLM(config), MODERNBERT)


TEXT_PAIRS = {
    "bert": (bert, {**TINY, **FF, "max_position_embeddings": 40}),
    "gpt2": (gpt2, {**TINY, **FF, "max_position_embeddings": 40}),
    "llama": (llama, {**TINY, **FF, "num_key_value_heads": 2, "tie_word_embeddings": False}),
    "modernbert": (modernbert, {**TINY, **FF}),
}
IMAGE_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    **FF,
    "image_size": 24,
    "patch_size": 8,
}


LLAMA_BASE = {
    **{"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 4},
    **{"intermediate_size": 2048, "vocab_size": 32000, "max_position_embeddings": 2048, "tie_word_embeddings": True},
}


def text_batch(vocab_size, length=24):
    ids = torch.randint(0, vocab_size, (3, length))
    mask = torch.ones_like(ids)
    mask[1, -7:] = 0
    return ids, mask


def largest_difference(reference, model, real=None, **inputs):
    with torch.no_grad():
        ours, theirs = model(**inputs), reference(**inputs)
    difference = (ours.logits - theirs.logits).abs()
    return (difference if real is None else difference[real.bool()]).max().item()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", TEXT_PAIRS)
def test_text_model_equals_reference(family, implementation):
    """Logits of real tokens against transformers' module, with padding, to 1e-5."""
    make, sizes = TEXT_PAIRS[family]
    reference, model = make(**sizes)
    reference.set_attn_implementation(implementation)
    model.set_attn_implementation(implementation)
    ids, mask = text_batch(99)
    assert largest_difference(reference, model, mask, input_ids=ids, attention_mask=mask) <= 1e-5


def test_vit_equals_reference():
    """Logits and hidden states against ViTForImageClassification, to 1e-5; other sizes by interpolation as well."""
    reference, model = vit(**IMAGE_SIZES)
    images = torch.randn(2, 3, 24, 24)
    assert largest_difference(reference, model, pixel_values=images) <= 1e-5
    larger = {"pixel_values": torch.randn(2, 3, 32, 48), "interpolate_pos_encoding": True}
    assert largest_difference(reference, model, **larger) <= 1e-5
    with torch.no_grad():
        theirs = reference(images, output_hidden_states=True).hidden_states
        ours = model(images, output_hidden_states=True).hidden_states
    assert len(ours) == len(theirs) == 4
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("bert", {"hidden_act": "gelu_pytorch_tanh"}),
        ("bert", {"norm_placement": "pre", "final_norm": False}),
        ("gpt2", {"hidden_act": "gelu"}),
        ("gpt2", {"attention": {"scale": 0.3}}),
        ("llama", {"position": {"theta": 9000.0}}),
        ("llama", {"hidden_act": "gelu"}),
        ("modernbert", {"position": {"local_theta": 160000.0}}),
        ("modernbert", {"position": {"theta": 10000.0}}),
        ("modernbert", {"hidden_act": "gelu_pytorch_tanh"}),
        ("modernbert", {"sliding_window": 5}),
    ],
)
def test_a_wrong_model_would_be_noticed(family, changes):
    """The negative control: one wrong constant moves the logits by more than five times what parity allows."""
    make, sizes = TEXT_PAIRS[family]
    reference, model = make(**sizes)
    config = copy.deepcopy(model.config)
    for field, value in changes.items():
        setattr(config, field, value)
    wrong = type(model)(config).eval()
    wrong.load_state_dict(model.state_dict())
    ids, mask = text_batch(99)
    assert largest_difference(reference, wrong, mask, input_ids=ids, attention_mask=mask) > 5e-5


@pytest.mark.parametrize("make", [bert, gpt2, vit, llama, modernbert])
def test_constants_that_logits_hardly_show(make):
    """The epsilons of all norms, at the published presets, against the reference's."""
    sizes = TEXT_PAIRS[make.__name__][1] if make.__name__ in TEXT_PAIRS else IMAGE_SIZES
    epsilons = [
        {
            module.eps if hasattr(module, "eps") else module.variance_epsilon
            for module in model.modules()
            if is_norm(module)
        }
        for model in make(**sizes)
    ]
    assert len(epsilons[0]) == 1 and epsilons[0] == epsilons[1]


def is_norm(module):
    return type(module).__name__.endswith(("LayerNorm", "RMSNorm"))


@pytest.mark.parametrize("family", TEXT_PAIRS)
def test_loss_and_gradients_equal_reference(family):
    """Loss, and the gradient of the token embeddings, against transformers' own backward pass."""
    make, sizes = TEXT_PAIRS[family]
    reference, model = make(**sizes)
    ids, mask = text_batch(99)
    labels = ids.masked_fill(mask == 0, -100)
    losses = [m(input_ids=ids, attention_mask=mask, labels=labels).loss for m in (reference, model)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=0)
    for loss in losses:
        loss.backward()
    gradients = [m.get_input_embeddings().weight.grad for m in (reference, model)]
    if family in ("bert", "modernbert"):  # theirs leave the padding row out
        gradients = [gradient[1:] for gradient in gradients]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_segments_and_positions_equal_bert():
    """Segment ids and explicit position ids against BertForMaskedLM."""
    reference, model = bert(**TEXT_PAIRS["bert"][1])
    ids = torch.randint(0, 99, (3, 24))
    inputs = {"input_ids": ids, "token_type_ids": (ids > 50).long(), "position_ids": torch.arange(24).flip(0)[None]}
    assert largest_difference(reference, model, **inputs) <= 1e-5


def test_pooled_vector_equals_bert():
    """The pooler against BertModel's."""
    sizes = TEXT_PAIRS["bert"][1]
    reference = hf.BertModel(hf.BertConfig(**sizes))
    table = [(pattern.removeprefix(r"bert\."), (name or "").removeprefix("model.")) for pattern, name in BERT]
    reference, model = copy_weights(reference, TriuneModel(preset("bert-base", **sizes)), table)
    ids, mask = text_batch(99)
    with torch.no_grad():
        ours, theirs = (m(ids, attention_mask=mask).pooler_output for m in (model, reference))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("search", [{}, {"num_beams": 4}, {"num_beams": 3, "num_return_sequences": 3}])
def test_generation_equals_gpt2(search):
    """Greedy and beam tokens against GPT2LMHeadModel, batch of two with left padding."""
    reference, model = gpt2(**TEXT_PAIRS["gpt2"][1])
    ids = torch.randint(0, 98, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 16, "do_sample": False, "pad_token_id": 98, **search}
    theirs, ours = reference.generate(ids, **options), model.generate(ids, **options)
    assert theirs.tolist() == ours.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("family", [bert, gpt2, modernbert])
def test_base_size_text_model_equals_reference(family):
    """Published sizes: logits against transformers' module, to 1e-4."""
    reference, model = family()
    ids, mask = text_batch(30000, length=64)
    assert largest_difference(reference, model, mask, input_ids=ids, attention_mask=mask) <= 1e-4


@pytest.mark.slow
def test_base_size_llama_equals_reference():
    """A Llama of BERT-base's width with grouped heads, against LlamaForCausalLM, to 1e-4."""
    reference, model = llama(**LLAMA_BASE)
    ids, mask = text_batch(30000, length=64)
    assert largest_difference(reference, model, mask, input_ids=ids, attention_mask=mask) <= 1e-4


@pytest.mark.slow
def test_base_size_vit_equals_reference():
    """ViT-B/16 at 224 pixels against ViTForImageClassification, to 1e-4."""
    reference, model = vit()
    assert largest_difference(reference, model, pixel_values=torch.randn(2, 3, 224, 224)) <= 1e-4


@pytest.mark.slow
def test_base_size_generation_equals_gpt2():
    """GPT-2 small: greedy and beam tokens equal to GPT2LMHeadModel's."""
    reference, model = gpt2()
    ids = torch.randint(0, 50000, (1, 12))
    for search in ({}, {"num_beams": 4}):
        options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 50256, **search}
        assert reference.generate(ids, **options).tolist() == model.generate(ids, **options).tolist()


def figures():
    """Largest absolute difference of the logits, tiny and at published sizes, and whether tokens are equal."""
    base = {"bert": (bert, {}), "gpt2": (gpt2, {}), "modernbert": (modernbert, {}), "llama": (llama, LLAMA_BASE)}
    for family, (make, tiny) in TEXT_PAIRS.items():
        row = []
        for sizes, vocab, length in ((tiny, 99, 24), (base[family][1], 30000, 64)):
            reference, model = make(**sizes)
            ids, mask = text_batch(vocab, length)
            row.append(largest_difference(reference, model, mask, input_ids=ids, attention_mask=mask))
        yield (family, *row)
    tiny, large = vit(**IMAGE_SIZES), vit()
    sides = ((tiny, 24), (large, 224))
    yield ("vit", *(largest_difference(*pair, pixel_values=torch.randn(2, 3, side, side)) for pair, side in sides))


RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "parity.json"


def test_readme_figures():
    """What the README says of parity against the committed file that this script wrote."""
    largest = {family: max(sizes.values()) for family, sizes in json.loads(RESULTS.read_text())["difference"].items()}
    assert largest.pop("bert") == largest.pop("llama") == 0.0
    assert set(largest) == {"gpt2", "modernbert", "vit"} and max(largest.values()) < 3e-6


if __name__ == "__main__":  # python tests/modeling/test_parity.py
    torch.manual_seed(0)
    found = {}
    for family, tiny, large in figures():
        found[family] = {"tiny": tiny, "base": large}
        print(f"{family:12} tiny {tiny:.1e}   base {large:.1e}")
    versions = {"torch": torch.__version__, "transformers": hf.__version__, "threads": torch.get_num_threads()}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"difference": found, **versions}, indent=1) + "\n", encoding="utf-8")
