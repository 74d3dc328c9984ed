"""Recipes that start from a published model: small random originals stand in for the real ones, with tokenizers and
image processors of the same kind."""

from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from script_loading import load_script

import triune.conversion as conversion
from triune.training import run
from triune.training.arguments import parse
from triune.training.image_processor import build_processor
from triune.training.tokenizers import train_tokenizer


ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["The with statement opens a file.", "A red circle is left of a blue square.", "import os"] * 20
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 8}
FEW = ("--max_train_samples", "40", "--max_eval_samples", "8", "--per_device_train_batch_size", "4")

pytestmark = pytest.mark.usefixtures("as_found", "no_figures")


def text(tokenizer, length):
    ends = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": length, **ends}


def bert(tokenizer):
    return hf.BertForMaskedLM(hf.BertConfig(**text(tokenizer, 128)))


def gpt2(tokenizer):
    sizes = {"n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 256, "vocab_size": len(tokenizer)}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, eos_token_id=tokenizer.eos_token_id))


def vit(tokenizer):
    return hf.ViTForImageClassification(hf.ViTConfig(**IMAGE, num_labels=7))


def clip(tokenizer):
    towers = {"text_config": text(tokenizer, 32), "vision_config": IMAGE}
    return hf.CLIPModel(hf.CLIPConfig(**towers, projection_dim=16))


ORIGINALS = {"bert": bert, "gpt2": gpt2, "vit": vit, "clip": clip}
INSIDE = {"bert": "bert.encoder", "gpt2": "transformer.h", "vit": "vit.", "clip": "vision_model"}


@pytest.fixture
def original(tmp_path, request):
    """The name of a recipe, and the folder of a model as it would be published."""
    name, folder = request.param, tmp_path / "original"
    torch.manual_seed(0)
    tokenizer = train_tokenizer("bpe" if name == "gpt2" else "wordpiece", TEXTS, 300, 64)
    ORIGINALS[name](tokenizer).save_pretrained(folder)
    if name != "vit":
        tokenizer.save_pretrained(folder)
    if name in ("vit", "clip"):
        build_processor((16, 16), [0.5] * 3, [0.5] * 3).save_pretrained(folder)
    return name, folder


def train(name, folder, out, *flags):
    recipe = ROOT / f"recipes/originals/{name}.yaml"
    flags = ("--model_name_or_path", folder, "--output_dir", out, "--warmup_steps", "0", *FEW, *flags)
    return run.train(parse([str(recipe), *map(str, flags)]), read_original=conversion.load)


@pytest.mark.parametrize("original", ORIGINALS, indirect=True)
def test_an_original_is_trained_and_given_back(original, tmp_path):
    """A run whose steps are too small to matter saves the original's own numbers; given back, transformers reads them
    without code of ours."""
    name, folder = original
    train(name, folder, tmp_path / "run", "--max_steps", "1", "--learning_rate", "1e-30", "--weight_decay", "0")
    model = load_script("scripts/convert.py").own_model(str(tmp_path / "run" / "model"))
    conversion.save(model, tmp_path / "back")
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "back"))
    inside = [key for key in before if key.startswith(INSIDE[name])]
    assert len(inside) > 20
    for key in inside:
        torch.testing.assert_close(after[key], before[key], atol=1e-28, rtol=0)
    config = hf.AutoConfig.from_pretrained(tmp_path / "back")
    stock = getattr(hf, config.architectures[0])
    _, loading = stock.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]


@pytest.mark.parametrize("original", ["vit"], indirect=True)
def test_a_classifier_gets_the_classes_of_the_data(original, tmp_path, capsys):
    """Ten digits in place of the seven classes that the file knows: the head starts fresh, and the run says so."""
    name, folder = original
    train(name, folder, tmp_path / "run", "--max_steps", "1")
    said = capsys.readouterr().out
    assert "starts fresh: classifier.bias, classifier.weight" in " ".join(said.split())
    config = hf.AutoConfig.from_pretrained(tmp_path / "run" / "model", trust_remote_code=False)
    assert config.num_labels == 10 and len(config.id2label) == 10


@pytest.mark.parametrize("original", ["bert"], indirect=True)
def test_what_cannot_be_is_refused(original, tmp_path):
    """An adapter would name a base that is no Triune model; a damaged original is told by its tensor; a task whose
    head the family has not. Nothing is written."""
    name, folder = original
    with pytest.raises(ValueError, match=r"lora_rank=4 needs a Triune model, .*convert\.py makes one of it"):
        train(name, folder, tmp_path / "run", "--lora_rank", "4")
    words = ["--task", "image_classification", "--dataset_name", "digits", "--model_name_or_path", str(folder)]
    with pytest.raises(ValueError, match="TriuneForImageClassification needs embedding 'patches'"):
        run.train(parse([*words, "--output_dir", str(tmp_path / "run")]), read_original=conversion.load)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(ValueError, match=r"model_name_or_path=.*model\.safetensors cannot be read"):
        train(name, folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("original", ["bert"], indirect=True)
def test_without_a_reader_one_sentence_says_how(original, tmp_path):
    """`from_pretrained` of a Triune class, and the package without the script."""
    _, folder = original
    from triune.modeling import TriuneForMaskedLM

    with pytest.raises(ValueError, match=r"model_type 'bert', .* triune\.conversion\.load reads published models"):
        TriuneForMaskedLM.from_pretrained(folder)
    words = [str(ROOT / "recipes/originals/bert.yaml"), "--model_name_or_path", str(folder)]
    with pytest.raises(ValueError, match=r"is a model of type 'bert', and no Triune model: scripts/convert\.py"):
        run.train(parse([*words, "--output_dir", str(tmp_path / "run")]))
