"""No device is written into the code: every model computes where its weights are, here on a second device that any
machine has, one without numbers (`meta`)."""

import ast
from pathlib import Path

import pytest
import torch

from triune import modeling
from triune.configuration import TriuneConfig
from triune.configuration.configuration_triune_clip import clip_preset
from triune.configuration.configuration_triune_mae import TriuneMAEConfig
from triune.configuration.configuration_triune_seq2seq import seq2seq_preset


ROOT = Path(__file__).resolve().parent.parent
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHES = {"type": "patches", "image_size": 32, "patch_size": 8}
KINDS_OF_POSITION = ("learned", "none", "sinusoidal", "rotary", "relative")
IDS, PIXELS = ("input_ids", (2, 6)), ("pixel_values", (2, 3, 32, 32))
MODELS = {
    **{
        f"text, {kind}": (lambda kind=kind: modeling.TriuneForCausalLM(causal(kind)), [IDS])
        for kind in KINDS_OF_POSITION
    },
    "image": (lambda: modeling.TriuneForImageClassification(TriuneConfig(**SIZES, embedding=PATCHES)), [PIXELS]),
    "seq2seq": (
        lambda: modeling.TriuneForConditionalGeneration(seq2seq_preset("seq2seq-mini")),
        [IDS, ("decoder_input_ids", (2, 4))],
    ),
    "mae": (lambda: modeling.TriuneForMaskedImageModeling(small_mae()), [PIXELS]),
    "clip": (lambda: modeling.TriuneCLIPModel(clip_preset("clip-mini")), [IDS, PIXELS]),
}


def causal(kind):
    return TriuneConfig(**SIZES, vocab_size=50, attention="causal", position=kind)


def small_mae():
    return TriuneMAEConfig(encoder={**SIZES, "embedding": PATCHES}, decoder={**SIZES, "num_hidden_layers": 1})


def inputs_on(device, shapes):
    whole = {name: torch.zeros(shape, dtype=torch.long, device=device) for name, shape in shapes}
    return {name: value.float() if name == "pixel_values" else value for name, value in whole.items()}


@pytest.mark.parametrize("name", MODELS)
def test_models_compute_where_their_weights_are(name):
    """On `meta`: outputs of the shapes that the processor gives, and not one tensor of another device on the way."""
    make, shapes = MODELS[name]
    model = make().eval()
    wanted = model(**inputs_on("cpu", shapes)).logits.shape
    found = model.to("meta")(**inputs_on("meta", shapes)).logits
    assert found.device.type == "meta" and found.shape == wanted


def devices_named(code):
    """Lines that move something to a device by name: `.cuda()`, `.to("cuda")`, `device="cuda:0"`."""
    for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
        given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "device")]
        words = [one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        moves = method == "to" or any(keyword.arg == "device" for keyword in call.keywords)
        if method in ("cuda", "mps") or (moves and any(word.split(":")[0] in ("cuda", "mps") for word in words)):
            yield call.lineno


def test_no_device_is_named():
    """No call in the library or the scripts moves anything to a GPU by name; the test itself knows what that is."""
    assert list(devices_named('x.cuda()\ny.to("cuda:1")\nf(1, device="mps")\nz.to(device)\n')) == [1, 2, 3]
    for folder in ("configuration", "modeling", "training", "scripts"):
        for file in (ROOT / folder).rglob("*.py"):
            code = file.read_text(encoding="utf-8")
            assert not ("cuda" in code or "mps" in code) or list(devices_named(code)) == [], file.name
