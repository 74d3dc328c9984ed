"""What a model is made of, in words: its layers, what it reads, and of several stacks the parameters of each.

    print(architecture(facts))   # 853,120 parameters · 2 layers of 128 · 4 heads · rotary positions · ...

Notable: of several stacks it is a table, whose parameters are counted on the model itself, built without memory.
"""

import torch
from torch import nn

import triune.modeling as modeling
from triune.configuration import TriuneCLIPConfig, TriuneConfig, TriuneMAEConfig, TriuneSeq2SeqConfig, stacks_of
from triune.training.hub.facts import Facts
from triune.training.hub.markdown import Markdown, table


def architecture(facts: Facts) -> str | Markdown:
    """In a line; of several stacks in a table, a row for each and one for what joins them."""
    stacks = stacks_of(facts.config)
    if len(stacks) == 1:
        total = f"{facts.parameters:,} parameters" if facts.parameters else ""
        return " · ".join(filter(None, [total, *layers(facts.config), reads(facts.config)]))
    own, joined = parameters_of(facts)
    rows = [
        (name, " · ".join(filter(None, [*layers(stack), *further(facts, stack)])), f"{own[name]:,}")
        for name, stack in stacks.items()
    ]
    rows.append(("beside them", JOINS[facts.config.model_type](facts), f"{joined:,}"))
    return table(("stack", "what it is", f"of {sum(own.values()) + joined:,} parameters"), rows)


def layers(config: TriuneConfig) -> list[str]:
    shared = config.num_key_value_heads != config.num_attention_heads
    position = {"none": "no positions"}.get(config.position["type"], f"{config.position['type']} positions")
    gated = "gated " if config.feed_forward["type"] == "gated" else ""
    return [
        f"{config.num_hidden_layers} layers of {config.hidden_size}",
        f"{config.num_attention_heads} heads"
        + (f", {config.num_key_value_heads} of keys and values" if shared else ""),
        position,
        f"{config.norm['type']} ({config.norm_placement}-norm)",
        f"{gated}feed-forward of {config.intermediate_size} ({config.hidden_act})",
    ]


def reads(config: TriuneConfig) -> str:
    return text_size(config) if config.embedding["type"] == "tokens" else image_size(config)


def text_size(config: TriuneConfig) -> str:
    return f"vocabulary of {config.vocab_size:,} · at most {config.max_position_embeddings:,} tokens"


def image_size(config: TriuneConfig) -> str:
    embedding, (height, width) = config.embedding, sides(config)
    colours = {1: "grey", 3: "RGB"}.get(embedding["num_channels"], f"{embedding['num_channels']} channels")
    return (
        f"images of {height} x {width} ({colours}) in patches of {embedding['patch_size']} x {embedding['patch_size']}"
    )


def sides(config: TriuneConfig) -> tuple[int, int]:
    rows, columns = config.grid
    return rows * config.embedding["patch_size"], columns * config.embedding["patch_size"]


# ---------------------------------------------------------------------------------------------------------------------
# Of several stacks


def further(facts: Facts, stack: TriuneConfig) -> list[str]:
    """Which way it reads a text; and what, unless it reads what another stack has made of an image."""
    drawn = stack.embedding["type"] == "patches" and stack is not facts.images
    ways = {"bidirectional": "reads both ways", "causal": "reads left to right"}
    way = ways[stack.attention["type"]] if stack.embedding["type"] == "tokens" else ""
    return [way, "" if drawn else reads(stack)]


def parameters_of(facts: Facts) -> tuple[dict[str, int], int]:
    """Of each stack, and those of no stack; what two have in common is the first one's."""
    with torch.device("meta"):
        model = getattr(modeling, facts.head)(facts.config)
    counted: set[int] = set()
    found = {name: count(module_of(model, stack), counted) for name, stack in stacks_of(facts.config).items()}
    return found, count(model, counted)


def module_of(model: nn.Module, stack: TriuneConfig) -> nn.Module:
    return next(module for module in model.modules() if getattr(module, "config", None) is stack)


def count(module: nn.Module, counted: set[int]) -> int:
    """Of parameters that were not counted before."""
    new = [parameter for parameter in module.parameters() if id(parameter) not in counted]
    counted.update(map(id, new))
    return sum(parameter.numel() for parameter in new)


def pairs_meet(facts: Facts) -> str:
    config = facts.config
    losses = {"softmax": "CLIP's loss: which belong together", "sigmoid": "SigLIP's loss: whether a pair is one"}
    return f"vectors of {config.widths['text']} numbers, which are compared · {losses[config.loss]}"


def patches_hidden(facts: Facts) -> str:
    config = facts.config
    hidden = config.num_patches - config.num_visible
    normalised = ", each normalised by itself" if config.norm_pix_loss else ""
    return f"mask token and head of pixels{normalised} · {hidden} of {config.num_patches} patches are hidden"


def tables_shared(facts: Facts) -> str:
    config = facts.config
    embeddings = "one table of embeddings for both" if config.share_embeddings else "a table of embeddings each"
    head = "the decoder's is also the head" if config.tie_word_embeddings else "the head has a table of its own"
    return embeddings if facts.auto_class == "AutoModel" else f"{embeddings} · {head}"


JOINS = {
    TriuneCLIPConfig.model_type: pairs_meet,
    TriuneMAEConfig.model_type: patches_hidden,
    TriuneSeq2SeqConfig.model_type: tables_shared,
}
