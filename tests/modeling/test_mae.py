"""Masked autoencoders: against transformers' ViTMAEForPreTraining on copied random weights and the same noise, counts,
patches and their inverse, the folder that others load, and the encoder as a classifier."""

import json
import re

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_remote_code import visit
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from triune.configuration import TriuneConfig, preset
from triune.configuration.configuration_triune_mae import MAE_PRESETS, TriuneMAEConfig, mae_preset
from triune.modeling import TriuneForImageClassification, TriuneForMaskedImageModeling, TriuneModel
from triune.modeling.embeddings import patchify, unpatchify
from triune.modeling.modeling_triune_mae import masked_pixel_loss, shuffled, target_pixels


EPS = {"norm": {"type": "layernorm", "eps": 1e-6}}
ENCODER = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80, **EPS}
DECODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, **EPS}
SMALL = {"encoder": {**ENCODER, "embedding": {"image_size": 24, "patch_size": 4}}, "decoder": DECODER}
# Of transformers' names to ours, applied in order.
NAMES = {
    r"vit\.embeddings\.cls_token": "model.embeddings.cls_token",
    r"vit\.embeddings\.patch_embeddings": "model.embed_tokens",
    r"vit\.layernorm": "model.norm",
    r"vit\.": "model.",
    r"decoder\.decoder_embed": "decoder.embed_tokens.projection",
    r"decoder\.decoder_layers": "decoder.layers",
    r"decoder\.decoder_norm": "decoder.norm",
    r"decoder\.decoder_pred": "pixel_head",
    r"decoder\.mask_token": "mask_token",
    r"attention\.": "self_attn.",
    r"layernorm_before": "attn_norm",
    r"layernorm_after": "mlp_norm",
    r"mlp\.fc1": "mlp.up_proj",
    r"mlp\.fc2": "mlp.down_proj",
}


def config(**changes):
    fields = {**SMALL, **{key: value for key, value in changes.items() if key not in SMALL}}
    return TriuneMAEConfig(**{**fields, **{key: {**SMALL[key], **changes[key]} for key in SMALL if key in changes}})


def model_of(**changes):
    torch.manual_seed(0)
    return TriuneForMaskedImageModeling(config(**changes)).eval()


def batch_of(images=3, size=(24, 24), patch=4):
    torch.manual_seed(1)
    return torch.randn(images, 3, *size), torch.rand(images, size[0] * size[1] // patch**2)


def authors_table(side, width):
    """transformers' own, with the halves exchanged as the authors have them; zero for CLS."""
    table = build_2d_sinusoidal_position_embedding(side, side, embed_dim=width, cls_token=True)
    return torch.cat([table[:, width // 2 :], table[:, : width // 2]], dim=1)[None]


def twins(norm_pix_loss):
    """Large random weights, the same in both; tables of positions, which 5.23 leaves at zero, are filled in."""
    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            **{key: value for key, value in ENCODER.items() if key != "norm"},
            **{f"decoder_{key}": value for key, value in DECODER.items() if key != "norm"},
            image_size=24,
            patch_size=4,
            layer_norm_eps=1e-6,
            norm_pix_loss=norm_pix_loss,
        )
    )
    torch.manual_seed(0)
    state = {}
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.normal_(std=0.3 if parameter.dim() == 1 else 2.0 / fan_in**0.5)
            if name.endswith(("position_embeddings", "decoder_pos_embed")):
                parameter.copy_(authors_table(6, parameter.shape[-1]))
                continue
            weight = parameter.flatten(1) if parameter.dim() == 4 else parameter
            if "decoder_pred" in name:  # they have the channels of a pixel together, we the pixels of a channel
                weight = weight.unflatten(0, (4, 4, 3)).movedim(2, 0).flatten(0, 2)
            for pattern, ours in NAMES.items():
                name = re.sub(pattern, ours, name)
            state[name] = weight.clone()
    ours = model_of(norm_pix_loss=norm_pix_loss)
    ours.load_state_dict(state, strict=True)
    return theirs.eval(), ours


# ---------------------------------------------------------------------------------------------------------------------
# Against transformers


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_parity(norm_pix_loss, attention):
    """Loss, pixels, mask, order and the gradient of every weight against ViTMAEForPreTraining, with the same noise."""
    theirs, ours = twins(norm_pix_loss)
    ours.set_attn_implementation(attention)
    pixels, noise = batch_of()
    want, found = theirs(pixels, noise=noise), ours(pixels, noise=noise)
    logits = want.logits.unflatten(-1, (4, 4, 3)).movedim(-1, -3).flatten(-3)
    assert logits.std() > 0.5
    torch.testing.assert_close(found.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.loss, want.loss, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.mask, want.mask) and torch.equal(found.ids_restore, want.ids_restore)
    want.loss.backward()
    found.loss.backward()
    for theirs_grad, ours_grad in (
        (theirs.decoder.mask_token.grad, ours.mask_token.grad),
        (theirs.vit.embeddings.cls_token.grad, ours.model.embeddings.cls_token.grad),
        (theirs.decoder.decoder_embed.weight.grad, ours.decoder.embed_tokens.projection.weight.grad),
    ):
        torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-4, atol=1e-5)


def test_hidden_states_and_attentions():
    """Those of the encoder alone: as many as transformers gives, and the same numbers."""
    theirs, ours = twins(False)
    for model in (theirs, ours):
        model.set_attn_implementation("eager")
    pixels, noise = batch_of()
    asked = {"noise": noise, "output_hidden_states": True, "output_attentions": True}
    want, found = theirs(pixels, **asked), ours(pixels, **asked)
    assert len(found.hidden_states) == len(want.hidden_states) == 3 and len(found.attentions) == 2
    for mine, other in zip((*found.hidden_states, *found.attentions), (*want.hidden_states, *want.attentions)):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=2e-5)


def test_counts():
    """Of the older system's 5,936,640 parameters 75,264 are its two fixed tables, which are computed here; the other
    5,861,376 are all there. 256 of those, the decoder's norm, it never used: here each one learns. ViT-B: what
    transformers counts, less its tables."""
    with torch.device("meta"):
        mini = TriuneForMaskedImageModeling(mae_preset("scratch-mae"))
        base = TriuneForMaskedImageModeling(mae_preset("mae-base"))
        theirs = ViTMAEForPreTraining(ViTMAEConfig())
    tables = 14 * 14 * (256 + 128)
    assert (mini.num_parameters(), mini.num_parameters() + tables) == (5_861_376, 5_936_640)
    assert sum(parameter.numel() for parameter in mini.decoder.norm.parameters()) == 256
    assert base.num_parameters() == theirs.num_parameters() - 197 * (768 + 512) == 111_655_680
    assert all(mae_preset(name).num_patches in (64, 196, 256) for name in MAE_PRESETS)


# ---------------------------------------------------------------------------------------------------------------------
# Patches


@pytest.mark.parametrize(("grid", "patch", "channels"), [((3, 5), 4, 3), ((6, 2), 2, 1), ((1, 1), 7, 4)])
def test_patches_and_their_inverse(grid, patch, channels):
    """unpatchify undoes patchify to the bit and the other way round; a patch is a cut of the image; non-square too."""
    rows, columns = grid
    images = torch.randn(2, channels, rows * patch, columns * patch)
    patches = patchify(images, patch)
    assert torch.equal(unpatchify(patches, grid, patch), images)
    assert torch.equal(patchify(unpatchify(patches, grid, patch), patch), patches)
    last = images[1, :, -patch:, -patch:]
    assert torch.equal(patches[1, -1], last.flatten())


def test_three_quarters_are_hidden():
    """147 of 196, those with the highest noise (numpy's order); ids_restore is the inverse of the order."""
    shape = TriuneMAEConfig()
    noise = torch.rand(4, shape.num_patches)
    keep, mask, restore = shuffled(noise, shape.num_visible)
    assert keep.shape == (4, 49) and mask.sum(1).tolist() == [147] * 4
    order = np.argsort(noise.numpy(), axis=1)
    for row in range(4):
        assert keep[row].tolist() == order[row, :49].tolist()
        assert set(mask[row].nonzero().flatten().tolist()) == set(order[row, 49:].tolist())
        assert (order[row][restore[row]] == np.arange(196)).all()


@pytest.mark.parametrize(("ratio", "visible"), [(0.9, 10), (0.75, 25), (0.5, 50), (0.99, 1), (0.015, 98)])
def test_visible_patches_are_counted_in_whole(ratio, visible):
    """Of 100: the share rounded down, and 0.9 of 100 is 90, though 100 * (1 - 0.9) is a little under 10."""
    shape = config(mask_ratio=ratio, encoder={"embedding": {"image_size": 20, "patch_size": 2}})
    assert (shape.num_patches, shape.num_visible) == (100, visible)


# ---------------------------------------------------------------------------------------------------------------------
# What the model may see, and what it is judged by


def test_the_encoder_does_not_see_hidden_patches():
    """Other pixels under the mask change no answer; other pixels in one visible patch do."""
    model = model_of()
    pixels, noise = batch_of()
    first = model(pixels, noise=noise)
    hidden = first.mask[..., None].bool()
    other = torch.where(hidden, torch.randn(3, 36, 48), patchify(pixels, 4))
    again = model(unpatchify(other, (6, 6), 4), noise=noise)
    assert torch.equal(again.logits, first.logits) and not torch.equal(again.loss, first.loss)
    other = torch.where(hidden, patchify(pixels, 4), torch.randn(3, 36, 48))
    assert not torch.allclose(model(unpatchify(other, (6, 6), 4), noise=noise).logits, first.logits, atol=1e-3)


def test_loss_is_of_masked_patches_alone():
    """Against numpy; a visible target or answer may be anything; items may be counted elsewhere."""
    logits, target = torch.randn(2, 9, 12, requires_grad=True), torch.randn(2, 9, 12)
    mask = torch.tensor([[1.0, 0, 0, 1, 1, 0, 1, 1, 1]] * 2)
    loss = masked_pixel_loss(logits, target, mask)
    errors = ((logits - target).detach().numpy() ** 2).mean(-1)
    assert loss.item() == pytest.approx(errors[mask.numpy() == 1].mean(), rel=1e-6)
    assert masked_pixel_loss(logits, torch.where(mask[..., None] == 1, target, 99.0), mask) == loss
    loss.backward()
    assert logits.grad[mask == 0].abs().max() == 0 and logits.grad[mask == 1].abs().min() > 0
    assert masked_pixel_loss(logits, target, mask, 24).item() == pytest.approx(loss.item() / 2)


def test_normalised_pixels():
    """Each patch against numpy's mean and its unbiased variance."""
    pixels, _ = batch_of()
    patches = patchify(pixels, 4).numpy()
    variance = patches.var(-1, keepdims=True, ddof=1)
    want = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-6)
    np.testing.assert_allclose(target_pixels(pixels, 4, True).numpy(), want, rtol=1e-5, atol=1e-6)
    assert torch.equal(target_pixels(pixels, 4, False), patchify(pixels, 4))


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_reconstruction(norm_pix_loss):
    """The right answers give the image back; wrong ones change the masked patches and no other; non-square."""
    model = model_of(norm_pix_loss=norm_pix_loss, encoder={"embedding": {"image_size": [8, 20], "patch_size": 4}})
    pixels, noise = batch_of(size=(8, 20))
    answer = model(pixels, noise=noise)
    right = target_pixels(pixels, 4, norm_pix_loss)
    torch.testing.assert_close(model.reconstruction(pixels, right, answer.mask), pixels, rtol=1e-5, atol=1e-5)
    changed = patchify(model.reconstruction(pixels, answer.logits, answer.mask) - pixels, 4).abs().amax(-1)
    assert torch.equal(changed > 1e-6, answer.mask.bool())


# ---------------------------------------------------------------------------------------------------------------------
# The contract


KINDS = {
    "plain": {},
    "no CLS": {"encoder": {"embedding": {"image_size": 24, "patch_size": 4, "cls_token": False}}},
    "registers": {"encoder": {"embedding": {"image_size": 24, "patch_size": 4, "num_register_tokens": 3}}},
    "learned": {"encoder": {"position": "learned"}, "decoder": {"position": "learned"}},
    "modern": {stack: {"norm": "rmsnorm", "feed_forward": "gated", "hidden_act": "silu"} for stack in SMALL},
    "normalised": {"norm_pix_loss": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind, tmp_path):
    """The loss starts near that of a model that knows nothing; every parameter learns; a saved model computes the
    same; the same noise gives the same answer, and none at all gives others."""
    model = model_of(**KINDS[kind])
    pixels, noise = batch_of()
    answer = model(pixels, noise=noise)
    assert answer.logits.shape == (3, 36, 48) and 0.7 < answer.loss.item() < 1.5
    answer.loss.backward()
    assert [name for name, found in model.named_parameters() if found.grad is None or not found.grad.any()] == []
    assert torch.equal(model(pixels, noise=noise).logits, answer.logits)
    assert not torch.equal(model(pixels).mask, model(pixels).mask)
    model.save_pretrained(tmp_path)
    again, info = TriuneForMaskedImageModeling.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(again(pixels, noise=noise).logits, answer.logits)


def test_gradient_checkpointing():
    """The same gradients as without."""
    model, (pixels, noise) = model_of().train(), batch_of()
    model(pixels, noise=noise).loss.backward()
    want = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(pixels, noise=noise).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name])


def test_auto_classes(tmp_path):
    """Both auto classes find it: transformers has its MAE under one, the name says the other."""
    model_of().save_pretrained(tmp_path)
    for auto in (transformers.AutoModelForPreTraining, transformers.AutoModelForMaskedImageModeling):
        assert isinstance(auto.from_pretrained(tmp_path), TriuneForMaskedImageModeling)


def test_encoder_becomes_a_classifier(tmp_path):
    """Plain from_pretrained of the whole folder: the encoder's configuration and every one of its weights, and what it
    computes of a whole image; nothing but the classifier starts fresh. Both stacks of one size, not to find the wrong
    one by chance."""
    model = model_of(decoder={**ENCODER, "num_hidden_layers": 3})
    model.save_pretrained(tmp_path)
    names = {"id2label": dict(enumerate("abcde")), "label2id": dict(zip("abcde", range(5)))}
    classifier, info = TriuneForImageClassification.from_pretrained(tmp_path, output_loading_info=True, **names)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"} and not info["mismatched_keys"]
    assert classifier.config.model_type == "triune" and classifier.config.num_hidden_layers == 2
    pixels, _ = batch_of()
    want = model.model.encode(model.model.embed(pixel_values=pixels))
    backbone = TriuneModel.from_pretrained(tmp_path)
    for found in (classifier.model, backbone):
        assert torch.equal(found(pixel_values=pixels).last_hidden_state, want)
    assert classifier(pixel_values=pixels, labels=torch.tensor([0, 1, 4])).logits.shape == (3, 5)
    classifier.save_pretrained(tmp_path / "classifier")
    again = TriuneForImageClassification.from_pretrained(tmp_path / "classifier")
    assert torch.equal(again(pixel_values=pixels).logits, classifier(pixel_values=pixels).logits)


def load_elsewhere(folder, inputs, out):
    """Both auto classes; and the classifier's class, taken out of the same folder."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    batch, outputs, found = load_file(inputs), {}, {}
    for name in ("AutoModelForPreTraining", "AutoModelForMaskedImageModeling"):
        model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
        with torch.no_grad():
            outputs[name] = model(**batch).logits
        found[name] = [type(model).__name__, type(model.config).__name__]
    model.save_pretrained(f"{out}/again")
    Classifier = get_class_from_dynamic_module("modeling_triune.TriuneForImageClassification", folder)
    with torch.no_grad():
        encoder = Classifier.from_pretrained(folder).model
        outputs["encoder"] = encoder(pixel_values=batch["pixel_values"]).last_hidden_state
    save_file(outputs, f"{out}/outputs.safetensors")
    return found


def test_where_triune_is_not_installed(tmp_path):
    """In a clean process: both auto classes and the classifier's class compute what was computed here, to the bit;
    what is saved there loads here."""
    torch.set_num_threads(1)
    model = model_of()
    pixels, noise = batch_of()
    model.save_pretrained(tmp_path / "model")
    save_file({"pixel_values": pixels, "noise": noise}, tmp_path / "inputs.safetensors")
    arguments = (tmp_path / "model", tmp_path / "inputs.safetensors", tmp_path)
    found = visit(load_elsewhere, *arguments, home=tmp_path / "home").result
    assert set(map(tuple, found.values())) == {("TriuneForMaskedImageModeling", "TriuneMAEConfig")}
    outputs = load_file(tmp_path / "outputs.safetensors")
    with torch.no_grad():
        want = model(pixels, noise=noise).logits
        whole = model.model.encode(model.model.embed(pixel_values=pixels))
    for name in found:
        assert torch.equal(outputs[name], want)
    assert torch.equal(outputs["encoder"], whole)
    again = TriuneForMaskedImageModeling.from_pretrained(tmp_path / "again")
    assert torch.equal(again(pixels, noise=noise).logits, want)


# ---------------------------------------------------------------------------------------------------------------------
# The configuration


def test_configuration_fills_in(tmp_path):
    """What is not given: patches, two-dimensional waves, the decoder's input; given stacks are copied; a file holds
    what it was made from."""
    own = preset("vit-mini", position=config().encoder.position, embedding={"image_size": 32, "patch_size": 8})
    made = TriuneMAEConfig(encoder=own, decoder={"hidden_size": 32, "num_attention_heads": 2})
    assert made.encoder is not own and made.encoder.to_dict() == own.to_dict()
    assert made.decoder.embedding["num_channels"] == own.hidden_size
    assert (made.decoder.grid, made.decoder.num_hidden_layers) == ((4, 4), 8)
    assert made.decoder.position["dimensions"] == 2
    assert made.get_text_config(decoder=True) is made
    made.save_pretrained(tmp_path)
    assert TriuneMAEConfig.from_pretrained(tmp_path).to_dict() == made.to_dict()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "triune-mae"
    assert TriuneConfig.from_pretrained(tmp_path).to_dict()["embedding"] == own.to_dict()["embedding"]


REFUSED = {
    "nothing hidden": ({"mask_ratio": 0.0}, "mask_ratio=0.0 is not allowed.* of 36 patches"),
    "nothing visible": ({"mask_ratio": 0.99}, "mask_ratio=0.99 is not allowed"),
    "text": ({"encoder": {"embedding": "tokens"}}, "needs embedding 'patches', got 'tokens'"),
    "causal": ({"decoder": {"attention": "causal"}}, "decoder of TriuneMAEConfig needs attention 'bidirectional'"),
    "rotary": ({"encoder": {"position": "rotary"}}, "encoder position 'rotary' is not allowed.* sinusoidal, learned"),
    "windows": ({"decoder": {"sliding_window": 3}}, "decoder has sliding_window=3, which means nothing"),
    "decoder's input": ({"decoder": {"embedding": {"num_channels": 7}}}, r"\['num_channels'\]=7 contradicts"),
    "unknown": ({"norm_pixel_loss": True}, "no field 'norm_pixel_loss'; did you mean 'norm_pix_loss'"),
    "unknown in a stack": ({"decoder": {"hidden": 3}}, "TriuneConfig has no field 'hidden'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_configurations(case):
    """Each with the field, the value and what is allowed."""
    changes, says = REFUSED[case]
    with pytest.raises(ValueError, match=says):
        config(**changes)


def test_refused_inputs():
    """Noise and images of another shape, patches of another grid, an unknown preset."""
    model, (pixels, noise) = model_of(), batch_of()
    with pytest.raises(ValueError, match=r"noise must have shape \(batch, patches\) = \(3, 36\), got \(3, 35\)"):
        model(pixels, noise=noise[:, 1:])
    with pytest.raises(ValueError, match="an image of 28x28 pixels, but this model was built for 24x24"):
        model(torch.zeros(1, 3, 28, 28))
    with pytest.raises(ValueError, match="are no 6 rows and 5 columns of patches"):
        unpatchify(patchify(pixels, 4), (6, 5), 4)
    with pytest.raises(ValueError, match=r"no preset 'mae-bse'; there are .*did you mean 'mae-base'"):
        mae_preset("mae-bse")
