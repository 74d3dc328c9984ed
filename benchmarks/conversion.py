"""Published checkpoints there and back: random ones of transformers' own classes, no weight zero or one, odd sizes.

    python benchmarks/conversion.py      # writes benchmarks/results/conversion.json and docs/conversion-cases.md

For each: the largest difference of the answers in float32 and bfloat16, whether generated tokens are the same, and
whether what is saved again has the same keys, bits and configuration. Then of large ones: the memory that loading
takes, and the time, each load in a process of its own, transformers' and ours by turns.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig, PreTrainedModel

import triune.conversion as conversion
from triune.conversion.checking import answer, random_inputs
from triune.training.environment import versions
from triune.training.report import replace


ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "conversion.json", ROOT / "docs" / "conversion-cases.md"
Tensors = dict[str, torch.Tensor]

# ---------------------------------------------------------------------------------------------------------------------
# The originals: transformers' class, and what its configuration says


class Original(NamedTuple):
    model: str
    fields: dict[str, Any]
    untied: bool = False  # a head of its own, which the configuration does not tell


SIZES = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 60}
TEXT = {**SIZES, "vocab_size": 97, "max_position_embeddings": 40}
IMAGE = {**SIZES, "image_size": 40, "patch_size": 8}
DINO = {name: value for name, value in IMAGE.items() if name != "intermediate_size"}
MAE = {"decoder_hidden_size": 20, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
MAE |= {**IMAGE, "decoder_intermediate_size": 28}
GROUPED = {**TEXT, "num_attention_heads": 6, "num_key_value_heads": 3, "bos_token_id": 1, "eos_token_id": 2}
DISTIL = {"dim": 36, "n_layers": 2, "n_heads": 3, "hidden_dim": 60, "vocab_size": 97, "max_position_embeddings": 40}
GPT2 = {"n_embd": 36, "n_layer": 2, "n_head": 3, "vocab_size": 97, "n_positions": 40, "eos_token_id": 2}
T5 = {"d_model": 36, "d_kv": 10, "d_ff": 60, "num_heads": 3, "vocab_size": 97, "decoder_start_token_id": 0}
T5 |= {"num_layers": 3, "num_decoder_layers": 2}  # no fewer than the decoder has: transformers sizes its cache by them
BART = {"d_model": 36, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 60, "decoder_ffn_dim": 44}
BART |= {"encoder_attention_heads": 3, "decoder_attention_heads": 6, "vocab_size": 97, "max_position_embeddings": 40}
MARIAN = {**BART, "decoder_vocab_size": 97, "pad_token_id": 96, "decoder_start_token_id": 96, "scale_embedding": True}
SPLIT = {**MARIAN, "decoder_vocab_size": 83, "share_encoder_decoder_embeddings": False, "tie_word_embeddings": False}
SPLIT |= {"pad_token_id": 82, "decoder_start_token_id": 82, "eos_token_id": 1, "forced_eos_token_id": 1}
TOWERS = {"text_config": {**TEXT, "max_position_embeddings": 20, "eos_token_id": 96}, "vision_config": IMAGE}
OLD_TOWERS = {**TOWERS, "text_config": {**TOWERS["text_config"], "eos_token_id": 2, "hidden_act": "quick_gelu"}}
SIGLIP = {**TOWERS, "text_config": {**TOWERS["text_config"], "projection_size": 36}}

ORIGINALS = {
    "bert": Original("BertModel", TEXT),
    "bert-without-pooler": Original("BertModel", TEXT),
    "bert-mlm": Original("BertForMaskedLM", {**TEXT, "hidden_act": "gelu_new", "layer_norm_eps": 1e-6}),
    "bert-pretraining": Original("BertForPreTraining", {**TEXT, "type_vocab_size": 3}),
    "bert-classes": Original("BertForSequenceClassification", {**TEXT, "num_labels": 4}),
    "bert-tokens": Original("BertForTokenClassification", {**TEXT, "num_labels": 5}),
    "roberta": Original("RobertaModel", {**TEXT, "type_vocab_size": 1}),
    "roberta-mlm": Original("RobertaForMaskedLM", {**TEXT, "type_vocab_size": 1}),
    "distilbert": Original("DistilBertModel", DISTIL),
    "distilbert-mlm": Original("DistilBertForMaskedLM", DISTIL),
    "distilbert-tokens": Original("DistilBertForTokenClassification", {**DISTIL, "num_labels": 4}),
    "modernbert": Original("ModernBertModel", {**TEXT, "pad_token_id": 0, "local_attention": 8}),
    "modernbert-mlm": Original("ModernBertForMaskedLM", {**TEXT, "pad_token_id": 0, "local_attention": 8}),
    "gpt2": Original("GPT2LMHeadModel", {**GPT2, "n_inner": 50}),
    "gpt2-backbone": Original("GPT2Model", GPT2),
    "gpt2-classes": Original("GPT2ForSequenceClassification", {**GPT2, "num_labels": 3, "pad_token_id": 0}),
    "llama": Original("LlamaForCausalLM", GROUPED),
    "llama-tied": Original("LlamaForCausalLM", {**GROUPED, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama-backbone": Original("LlamaModel", GROUPED),
    "llama-classes": Original("LlamaForSequenceClassification", {**GROUPED, "num_labels": 3, "pad_token_id": 0}),
    "mistral": Original("MistralForCausalLM", {**GROUPED, "sliding_window": None}),
    "qwen2": Original("Qwen2ForCausalLM", GROUPED),
    "qwen3": Original("Qwen3ForCausalLM", {**GROUPED, "head_dim": 10}),
    "vit": Original("ViTForImageClassification", {**IMAGE, "num_labels": 5}),
    "vit-backbone": Original("ViTModel", {**IMAGE, "num_channels": 1}),
    "vit-without-pooler": Original("ViTModel", IMAGE),
    "deit": Original("DeiTForImageClassification", {**IMAGE, "num_labels": 5}),
    "deit-backbone": Original("DeiTModel", IMAGE),
    "dinov2": Original("Dinov2Model", DINO),
    "dinov2-classes": Original("Dinov2ForImageClassification", {**DINO, "num_labels": 5, "mlp_ratio": 3}),
    "dinov2-gated": Original("Dinov2Model", {**DINO, "use_swiglu_ffn": True, "use_mask_token": False}),
    "dinov2-registers": Original("Dinov2WithRegistersForImageClassification", {**DINO, "num_register_tokens": 3}),
    "vit-mae": Original("ViTMAEForPreTraining", MAE),
    "vit-mae-normalised": Original("ViTMAEForPreTraining", {**MAE, "norm_pix_loss": True, "mask_ratio": 0.6}),
    "clip": Original("CLIPModel", {**TOWERS, "projection_dim": 16}),
    "clip-of-2021": Original("CLIPModel", {**OLD_TOWERS, "projection_dim": 16}),
    "siglip": Original("SiglipModel", SIGLIP),
    "t5": Original("T5ForConditionalGeneration", T5),
    "t5-backbone": Original("T5Model", T5),
    "t5-gated": Original("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}, untied=True),
    "flan-t5": Original(
        "T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu", "n_positions": 512}, True
    ),
    "bart": Original("BartForConditionalGeneration", BART),
    "bart-backbone": Original("BartModel", BART),
    "marian": Original("MarianMTModel", {**MARIAN, "activation_function": "swish"}),
    "marian-two-vocabularies": Original("MarianMTModel", {**SPLIT, "activation_function": "swish"}),
    "marian-backbone": Original("MarianModel", MARIAN),  # with its tables of positions
}


def config_of(original: Original) -> PreTrainedConfig:
    return getattr(transformers, original.model).config_class(**original.fields)


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    """Every tensor of the file, buffers with weights in them included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                shift = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.01
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2 + shift)
    return model.eval()


def write(name: str, folder: Path) -> PreTrainedModel:
    """A published checkpoint; gives the model as transformers reads it."""
    original, kind = ORIGINALS[name], getattr(transformers, ORIGINALS[name].model)
    torch.manual_seed(0)
    options = {"add_pooling_layer": False} if name.endswith("without-pooler") else {}
    model = kind(config_of(original), **options)
    if original.untied:  # transformers' configuration ties the head, and finds in the checkpoint that it is not
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    randomised(model).save_pretrained(folder)
    return published(name, folder)


def published(name: str, folder: Path, **options: Any) -> PreTrainedModel:
    kind = getattr(transformers, ORIGINALS[name].model)
    if name.endswith("without-pooler"):
        options["add_pooling_layer"] = False
    return kind.from_pretrained(folder, **options).eval()


# ---------------------------------------------------------------------------------------------------------------------
# Layouts before today's: what a file of a case looked like


def named(tensors: Tensors, names: dict[str, str]) -> Tensors:
    """With parts of names replaced, one after the other."""
    found = {}
    for name, tensor in tensors.items():
        for today, before in names.items():
            name = name.replace(today, before)
        found[name] = tensor.contiguous()
    return found


def fused(tensors: Tensors, parts: tuple[str, ...], whole: str) -> Tensors:
    """Tensors of three names with one ending become one below the other."""
    found = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)}
    for name in tensors:
        if parts[0] in name:
            three = [tensors[name.replace(parts[0], part)] for part in parts]
            found[name.replace(parts[0], whole)] = torch.cat(three)
    return found


def bert_of_2018(tensors: Tensors) -> Tensors:
    """gamma and beta, positions as a buffer, the head's matrix and bias twice."""
    found = named(tensors, {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"})
    found["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    found["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    return {**found, "bert.embeddings.position_ids": torch.arange(40)[None]}


def gpt2_of_2019(tensors: Tensors) -> Tensors:
    """No prefix, and the mask of each layer as a buffer."""
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 40, 40).tril() for layer in range(2)}
    return named(tensors, {"transformer.": ""}) | masks


def marian_of_2020(tensors: Tensors) -> Tensors:
    """With tables of positions, which transformers leaves out today, and the table of embeddings three times."""
    table, width = tensors["model.shared.weight"], 36
    positions = torch.arange(40)[:, None] / 10000 ** (2 * (torch.arange(width) // 2) / width)
    waves = torch.cat([positions[:, 0::2].sin(), positions[:, 1::2].cos()], dim=1)
    again = {f"model.{stack}.embed_positions.weight": waves.clone() for stack in ("encoder", "decoder")}
    again |= {f"model.{stack}.embed_tokens.weight": table.clone() for stack in ("encoder", "decoder")}
    return {**tensors, **again, "lm_head.weight": table.clone()}


def older_mae(tensors: Tensors) -> Tensors:
    return named(tensors, {"decoder.decoder_encoder.layer.": "decoder.decoder_layers."})


TIMM = {
    **{"vit.embeddings.position_embeddings": "pos_embed", "vit.embeddings.cls_token": "cls_token"},
    **{"vit.embeddings.patch_embeddings.projection": "patch_embed.proj", "vit.encoder.layer.": "blocks."},
    **{"decoder.decoder_encoder.layer.": "decoder_blocks.", "vit.layernorm": "norm", "classifier": "head"},
    **{"layernorm_before": "norm1", "layernorm_after": "norm2", "attention.attention.qkv": "attn.qkv"},
    **{"attention.output.dense": "attn.proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"},
    **{"decoder.": ""},
}
THREE = tuple(f"attention.attention.{one}" for one in ("query", "key", "value"))


def timm_vit(tensors: Tensors) -> Tensors:
    if "embeddings.cls_token" in tensors:  # a backbone alone
        tensors = {f"vit.{name}": tensor for name, tensor in tensors.items()}
    return named(fused(tensors, THREE, "attention.attention.qkv"), TIMM)


CLIP = {
    **{"text_model.embeddings.token_embedding": "token_embedding", "text_model.final_layer_norm": "ln_final"},
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding": "visual.conv1",
    **{"vision_model.pre_layrnorm": "visual.ln_pre", "vision_model.post_layernorm": "visual.ln_post"},
    **{
        "text_model.encoder.layers": "transformer.resblocks",
        "vision_model.encoder.layers": "visual.transformer.resblocks",
    },
    **{"self_attn.out_proj": "attn.out_proj", "layer_norm": "ln_", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"},
    **{"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"},
}


def openai_clip(tensors: Tensors) -> Tensors:
    """One tensor for queries, keys and values; projections the other way round; sizes written down as tensors."""
    for kind in ("weight", "bias"):
        tensors = fused(tensors, tuple(f"self_attn.{one}_proj.{kind}" for one in "qkv"), f"attn.in_proj_{kind}")
    found = named(tensors, CLIP)
    found |= {name: found[name].T.contiguous() for name in ("text_projection", "visual.proj")}
    return {**found, "input_resolution": torch.tensor(40), "vocab_size": torch.tensor(97)}


class Older(NamedTuple):
    original: str
    change: Callable[[Tensors], Tensors]
    has_config: bool = True
    pickled: bool = False
    config: dict[str, Any] = {}  # what `load` must be told  # noqa: RUF012


HEADS = {"num_attention_heads": 3}
OLDER = {
    "BERT of 2018": Older("bert-mlm", bert_of_2018, pickled=True),
    "GPT-2 of 2019": Older("gpt2", gpt2_of_2019, pickled=True),
    "Marian of 2020": Older("marian", marian_of_2020, pickled=True),
    "ViT-MAE of 2022": Older("vit-mae", older_mae),
    "timm ViT": Older("vit", timm_vit, has_config=False, config={**HEADS, "layer_norm_eps": 1e-12}),
    "timm or DINO backbone": Older(
        "vit-without-pooler", timm_vit, has_config=False, config={**HEADS, "layer_norm_eps": 1e-12}
    ),
    "Meta MAE": Older(
        "vit-mae",
        timm_vit,
        has_config=False,
        pickled=True,
        config={**HEADS, "decoder_num_attention_heads": 2, "layer_norm_eps": 1e-12},
    ),
    "OpenAI CLIP": Older(
        "clip",
        openai_clip,
        has_config=False,
        pickled=True,
        config={
            "text_config": {**HEADS, "intermediate_size": 60, "pad_token_id": 1},
            "vision_config": {**HEADS, "intermediate_size": 60},
        },
    ),
}


def age(folder: Path, older: Older) -> None:
    """A folder of today becomes one of then."""
    file = folder / "model.safetensors"
    tensors = older.change(load_file(file))
    file.unlink()
    if older.pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, file, metadata={"format": "pt"})
    if not older.has_config:
        (folder / "config.json").unlink()


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def generated(model: PreTrainedModel, ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """Greedy, and with 3 beams."""
    for beams in (1, 3):
        yield model.generate(ids, max_new_tokens=8, num_beams=beams, do_sample=False, pad_token_id=0)


# ---------------------------------------------------------------------------------------------------------------------
# The rows


def content_of(folder: Path) -> tuple[Tensors, dict[str, Any]]:
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text(encoding="utf-8"))


def measured(name: str, folder: Path) -> dict[str, Any]:
    """One case: there and back."""
    theirs = write(name, folder / "theirs")
    ours, report = conversion.load(folder / "theirs", output_loading_info=True)
    inputs = random_inputs(ours.config)
    wanted = answer(theirs, inputs)
    row = {
        "case": name,
        "original": ORIGINALS[name].model,
        "head": type(ours).__name__,
        "tensors": report.converted,
        "float32": difference(answer(ours, inputs), wanted),
        "largest": float(wanted.abs().max()),
    }
    half = {"dtype": torch.bfloat16}
    rounded = answer(published(name, folder / "theirs", **half), inputs)
    own = answer(conversion.load(folder / "theirs", **half), inputs)
    row["bfloat16"] = difference(own, rounded)
    row["bfloat16_error"], row["bfloat16_error_of_original"] = difference(own, wanted), difference(rounded, wanted)
    if theirs.can_generate():
        pairs = zip(generated(theirs, inputs["input_ids"]), generated(ours, inputs["input_ids"]))
        row["tokens_equal"] = all(torch.equal(one, other) for one, other in pairs)
    conversion.save(ours, folder / "back")
    return row | compared(folder / "theirs", folder / "back")


def compared(before: Path, after: Path) -> dict[str, bool]:
    """Two checkpoints of the same layout."""
    (tensors, config), (again, told) = content_of(before), content_of(after)
    same = tensors.keys() == again.keys()
    bits = same and all(torch.equal(tensors[key], again[key]) for key in tensors)
    return {"keys_equal": same, "bits_equal": bits, "config_equal": config == told}


def measured_older(name: str, folder: Path) -> dict[str, Any]:
    """One case of an older layout: read, and saved as today's."""
    older = OLDER[name]
    theirs = write(older.original, folder / "today")
    write(older.original, folder / "theirs")
    age(folder / "theirs", older)
    source = folder / "theirs" / ("pytorch_model.bin" if older.pickled else "model.safetensors")
    place = folder / "theirs" if older.has_config else source
    ours, report = conversion.load(place, config=older.config, output_loading_info=True)
    inputs = random_inputs(ours.config)
    wanted = answer(theirs, inputs)
    conversion.save(ours, folder / "back")
    (tensors, _), (again, _) = content_of(folder / "today"), content_of(folder / "back")
    return {
        "case": name,
        "original": ORIGINALS[older.original].model,
        "head": type(ours).__name__,
        "tensors": report.converted,
        "float32": difference(answer(ours, inputs), wanted),
        "largest": float(wanted.abs().max()),
        "keys_equal": tensors.keys() <= again.keys(),
        "bits_equal": all(torch.equal(tensors[key], again[key]) for key in tensors),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Memory and time of large ones

LARGE = {  # of the published sizes
    "BERT-base": ("BertForMaskedLM", {}),
    "GPT-2": ("GPT2LMHeadModel", {}),
    "ViT-B/16": ("ViTForImageClassification", {}),
    "T5-small": ("T5ForConditionalGeneration", {"decoder_start_token_id": 0}),
}
PAIRS = 5
# Anonymous memory: pages of the file itself, which the system may drop at any time, do not count.
CHILD = """
import sys, threading, time, torch, transformers, triune.conversion as conversion, triune.modeling
def anonymous():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))
whose, model, folder = sys.argv[1:]
load = conversion.load if whose == "ours" else getattr(transformers, model).from_pretrained
transformers.logging.disable_progress_bar()
before = most = anonymous()
done = False
def watch():
    global most
    while not done:
        most = max(most, anonymous())
        time.sleep(0.0005)
watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
model = load(folder)
seconds, done = time.perf_counter() - start, True
watcher.join()
print(most - before, seconds)
"""


def loaded_alone(whose: str, model: str, folder: Path) -> tuple[int, float]:
    """Most anonymous memory above the empty process, and seconds."""
    command = [sys.executable, "-W", "ignore", "-c", CHILD, whose, model, str(folder)]
    words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(words[-2]), float(words[-1])


def measured_large(name: str, folder: Path) -> dict[str, Any]:
    model, fields = LARGE[name]
    kind = getattr(transformers, model)
    kind(kind.config_class(**fields)).save_pretrained(folder)
    size = (folder / "model.safetensors").stat().st_size
    loads: dict[str, list] = {"ours": [], "theirs": []}
    for place in range(PAIRS):
        for whose in ("ours", "theirs") if place % 2 else ("theirs", "ours"):
            loads[whose].append(loaded_alone(whose, model, folder))
    memory = {whose: statistics.median(one for one, _ in found) / size for whose, found in loads.items()}
    ratios = [theirs / ours for (_, ours), (_, theirs) in zip(loads["ours"], loads["theirs"])]
    seconds = {whose: statistics.median(one for _, one in found) for whose, found in loads.items()}
    return {
        **{"case": name, "original": model, "bytes": size, "memory": memory["ours"]},
        **{"memory_of_original": memory["theirs"], "seconds": seconds["ours"]},
        **{"seconds_of_original": seconds["theirs"], "times_as_fast": statistics.median(ratios)},
    }


# ---------------------------------------------------------------------------------------------------------------------
# The page


def yes(row: dict[str, Any], name: str) -> str:
    return "" if name not in row else "yes" if row[name] else "**no**"


def page(found: dict[str, Any]) -> str:
    lines = [
        "# Published checkpoints, there and back",
        "",
        "<!-- made by benchmarks/conversion.py: change it there -->",
        "",
        "Random models of transformers' own classes, no weight zero or one, with odd sizes. Differences are the",
        "largest of all answers: logits, hidden states of a backbone, pixels of a MAE. In bfloat16 the",
        "two may round differently: beside their difference stands how far each, ours first, is from the original in",
        "float32.",
        "Generated tokens are greedy ones and those of 3 beams.",
        "",
        "| case | transformers | Triune | tensors | float32 | bfloat16 | errors | tokens | keys | bits | config |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["originals"]:
        same = " | ".join(yes(row, name) for name in ("tokens_equal", "keys_equal", "bits_equal", "config_equal"))
        numbers = [
            f"{row[name]:.2g}" for name in ("float32", "bfloat16", "bfloat16_error", "bfloat16_error_of_original")
        ]
        numbers = f"{numbers[0]} | {numbers[1]} | {numbers[2]}, {numbers[3]}"
        lines.append(
            f"| {row['case']} | `{row['original']}` | `{row['head']}` | {row['tensors']} | {numbers} | {same} |"
        )
    lines += [
        *("", "## Older and original layouts", ""),
        "Read as their authors wrote them; saved, they are in today's layout: the bits of the file that transformers",
        "writes today.",
        "",
        "| layout | saved as | Triune | tensors | float32 | keys | bits |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["older"]:
        same = " | ".join(yes(row, name) for name in ("keys_equal", "bits_equal"))
        cells = (row["case"], f"`{row['original']}`", f"`{row['head']}`", row["tensors"], f"{row['float32']:.2g}")
        lines.append(f"| {' | '.join(map(str, cells))} | {same} |")
    lines += [
        *("", "## Memory and time", ""),
        "Anonymous memory above the empty process, as a share of the file; seconds with the file in the page cache,",
        f"medians of {PAIRS} loads each, in processes of their own and by turns.",
        "",
        "| checkpoint | MB | memory | of transformers | seconds | of transformers | times as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["large"]:
        lines.append(
            f"| {row['case']} | {row['bytes'] / 1e6:.0f} | {row['memory']:.2f} | {row['memory_of_original']:.2f} | "
            f"{row['seconds']:.2f} | {row['seconds_of_original']:.2f} | {row['times_as_fast']:.2f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found: dict[str, Any] = {}
    for kind, cases, measure in (
        ("originals", ORIGINALS, measured),
        ("older", OLDER, measured_older),
        ("large", LARGE, measured_large),
    ):
        found[kind] = []
        for name in cases:
            with tempfile.TemporaryDirectory() as folder:
                found[kind].append(measure(name, Path(folder)))
            print(found[kind][-1], flush=True)
    replace(RESULTS, json.dumps({**found, "versions": versions()}, indent=1) + "\n")
    replace(PAGE, page(found))


if __name__ == "__main__":
    main()
