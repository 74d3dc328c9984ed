"""Configurations that somebody made up: each becomes a model that runs, or is refused with a ValueError that names
what was made up. Nothing large is allocated on the way, whatever sizes they ask for."""

import json
import math
import random
import resource
import statistics
import time
from typing import Any

import pytest
import torch

from triune import modeling
from triune.configuration import CONFIGS, configuration_triune, stacks_of
from triune.configuration.configuration_triune import AXES, FIELDS, INHERITED, Option
from triune.configuration.configuration_triune_clip import CLIP_FIELDS


STACK = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**STACK, "vocab_size": 40, "max_position_embeddings": 12}
IMAGE = {**STACK, "embedding": {"type": "patches", "image_size": 8, "patch_size": 4}}
BASES: list[tuple[str, dict[str, Any]]] = [
    ("triune", TEXT),
    ("triune", {**TEXT, "attention": "causal"}),
    ("triune", IMAGE),
    ("triune-seq2seq", {"encoder": TEXT, "decoder": TEXT}),
    ("triune-mae", {"encoder": IMAGE, "decoder": STACK}),
    ("triune-clip", {"text": TEXT, "vision": IMAGE, "projection_dim": 8}),
]
HOSTILE = [
    *(None, True, False, -1, 0, 1, 2, 3, 5, 8, 64, 1000, 10**6, 10**9, 2**31, 2**63, 10**400),
    *(0.0, -0.5, 0.5, 1.0, 1e-30, 1e30, 1e308, math.nan, math.inf, -math.inf),
    *("", "x", "8", "user/kernel", "../../etc/passwd", "\0", "load", "gelu", "rotary", "patches", "causal" * 1000),
    *([], [1], [8, 8], [None], ["full_attention"], ["sliding_attention"] * 2),
    *({}, {"type": "x"}, {"type": ["x"]}, {"x": {"x": []}}, {"0": "a", "1": "b"}, {"x": "y"}),
]
PLAIN = [
    *FIELDS,
    *INHERITED,
    *("layer_types", "final_norm", "tie_word_embeddings", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id"),
    *("output_hidden_states", "return_dict", "chunk_size_feed_forward", "is_encoder_decoder", "label2id"),
    *("architectures", "torch_dtype", "attn_implementation", "_attn_implementation", "per_layer_config"),
    *("output_attentions", "rope_parameters", "rope_scaling", "pruned_heads", "a_field_of_mine"),
]
OWN = {  # of what is no stack itself
    "triune-seq2seq": ["decoder_start_token_id", "tie_word_embeddings", "return_dict", "dtype"],
    "triune-mae": ["mask_ratio", "norm_pix_loss", "return_dict", "dtype"],
    "triune-clip": [*CLIP_FIELDS, "return_dict", "dtype"],
}
LARGEST = 64e6  # bytes of a model here


class Draw(random.Random):
    def value(self, option: Option | None) -> Any:
        """More often one that is allowed, where that is known."""
        allowed = [value for value in HOSTILE if option is not None and option.accepts(value)]
        return self.choice(allowed if allowed and self.random() < 0.6 else HOSTILE)

    def entry(self, axis: str) -> Any:
        """An axis: a choice that there is, with options of it, some of them hostile."""
        choice = self.choice(list(AXES[axis]))
        options = AXES[axis][choice]
        some = self.sample(list(options), self.randint(0, min(2, len(options))))
        given = {name: self.value(options[name]) for name in some}
        return self.choice([choice, choice, {"type": choice, **given}, {"type": choice, **given}, self.value(None)])

    def changes(self, fields: dict[str, Any]) -> list[str]:
        """Changes one to three fields of a stack, and says which."""
        names = self.sample([*AXES, *AXES, *PLAIN], self.randint(1, 3))
        for name in names:
            fields[name] = self.entry(name) if name in AXES else self.value({**FIELDS, **INHERITED}.get(name))
        return names

    def configuration(self) -> tuple[str, dict[str, Any], list[str]]:
        kind, fields = self.choice(BASES)
        fields = json.loads(json.dumps(fields))
        if kind == "triune":
            return kind, fields, self.changes(fields)
        if self.random() < 0.3:
            name = self.choice(OWN[kind])
            fields[name] = self.choice(HOSTILE)
            return kind, fields, [name]
        stack = self.choice([name for name, value in fields.items() if isinstance(value, dict)])
        return kind, fields, self.changes(fields[stack])


def head_of(config, draw: Draw) -> type:
    """A head that stands on this configuration."""
    fitting = [name for name, head in config.heads.items() if not hasattr(config, "_fits") or config._fits(head)]
    return getattr(modeling, draw.choice(fitting))


def inputs_of(model) -> dict[str, torch.Tensor] | None:
    """For every stack; None where an image would be too large to make one."""
    found = {}
    for name, stack in stacks_of(model.config).items():
        if stack.embedding["type"] == "tokens":
            ids = torch.randint(stack.vocab_size, (2, min(5, stack.max_position_embeddings)))
            found["decoder_input_ids" if name == "decoder" else "input_ids"] = ids
        elif name != "decoder":
            sides = [side * stack.embedding["patch_size"] for side in stack.grid]
            shape = (2, stack.embedding["num_channels"], *sides)
            if math.prod(shape) > 10**6:
                return None
            found["pixel_values"] = torch.rand(shape, dtype=model.dtype)
    return found


def tried(draw: Draw, from_file: bool) -> str:
    """What came of one: built, run or refused."""
    kind, fields, changed = draw.configuration()
    try:
        if from_file:
            config = CONFIGS[kind].from_dict({**json.loads(json.dumps(fields)), "model_type": kind})
        else:
            config = CONFIGS[kind](**fields)
        model = head_of(config, draw)(config).eval()
    except ImportError as error:
        assert "kernels" in str(error) and not from_file  # who gives this name himself asks for what he has not got
        return "refused"
    except ValueError as error:
        said = str(error)
        assert any(name.removeprefix("_").removeprefix("torch_") in said for name in changed), f"{fields}: {said}"
        assert len(said) < 10_000
        return "refused"
    inputs = inputs_of(model)
    if inputs is None:
        return "built"
    with torch.no_grad():
        model(**inputs)
    page = config.to_dict()
    assert CONFIGS[kind].from_dict(json.loads(json.dumps(page))).to_dict() == page
    return "run"


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_made_up_configurations(count, monkeypatch, figures):
    monkeypatch.setattr(configuration_triune, "machine_memory", lambda: LARGEST)
    before, seconds, came = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, [], {}
    for seed in range(count):
        begun = time.monotonic()
        try:
            end = tried(Draw(seed), from_file=seed % 2 == 0)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {Draw(seed).configuration()}") from error
        seconds.append(time.monotonic() - begun)
        came[end] = came.get(end, 0) + 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    figures(came, median_ms=1e3 * statistics.median(seconds), worst_s=max(seconds), grown_mb=grown)
    assert came["refused"] > count / 5 and came["run"] > count / 5
    assert grown < 1.5e-6 * LARGEST + 300
