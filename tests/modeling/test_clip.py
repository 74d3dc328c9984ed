"""CLIP and SigLIP: against transformers' models on copied random weights, published counts, two processes against one,
and the folder that others load."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    ViTImageProcessorPil,
)

from triune.configuration.configuration_triune_clip import CLIP_PRESETS, TriuneCLIPConfig, clip_preset
from triune.modeling import TriuneCLIPModel


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
from two_processes import WORLD, run_in_two


SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
VOCAB, EOS, LENGTH, IMAGE, PATCH = 60, 59, 10, 12, 4
THEIR_TEXT = {**SIZES, "hidden_size": 32, "vocab_size": VOCAB, "max_position_embeddings": LENGTH}
THEIR_VISION = {**SIZES, "hidden_size": 24, "image_size": IMAGE, "patch_size": PATCH}
OUR_TEXT = {**SIZES, "hidden_size": 32, "vocab_size": VOCAB, "max_position_embeddings": LENGTH}
OUR_VISION = {**SIZES, "hidden_size": 24, "embedding": {"image_size": IMAGE, "patch_size": PATCH}}
# What of transformers' names is called otherwise here; applied in order.
NAMES = {
    r"(text|vision)_model\.encoder\.layers\.(\d+)": r"\1_model.layers.\2",
    r"\.out_proj": ".o_proj",
    r"layer_norm1": "attn_norm",
    r"layer_norm2": "mlp_norm",
    r"mlp\.fc1": "mlp.up_proj",
    r"mlp\.fc2": "mlp.down_proj",
    r"text_model\.embeddings\.token_embedding": "text_model.embed_tokens",
    r"embeddings\.position_embedding": "positions.table",
    r"vision_model\.embeddings\.class_embedding": "vision_model.embeddings.cls_token",
    r"vision_model\.embeddings\.patch_embedding": "vision_model.embed_tokens.projection",
    r"vision_model\.pre_layrnorm": "vision_model.embeddings.norm",
    r"(final|post)_?_layer_?norm": "norm",
    r"text_model\.head": "text_projection",
    r"vision_model\.head\.layernorm": "vision_head.norm",
    r"vision_model\.head": "vision_head",
}


def clip(**changes) -> TriuneCLIPConfig:
    """A small relative of the published model."""
    text = {**OUR_TEXT, "bos_token_id": 1, "eos_token_id": EOS}
    return clip_preset("clip-vit-b32", **{"text": text, "vision": OUR_VISION, "projection_dim": 16, **changes})


def siglip(**changes) -> TriuneCLIPConfig:
    own = {"text": OUR_TEXT, "vision": OUR_VISION, "projection_dim": 24}
    return clip_preset("siglip-b16", **{**own, **changes})


def randomised(model):
    """Weights that are large enough for every part to show in the logits."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.split(".")[-1] not in ("logit_scale", "logit_bias"):
                parameter.normal_(std=0.3)
                parameter.add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return model.eval()


def batch(pairs: int = 4) -> dict[str, torch.Tensor]:
    """Texts of different lengths, which end with EOS and are padded with it, as CLIP's tokenizer does."""
    torch.manual_seed(2)
    ids = torch.randint(2, EOS, (pairs, LENGTH))
    for row in range(pairs):
        ids[row, LENGTH - 1 - row % 4 :] = EOS
    return {"input_ids": ids, "pixel_values": torch.randn(pairs, 3, IMAGE, IMAGE)}


def converted(theirs: dict[str, torch.Tensor], ours: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in theirs.items():
        for pattern, replacement in NAMES.items():
            name = re.sub(pattern, replacement, name)
        if "in_proj" in name:  # torch's own attention has the three in one
            kind = name.split("_")[-1]
            parts = zip("qkv", tensor.chunk(3))
            found |= {name.replace(f"in_proj_{kind}", f"{part}_proj.{kind}"): piece for part, piece in parts}
        else:
            found[name] = tensor
    shapes = {name: parameter.shape for name, parameter in ours.named_parameters()}
    assert found.keys() == shapes.keys()
    return {name: tensor.reshape(shapes[name]) for name, tensor in found.items()}


def pair_of_models(name: str):
    """Theirs and ours, with the same weights."""
    torch.manual_seed(0)
    if name == "clip":
        own = {"text_config": {**THEIR_TEXT, "eos_token_id": EOS, "bos_token_id": 1}, "vision_config": THEIR_VISION}
        theirs = CLIPModel(CLIPConfig(**own, projection_dim=16, attn_implementation="eager"))
        ours = TriuneCLIPModel(clip())
    else:
        own = {"text_config": {**THEIR_TEXT, "projection_size": 24}, "vision_config": THEIR_VISION}
        theirs = SiglipModel(SiglipConfig(**own, attn_implementation="eager"))
        ours = TriuneCLIPModel(siglip())
    randomised(theirs)
    ours.load_state_dict(converted(dict(theirs.named_parameters()), ours))
    return theirs, ours.eval()


# ---------------------------------------------------------------------------------------------------------------------
# Against transformers


# SigLIP pools the last place, padding or not: it is not used with a mask
@pytest.mark.parametrize(("name", "masked"), [("clip", False), ("clip", True), ("siglip", False)])
def test_equals_transformers(name, masked):
    """Logits, features, loss and the gradient of the first weights: against CLIPModel and SiglipModel."""
    theirs, ours = pair_of_models(name)
    inputs = batch()
    if masked:
        inputs["attention_mask"] = (torch.arange(LENGTH) < LENGTH - torch.arange(4)[:, None] % 4).long()
    wanted, found = theirs(**inputs, return_loss=True), ours(**inputs, return_loss=True)
    assert wanted.logits_per_image.std() > 0.1
    for field in ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds", "loss"):
        torch.testing.assert_close(getattr(found, field), getattr(wanted, field), atol=1e-5, rtol=1e-5)
    wanted.loss.backward()
    found.loss.backward()
    expected = theirs.vision_model.embeddings.patch_embedding.weight.grad.flatten(1)
    gradient = ours.vision_model.embed_tokens.projection.weight.grad
    torch.testing.assert_close(gradient, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_features_equal_transformers():
    """get_text_features and get_image_features alone: against CLIPModel, whose pooled vectors are not normalised."""
    theirs, ours = pair_of_models("clip")
    inputs = batch()
    for ask, name in (("get_text_features", "input_ids"), ("get_image_features", "pixel_values")):
        wanted, found = (getattr(model, ask)(**{name: inputs[name]}).pooler_output for model in (theirs, ours))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        assert (found.norm(dim=-1) - 1).abs().min() > 0.1


def test_text_ends_at_its_first_end():
    """What stands behind the first EOS changes nothing; against the same text in its own length. What stands before
    it does; and without an EOS the last token is read."""
    model = randomised(TriuneCLIPModel(clip()))
    ids = torch.tensor([[1, 5, 6, EOS, EOS, EOS]])

    def vector(ids):
        return model.get_text_features(torch.as_tensor(ids)).pooler_output

    torch.testing.assert_close(vector(ids), vector(ids[:, :4]))
    torch.testing.assert_close(vector([[1, 5, 6, EOS, 8, 9]]), vector(ids))
    assert not torch.allclose(vector([[1, 5, 7, EOS, EOS, EOS]]), vector(ids))
    without = [[1, 5, 6, 7]]
    state = model.text_model(torch.tensor(without)).last_hidden_state[:, -1]
    torch.testing.assert_close(vector(without), model.text_projection(state))


@pytest.mark.parametrize("name", ["clip-vit-b32", "siglip-b16"])
def test_published_counts(name):
    """Parameters: the published number of CLIP ViT-B/32, and SiglipModel's own of its default configuration."""
    with torch.device("meta"):
        count = TriuneCLIPModel(clip_preset(name)).num_parameters()
        stated = {"clip-vit-b32": 151_277_313, "siglip-b16": SiglipModel(SiglipConfig()).num_parameters()}
    assert count == stated[name]


# ---------------------------------------------------------------------------------------------------------------------
# Losses


def test_losses_follow_their_formulas():
    """Both losses with a factor, an addend and num_items_in_batch: against the formulas in numpy."""
    import numpy as np

    for config in (clip(), siglip(logit_bias_init_value=-1.5)):
        model, inputs = randomised(TriuneCLIPModel(config)), batch(5)
        out = model(**inputs, return_loss=True, num_items_in_batch=10)
        images, texts = (np.float64(part.detach().numpy()) for part in (out.image_embeds, out.text_embeds))
        logits = np.exp(config.logit_scale_init_value) * images @ texts.T
        if config.loss == "softmax":
            rows = np.log(np.exp(logits).sum(1)) - np.diag(logits)
            columns = np.log(np.exp(logits).sum(0)) - np.diag(logits)
            total = (rows.sum() + columns.sum()) / 2
        else:
            sign = 2 * np.eye(5) - 1
            total = np.log1p(np.exp(-sign * (logits - 1.5))).sum()
        assert out.loss.item() == pytest.approx(total / 10, rel=1e-5)
        assert model(**inputs, return_loss=True).loss.item() == pytest.approx(total / 5, rel=1e-5)


def test_loss_begins_near_chance():
    """A fresh model knows nothing: against ln(pairs)."""
    torch.manual_seed(0)
    loss = TriuneCLIPModel(clip(logit_scale_init_value=0.0))(**batch(16), return_loss=True).loss
    assert loss.item() == pytest.approx(2.7726, abs=0.15)


def test_factor_is_limited():
    """A logit scale beyond ln(max_logit_scale) counts as that: against cosine similarities."""
    model = randomised(TriuneCLIPModel(clip(max_logit_scale=50.0)))
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
        out = model(**batch())
    torch.testing.assert_close(out.logits_per_image, 50 * out.image_embeds @ out.text_embeds.T)


# ---------------------------------------------------------------------------------------------------------------------
# Two processes

PAIRS = 6


def learn_in_two(rank: int, folder: str) -> None:
    """A half of the pairs in each, wrapped as in training: what the loss and the gradients come to."""
    for name, config in (("clip", clip()), ("siglip", siglip())):
        model = DistributedDataParallel(randomised(TriuneCLIPModel(config)))
        share = {key: value.chunk(WORLD)[rank] for key, value in batch(PAIRS).items()}
        loss = model(**share, return_loss=True, num_items_in_batch=PAIRS).loss
        (loss * WORLD).backward()  # gradients are averaged, and the loss is a share, as in training/loop.py
        total = loss.detach().clone()
        dist.all_reduce(total)
        found = {key: parameter.grad for key, parameter in model.module.named_parameters()}
        if rank == 0:
            save_file({**found, "loss": total}, f"{folder}/{name}.safetensors")


class Learn:
    """Picklable, with the folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __call__(self, rank: int) -> None:
        learn_in_two(rank, self.folder)


def test_two_processes_equal_one(tmp_path):
    """Loss and gradients of two processes with half of the pairs each: against one process with all, to 1e-6 of the
    loss and of the largest gradient."""
    run_in_two(Learn(tmp_path), tmp_path)
    for name, config in (("clip", clip()), ("siglip", siglip())):
        model = randomised(TriuneCLIPModel(config))
        loss = model(**batch(PAIRS), return_loss=True).loss
        loss.backward()
        found = load_file(tmp_path / f"{name}.safetensors")
        assert float(found.pop("loss")) == pytest.approx(loss.item(), rel=1e-6)
        wanted = {key: parameter.grad for key, parameter in model.named_parameters()}
        largest = max(float(gradient.abs().max()) for gradient in wanted.values())
        assert found.keys() == wanted.keys()
        for key, gradient in wanted.items():
            assert float((found[key] - gradient).abs().max()) <= 1e-6 * largest, key
        alone = model(**{key: value[:3] for key, value in batch(PAIRS).items()}, return_loss=True).loss
        assert abs(alone.item() - loss.item()) > 1e-3  # without the other's negatives it would be another loss


# ---------------------------------------------------------------------------------------------------------------------
# What is asked of every model


@pytest.mark.parametrize("make", [clip, siglip])
def test_contract(make, tmp_path):
    """Finite loss, a gradient for every parameter, the same output again, and difference 0.0 after saving."""
    model = randomised(TriuneCLIPModel(make()))
    model.train()(**batch(), return_loss=True).loss.backward()
    without = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    # what a softmax or a norm takes away again has a gradient of rounding errors only
    assert [name for name in without if "k_proj.bias" not in name] == []
    model.eval()
    with torch.no_grad():
        before, again = (model(**batch()).logits for _ in range(2))
        assert torch.equal(before, again)
        model.save_pretrained(tmp_path)
        for auto_class in (transformers.AutoModel, transformers.AutoModelForZeroShotImageClassification):
            loaded = auto_class.from_pretrained(tmp_path)
            assert isinstance(loaded, TriuneCLIPModel)
            assert torch.equal(loaded(**batch()).logits, before)


def test_every_parameter_has_its_start():
    """Built on memory that holds NaN, nothing of it is left: every parameter has a line in `_init_weights`."""
    for config in (clip(), siglip()):
        with torch.device("meta"):
            model = TriuneCLIPModel(config)
        model = model.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))
                parameter._is_hf_initialized = False
        for module in model.modules():
            module._is_hf_initialized = False
        model.init_weights()
        assert [name for name, parameter in model.named_parameters() if parameter.isnan().any()] == []
    assert model.logit_bias.item() == -10.0 and model.logit_scale.item() == pytest.approx(2.302585)


@pytest.mark.parametrize("name", sorted(CLIP_PRESETS))
def test_configuration_survives_a_file(name, tmp_path):
    """Every preset, saved and read: against itself."""
    config = clip_preset(name)
    config.save_pretrained(tmp_path)
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    unlike = {"_name_or_path": None}
    assert again.to_dict() | unlike == config.to_dict() | unlike
    assert again.text.to_dict() == config.text.to_dict()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"loss": "sigmoit"}, "loss='sigmoit' is not allowed: it must be 'softmax' or 'sigmoid'"),
        ({"projection_dim": 0}, "projection_dim=0 is not allowed: it must be an integer of at least 1"),
        ({"visual_projection": "none"}, "text vectors have 16 numbers, image vectors 24"),
        ({"projection_dimension": 8}, "no field 'projection_dimension'; did you mean 'projection_dim'"),
        ({"vision": {"embedding": "tokens"}}, "vision of TriuneCLIPConfig needs embedding 'patches'"),
        ({"max_logit_scale": -1}, "max_logit_scale=-1 is not allowed: it must be a number above 0"),
    ],
)
def test_wrong_configurations_are_named(wrong, says):
    """The field, the value and what is allowed."""
    with pytest.raises(ValueError, match=re.escape(says)):
        clip(**wrong)


def test_wrong_inputs_are_named():
    """A text too many, an unknown preset, an image of another size."""
    model, inputs = TriuneCLIPModel(clip()), batch()
    fewer = {**inputs, "pixel_values": inputs["pixel_values"][:3]}
    assert model(**fewer).logits.shape == (3, 4)
    with pytest.raises(ValueError, match=r"got 3 images .* and 4 texts"):
        model(**fewer, return_loss=True)
    with pytest.raises(ValueError, match=r"no preset 'clip-vit-b23'.*did you mean 'clip-vit-b32'"):
        clip_preset("clip-vit-b23")
    with pytest.raises(ValueError, match="this model was built for 12x12"):
        model(**{**inputs, "pixel_values": torch.randn(4, 3, 16, 16)})


# ---------------------------------------------------------------------------------------------------------------------
# For people without Triune

WORDS = ("a", "red", "blue", "circle", "square", "photo", "of", ".")
ASKED = ["red circle", "blue square", "red square"]
THERE = """
import importlib.abc, json, sys


class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triune":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NotInstalled())
import PIL.Image
import torch
from safetensors.torch import load_file
from transformers import AutoModel, pipeline

folder, asked = sys.argv[1], json.loads(sys.argv[2])
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    found = model(**load_file(f"{folder}/inputs.safetensors")).logits
ask = pipeline("zero-shot-image-classification", folder, trust_remote_code=True, device="cpu")
answer = ask(PIL.Image.open(f"{folder}/image.png"), candidate_labels=asked, hypothesis_template="a photo of a {}.")
assert not [name for name in sys.modules if name.split(".")[0] == "triune"]
difference = float((found - load_file(f"{folder}/output.safetensors")["logits"]).abs().max())
print(json.dumps({"difference": difference, "answer": answer, "class": type(model).__module__}))
"""


def small_tokenizer() -> PreTrainedTokenizerFast:
    special = {"[PAD]": 0, "[CLS]": 1, "[UNK]": 2, "[SEP]": EOS}
    words = {word: place for place, word in enumerate(WORDS, start=3)}
    tokenizer = Tokenizer(models.WordLevel({**special, **words}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]", bos_token="[CLS]"
    )


def test_others_load_it(tmp_path):
    """A saved folder in a process without Triune: difference 0.0, and the zero-shot pipeline answers what is computed
    here by hand from the logits."""
    model, tokenizer = randomised(TriuneCLIPModel(clip())), small_tokenizer()
    images = ViTImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
    for part in (model, tokenizer, images):
        part.save_pretrained(tmp_path)
    torch.manual_seed(3)
    picture = Image.fromarray(torch.randint(0, 256, (20, 15, 3), dtype=torch.uint8).numpy())
    picture.save(tmp_path / "image.png")
    texts = tokenizer([f"a photo of a {name}." for name in ASKED], padding=True, return_tensors="pt")
    with torch.no_grad():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums in the order in which the other process makes them
        logits = model(**batch()).logits
        wanted = model(**texts, **images(picture, return_tensors="pt")).logits_per_image.softmax(-1)[0].tolist()
        torch.set_num_threads(threads)
    save_file(batch(), tmp_path / "inputs.safetensors")
    save_file({"logits": logits.contiguous()}, tmp_path / "output.safetensors")
    script = tmp_path / "there.py"
    script.write_text(THERE)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    own = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", str(script), str(tmp_path), json.dumps(ASKED)],
        env={**kept, **own},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["difference"] == 0.0 and found["class"].startswith("transformers_modules")
    answer = {entry["label"]: entry["score"] for entry in found["answer"]}
    assert [answer[name] for name in ASKED] == pytest.approx(wanted, rel=1e-5)
    assert max(wanted) - min(wanted) > 0.05
