"""200 configurations drawn from the spaces of the families: random models of transformers' own classes, there and
back."""

import random

import pytest
import torch
import transformers as hf
from script_loading import load_script

from triune import conversion
from triune.conversion.checking import answer, random_inputs
from triune.conversion.families import FAMILIES


SCRIPT = load_script("benchmarks/conversion.py")
COUNT = 200
ACTIVATIONS = ["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "tanh", "mish"]
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


class Draw(random.Random):
    def some(self, *choices):
        return self.choice(choices)

    def eps(self):
        return 10.0 ** -self.randint(5, 12)

    def share(self):
        return self.choice([0.0, round(self.random() / 2, 3)])

    def heads(self, even=False):
        """Heads, and the width that they make together: seldom a power of two."""
        heads = self.randint(1, 4)
        return heads, heads * (2 * self.randint(1, 5) if even else self.randint(1, 9))


def stack(draw, even=False):
    heads, width = draw.heads(even)
    return {
        **{"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": draw.randint(1, 3)},
        **{"intermediate_size": draw.randint(3, 40), "hidden_act": draw.choice(ACTIVATIONS)},
    }


def dropouts(draw):
    return {"hidden_dropout_prob": draw.share(), "attention_probs_dropout_prob": draw.share()}


def words(draw):
    return {"vocab_size": draw.randint(81, 150), "max_position_embeddings": draw.randint(20, 50)}


def encoder(draw):
    own = {"layer_norm_eps": draw.eps(), "type_vocab_size": draw.randint(1, 3), "initializer_range": 0.05}
    return {**stack(draw), **dropouts(draw), **words(draw), **own, "pad_token_id": draw.randint(0, 2)}


def distilbert(draw):
    heads, width = draw.heads()
    sizes = {"dim": width, "n_heads": heads, "n_layers": draw.randint(1, 3), "hidden_dim": draw.randint(3, 40)}
    return {**sizes, **words(draw), "activation": draw.some("gelu", "relu"), "dropout": draw.share()}


def modernbert(draw):
    own = stack(draw, even=True)
    own["hidden_activation"] = own.pop("hidden_act")
    window = {"local_attention": 2 * draw.randint(1, 8), "global_attn_every_n_layers": draw.randint(1, 3)}
    more = {"norm_eps": draw.eps(), "mlp_dropout": draw.share(), "decoder_bias": draw.some(True, False)}
    return {**own, **words(draw), **window, **more, "pad_token_id": 0}


def gpt2(draw):
    heads, width = draw.heads()
    sizes = {"n_embd": width, "n_head": heads, "n_layer": draw.randint(1, 3), "n_positions": draw.randint(20, 50)}
    more = {"n_inner": draw.some(None, draw.randint(3, 40)), "activation_function": draw.choice(ACTIVATIONS)}
    return {**sizes, **more, "vocab_size": draw.randint(81, 150), "layer_norm_epsilon": draw.eps(), **ENDS}


def llama(draw):
    shared, groups = draw.randint(1, 3), draw.randint(1, 3)
    heads = {"num_attention_heads": shared * groups, "num_key_value_heads": groups}
    head_dim = 2 * draw.randint(1, 5)
    return {
        **{**stack(draw), **heads, **words(draw), "head_dim": head_dim, "hidden_size": shared * groups * head_dim},
        **{"rms_norm_eps": draw.eps(), "tie_word_embeddings": draw.some(True, False), **ENDS},
        "rope_parameters": {"rope_type": "default", "rope_theta": draw.some(10000.0, 500000.0, 1e6)},
    }


def mistral(draw):
    return {**llama(draw), "sliding_window": draw.some(None, draw.randint(2, 8))}


def qwen2(draw):
    own = llama(draw)
    del own["head_dim"]  # follows from the width
    return own


def picture(draw):
    patch = draw.randint(2, 6)
    return {"patch_size": patch, "image_size": patch * draw.randint(1, 5), "num_channels": draw.some(1, 3)}


def vit(draw):
    more = {"layer_norm_eps": draw.eps(), "qkv_bias": draw.some(True, False)}
    return {**stack(draw), **dropouts(draw), **picture(draw), **more, "num_labels": draw.randint(2, 7)}


def dinov2(draw):
    own = vit(draw)
    del own["intermediate_size"]
    return {**own, "mlp_ratio": draw.randint(1, 5), "use_swiglu_ffn": draw.some(True, False)}


def registers(draw):
    return {**dinov2(draw), "num_register_tokens": draw.randint(1, 4)}


def vit_mae(draw):
    heads = draw.randint(1, 3)
    decoder = {"decoder_num_attention_heads": heads, "decoder_hidden_size": 4 * heads * draw.randint(1, 4)}
    own = {**vit(draw), "num_attention_heads": 2, "hidden_size": 4 * draw.randint(1, 6), "mask_ratio": 0.5}
    own |= {"patch_size": 4, "image_size": 4 * draw.randint(2, 5), "norm_pix_loss": draw.some(True, False)}
    del own["num_labels"]
    return {**own, **decoder, "decoder_num_hidden_layers": draw.randint(1, 2), "decoder_intermediate_size": 12}


def clip(draw):
    text = {**stack(draw), **words(draw), "vocab_size": 97, "eos_token_id": 96, "layer_norm_eps": draw.eps()}
    vision = {**stack(draw), **picture(draw), "layer_norm_eps": draw.eps()}
    return {"text_config": text, "vision_config": vision, "projection_dim": draw.randint(2, 20)}


def siglip(draw):
    own = clip(draw)
    del own["projection_dim"]
    own["text_config"]["projection_size"] = own["vision_config"]["hidden_size"]
    return own


def t5(draw):
    kind = draw.some("relu", "gated-gelu", "gated-silu", "gelu")
    return {
        **{"d_model": draw.randint(2, 30), "d_kv": draw.randint(1, 9), "d_ff": draw.randint(3, 40)},
        **{
            "num_heads": draw.randint(1, 4),
            "num_layers": draw.randint(1, 3),
            "num_decoder_layers": draw.randint(1, 3),
        },
        **{"vocab_size": draw.randint(81, 150), "decoder_start_token_id": 0, "dropout_rate": draw.share()},
        **{"relative_attention_num_buckets": 2 * draw.randint(2, 20), "feed_forward_proj": kind},
        "layer_norm_epsilon": draw.eps(),
    }


def bart(draw):
    heads = draw.randint(1, 3)
    stacks = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", draw.randint(1, 3)), ("ffn_dim", draw.randint(3, 40)))
    }
    return {
        **{**stacks, "encoder_attention_heads": heads, "decoder_attention_heads": draw.some(1, heads)},
        **{**words(draw), "d_model": 2 * heads * draw.randint(1, 6), "scale_embedding": draw.some(True, False)},
        **{
            "activation_function": draw.choice(ACTIVATIONS),
            "dropout": draw.share(),
            "attention_dropout": draw.share(),
        },
        **{"activation_dropout": draw.share(), "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
    }


def marian(draw):
    own = bart(draw)
    return {**own, "decoder_vocab_size": own["vocab_size"], "forced_eos_token_id": 2}


SPACES = {
    **dict.fromkeys(("bert", "roberta"), encoder),
    **{"distilbert": distilbert, "modernbert": modernbert, "gpt2": gpt2, "llama": llama, "mistral": mistral},
    **{"qwen2": qwen2, "qwen3": llama, "vit": vit, "deit": vit, "dinov2": dinov2, "vit_mae": vit_mae},
    **{"dinov2_with_registers": registers, "clip": clip, "siglip": siglip, "t5": t5, "bart": bart, "marian": marian},
}


def test_every_family_is_drawn_from():
    assert SPACES.keys() == FAMILIES.keys()


@pytest.mark.parametrize("seed", range(COUNT))
def test_drawn_models_come_back(seed, tmp_path):
    """The answers of transformers' model, and its file and configuration to the bit."""
    draw = Draw(seed)
    name = list(SPACES)[seed % len(SPACES)]
    kind = getattr(hf, draw.choice(list(FAMILIES[name].heads)))
    model = kind(kind.config_class(**SPACES[name](draw)))
    SCRIPT.randomised(model).save_pretrained(tmp_path / "theirs")
    theirs = kind.from_pretrained(tmp_path / "theirs").eval()
    ours = conversion.load(tmp_path / "theirs")
    inputs = random_inputs(ours.config, length=9)
    wanted = answer(theirs, inputs)
    torch.testing.assert_close(answer(ours, inputs), wanted, atol=2e-5, rtol=1e-5)
    conversion.save(ours, tmp_path / "back")
    assert all(SCRIPT.compared(tmp_path / "theirs", tmp_path / "back").values())
