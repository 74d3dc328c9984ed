"""What a Triune model is: one configuration, one field per axis.

BERT, GPT and ViT are points in one space. Each axis of that space is a field of `TriuneConfig` that names a choice;
options that exist for one choice only live in that choice's own entry:

    TriuneConfig()                                                        # an encoder, as BERT is
    TriuneConfig(attention="causal")                                      # a language model, as GPT is
    TriuneConfig(embedding={"type": "patches", "image_size": 224})        # an image model, as ViT is
    TriuneConfig(position={"type": "rotary", "theta": 500000.0}, norm="rmsnorm", feed_forward="gated")

`AXES` below is the whole space. Sizes carry Hugging Face's names. Everything is validated here, once: a value when it
is set, pairs of values when the configuration is complete, the pair of a configuration and a head when a model is
built. This file itself needs no torch.
"""

import dataclasses
import difflib
import functools
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers.configuration_utils import PreTrainedConfig

from triune.configuration.configuration_card import put_card


try:  # in a `try`, so that transformers does not ask for Triune where this file travelled to
    from triune.configuration.export import export_code
except ImportError:
    export_code = None


def write_code(folder, modules) -> None:
    """Write the code of some modules beside a saved model: the package's, or where this file is a copy that travelled,
    the files that travelled with it."""
    if __name__.startswith("triune."):
        export_code(folder, modules)
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    for file in Path(__file__).resolve().parent.glob("*.py"):
        if file.name != "__init__.py":
            shutil.copyfile(file, Path(folder, file.name))


# ---------------------------------------------------------------------------------------------------------------------
# Options: a default, and what is allowed


class Option(NamedTuple):
    default: Any
    allowed: str
    accepts: Callable[[Any], bool]


def is_integer(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value) -> bool:
    """One that float32 holds: JSON, as Python reads it, also has NaN and Infinity."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


LARGEST = 3.4e38  # of float32
MOST = 2**31 - 1  # what a side of a tensor may have on every device


def flag(default: bool) -> Option:
    return Option(default, "True or False", lambda value: isinstance(value, bool))


def integer(default: int, low: int, high: int = MOST) -> Option:
    allowed = f"an integer of at least {low}" if high == MOST else f"an integer from {low} to {high:,}"
    return Option(default, allowed, lambda value: is_integer(value) and low <= value <= high)


def positive(default: float) -> Option:
    return Option(default, "a number above 0", lambda value: is_number(value) and value > 0)


def probability(default: float) -> Option:
    return Option(
        default, "a number from 0 up to, not including, 1", lambda value: is_number(value) and 0 <= value < 1
    )


def one_of(*values) -> Option:
    """The first value is the default."""
    return Option(values[0], " or ".join(map(repr, values)), lambda value: value in values)


def optional(option: Option) -> Option:
    return Option(None, f"None or {option.allowed}", lambda value: value is None or option.accepts(value))


def is_extent(value) -> bool:
    sides = value if isinstance(value, (list, tuple)) else [value, value]
    return len(sides) == 2 and all(is_integer(side) and 0 < side <= MOST for side in sides)


# Names in transformers' table of activations (ACT2FN), and "elu". Listed, because that table imports torch; a test
# builds each of them. "prelu" alone has a parameter: its slope below 0, one for each layer.
ACTIVATIONS = (
    *("elu", "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh"),
    *("laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu"),
    *("swish", "tanh"),
)

ACTIVATION = Option("gelu", "one of " + ", ".join(ACTIVATIONS), ACTIVATIONS.__contains__)

# ---------------------------------------------------------------------------------------------------------------------
# The space: axis -> choice -> option. The first choice of an axis is its default.

ATTENTION = {
    "qkv_bias": flag(True),
    "out_bias": flag(True),
    "qk_norm": flag(False),  # normalise every query and key head before the rotation
    "scale": optional(positive(1.0)),  # of the scores; None: head_dim ** -0.5
}
FEED_FORWARD = {"bias": flag(True), "dropout": probability(0.0)}  # dropout between the two projections
RESIDUAL = {
    "stochastic_depth": probability(0.0),  # of the last layer; grows linearly from 0 at the first
    "zero_init": flag(False),  # o_proj and down_proj start at zero: a fresh layer adds nothing
}
SOFTCAP = {"softcap": optional(positive(30.0))}  # logits stay within it: softcap * tanh(logits / softcap) (Gemma 2)

AXES: dict[str, dict[str, dict[str, Option]]] = {
    "embedding": {
        "tokens": {
            "type_vocab_size": integer(0, 0),  # segments; 0: none, token_type_ids are accepted and ignored
            # "after": a norm after the sum of the embeddings. "first": that norm is the first layer's own
            # attention norm, moved in front of the residual stream (ModernBERT).
            "norm": one_of("none", "after", "first"),
            "scale": flag(False),  # multiply the embeddings by sqrt(hidden_size)
        },
        "patches": {
            "image_size": Option(224, "a positive integer or a pair [height, width]", is_extent),
            "patch_size": integer(16, 1),
            "num_channels": integer(3, 1),
            "cls_token": flag(True),
            "distillation_token": flag(False),  # after the CLS token (DeiT)
            "num_register_tokens": integer(0, 0),  # after those two, without positions
            # Tokens that come with vectors given as `inputs_embeds`, in front of the patches, and have positions here.
            "num_given_tokens": integer(0, 0),
            "mask_token": flag(False),  # one that stood for hidden patches in pretraining (DINOv2): kept, not read
            "norm": one_of("none", "after", "first"),
            "patch_norms": flag(False),  # a norm on the pixels of a patch and one on its projection
            "bias": flag(True),
        },
    },
    "position": {
        "learned": {"frozen": flag(False)},  # a table that stays as it was loaded
        "none": {},
        "sinusoidal": {
            "dimensions": one_of(1, 2),  # 2: rows and columns of an image, half of the width each
            "layout": one_of("interleaved", "concatenated"),  # sin and cos alternate, or all sin before all cos
            "base": positive(10000.0),
        },
        "rotary": {
            "theta": positive(10000.0),
            "local_theta": optional(positive(10000.0)),  # of sliding-attention layers; None: theta
        },
        "relative": {"num_buckets": integer(32, 4), "max_distance": integer(128, 2)},
    },
    "norm": {
        "layernorm": {"eps": positive(1e-5), "bias": flag(True)},
        "rmsnorm": {"eps": positive(1e-6)},
    },
    "attention": {"bidirectional": ATTENTION, "causal": ATTENTION},
    "feed_forward": {"plain": FEED_FORWARD, "gated": FEED_FORWARD},
    "residual": {"plain": RESIDUAL, "layer_scale": {"init": positive(1e-5), **RESIDUAL}},
    "pooling": {
        "cls": {"dense": flag(False)},  # dense: BERT's pooler, a projection and tanh
        "mean": {"dense": flag(False)},  # over the tokens that are not padding, or over the patches
        "last": {"dense": flag(False)},  # the last token that is not padding
        "registers": {"dense": flag(False)},  # the mean of the register tokens
        "cls_and_mean": {},  # both, side by side (DINOv2)
        "patches": {},  # all of them side by side, for images of the model's own size
    },
    "lm_head": {
        "plain": {"bias": flag(False), **SOFTCAP},
        # BERT's: projection, activation (None: the layers'), norm, decoder
        "transform": {"bias": flag(True), "dense_bias": flag(True), "hidden_act": optional(ACTIVATION), **SOFTCAP},
    },
    "classifier": {
        "linear": {"bias": flag(True)},
        "mlp": {"bias": flag(True), "hidden_size": optional(integer(1, 1))},  # hidden_size None: the model's own
    },
}

# Plain fields: what is allowed beyond the declared type.
FIELDS: dict[str, Option] = {
    "hidden_size": integer(1, 1, MOST // 4),  # four of it are a default
    "num_attention_heads": integer(1, 1),
    "num_hidden_layers": integer(1, 1, 2_000),  # the deepest that were published have 1,000
    **dict.fromkeys(
        ("num_key_value_heads", "head_dim", "intermediate_size")
        + ("vocab_size", "max_position_embeddings", "sliding_window"),
        optional(integer(1, 1)),
    ),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), probability(0.0)),
    "classifier_dropout": optional(probability(0.0)),
    "initializer_range": positive(0.02),
    "norm_placement": one_of("pre", "post"),
    "problem_type": optional(
        one_of("single_label_classification", "multi_label_classification", "regression"),
    ),
    "hidden_act": ACTIVATION,
}

# What transformers' own class believes unseen: it looks a dtype up among all that torch has, and makes a table of so
# many labels.
DTYPES = ("float32", "bfloat16", "float16", "float64")
INHERITED: dict[str, Option] = {
    "dtype": Option(
        None,
        f"None or one of {', '.join(map(repr, DTYPES))}",
        lambda value: value is None or value in DTYPES or type(value).__name__ == "dtype",
    ),
    "num_labels": integer(2, 1, 100_000),
    "id2label": Option(
        None,
        "None or a table from whole numbers to names",
        lambda value: (
            value is None or (bool(value) and isinstance(value, dict) and all(str(key).isdecimal() for key in value))
        ),
    ),
    **dict.fromkeys(
        ("output_hidden_states", "output_attentions", "_output_attentions", "return_dict"), optional(flag(False))
    ),
    "architectures": Option(
        None,
        "None or a list of names",
        lambda value: value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value)),
    ),
    "is_encoder_decoder": flag(False),
    "chunk_size_feed_forward": integer(0, 0),
    **dict.fromkeys(
        ("attn_implementation", "_attn_implementation"),
        Option(
            None,
            "None, the name of a kernel, or a table from stacks to names",
            lambda value: value is None or isinstance(value, (str, dict)),
        ),
    ),
}

# ---------------------------------------------------------------------------------------------------------------------
# The heads: the auto class that finds each one, the choices it needs, and its task as pipelines and the Hub call it


class Head(NamedTuple):
    auto_class: str
    needs: dict[str, str]
    pipeline_tag: str | None = None

    @property
    def is_backbone(self) -> bool:
        """Without a head: its weights have no prefix in a file."""
        return self.auto_class == "AutoModel"


TEXT, IMAGE = {"embedding": "tokens"}, {"embedding": "patches"}
HEADS: dict[str, Head] = {
    "TriuneModel": Head("AutoModel", {}),
    "TriuneForMaskedLM": Head("AutoModelForMaskedLM", {**TEXT, "attention": "bidirectional"}, "fill-mask"),
    "TriuneForPreTraining": Head("AutoModelForPreTraining", {**TEXT, "attention": "bidirectional"}),
    "TriuneForCausalLM": Head("AutoModelForCausalLM", {**TEXT, "attention": "causal"}, "text-generation"),
    "TriuneForImageClassification": Head("AutoModelForImageClassification", IMAGE, "image-classification"),
    "TriuneForSequenceClassification": Head("AutoModelForSequenceClassification", TEXT, "text-classification"),
    "TriuneForTokenClassification": Head("AutoModelForTokenClassification", TEXT, "token-classification"),
}

# What a saved folder tells the auto classes: every head, whichever of them was saved.
AUTO_MAP = {
    "AutoConfig": "configuration_triune.TriuneConfig",
    **{head.auto_class: f"modeling_triune.{name}" for name, head in HEADS.items()},
}

# Keys that transformers itself passes or writes. Any other unknown key is an error when a user gives it, and is kept
# when it comes out of a file: a later version, PEFT or a quantiser may have written it.
FOREIGN_KEYS = frozenset(
    ("name_or_path", "model_type", "auto_map", "quantization_config", "torch_dtype", "num_labels")
    + ("attn_implementation", "experts_implementation", "output_attentions", "tie_last_hidden_states")
)
# Keys by which a file makes transformers change a model in ways that Triune has other fields for, or none.
REFUSED_KEYS = {
    "rope_parameters": "the position field says how positions enter",
    "rope_scaling": "the position field says how positions enter",
    "per_layer_config": "all layers are alike but for layer_types",
}
KERNEL_KEYS = tuple(prefix + key for prefix in ("", "_") for key in ("attn_implementation", "experts_implementation"))


# ---------------------------------------------------------------------------------------------------------------------
# Checks of one value


def nearest(name: object, names) -> str:
    """`; did you mean 'x'?`, or nothing where no name is near."""
    matches = difflib.get_close_matches(str(name), list(map(str, names)), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def shown(value: object) -> str:
    """For a message; the beginning of what is long."""
    words = repr(value)
    return words if len(words) <= 200 else f"{words[:200]}... ({len(words):,} characters)"


def checked(name: str, option: Option, value: Any) -> Any:
    if not option.accepts(value):
        guess = nearest(value, ACTIVATIONS) if name == "hidden_act" else ""
        raise ValueError(f"{name}={shown(value)} is not allowed: it must be {option.allowed}{guess}")
    return value


def complete_entry(axis: str, value: str | dict) -> dict[str, Any]:
    """The full entry of an axis, defaults filled in: "rotary" or {"type": "rotary", "theta": 5e5} -> every option."""
    entry = {"type": value} if isinstance(value, str) else dict(value)
    choices = AXES[axis]
    choice = entry.pop("type", None)
    if not isinstance(choice, str) or choice not in choices:
        raise ValueError(
            f"{axis} needs a type that is one of {', '.join(map(repr, choices))}, got {shown(choice)}"
            f"{nearest(choice, choices)}"
        )
    options = choices[choice]
    unknown = sorted(entry.keys() - options.keys())
    if unknown:
        known = ", ".join(map(repr, options)) or "none"
        raise ValueError(
            f"{axis} {choice!r} has no option {shown(unknown[0])}; its options: {known}{nearest(unknown[0], options)}"
        )
    given = {key: checked(f"{axis}[{key!r}]", options[key], option) for key, option in entry.items()}
    return {"type": choice, **{key: given.get(key, option.default) for key, option in options.items()}}


def with_own_type(value: str | dict, current: str | dict | None) -> str | dict:
    """Options without a type change those of the entry that is there: {"image_size": 64} keeps the other options."""
    if not isinstance(value, dict) or "type" in value or current is None:
        return value
    return {**({"type": current} if isinstance(current, str) else current), **value}


def refuse_remote_kernels(config_dict: dict[str, Any]) -> None:
    """A file must not choose code to run: an attention implementation "user/repo" is fetched from the Hub and run."""
    for key, value in config_dict.items():
        names = value.values() if isinstance(value, dict) else [value]
        remote = [name for name in names if key in KERNEL_KEYS and isinstance(name, str) and "/" in name]
        if remote:
            raise ValueError(
                f"config.json sets {key}={remote[0]!r}, which would download and run code from the Hub. "
                f"If you trust it, remove it there and pass {key.lstrip('_')}={remote[0]!r} yourself"
            )
        if isinstance(value, dict):
            refuse_remote_kernels(value)


# ---------------------------------------------------------------------------------------------------------------------
# The configuration


def settable(compute: Callable) -> property:
    """A property that follows from the other fields until somebody sets it, as transformers itself may do to plans."""
    name = compute.__name__

    def read(self):
        return self.__dict__[name] if name in self.__dict__ else compute(self)

    def write(self, value):
        self.__dict__[name] = value

    return property(read, write, doc=compute.__doc__)


def strictly(kind: type) -> type:
    """A strict dataclass, whose refusals are ValueErrors that say what they are about, as everywhere."""
    kind = strict(kind)
    assign, make = kind.__setattr__, kind.__init__

    @functools.wraps(make)
    def __init__(self, *given: Any, **named: Any) -> None:
        try:
            make(self, *given, **named)
        except StrictDataclassClassValidationError as error:
            raise ValueError(str(error.__cause__)) from error

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            assign(self, name, value)
        except StrictDataclassFieldValidationError as error:
            allowed = kind.__dataclass_fields__[name].type
            raise ValueError(f"{name}={shown(value)} is not allowed: it must be of type {allowed}") from error

    kind.__setattr__, kind.__init__ = __setattr__, __init__
    return kind


def machine_memory() -> float:
    """In bytes; endless where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return math.inf


class FamilyConfig(PreTrainedConfig):
    """What every configuration of the family shares: how it is read and written, and what it refuses."""

    heads: ClassVar[dict[str, Head]] = {}  # the models of this configuration
    auto_classes: ClassVar[dict[str, str]] = {}  # what a saved folder tells the auto classes

    def __setattr__(self, name: str, value: Any) -> None:
        if name in INHERITED:
            checked(name, INHERITED[name], value)
        super().__setattr__(name, value)

    def sizes(self) -> dict[str, int]:
        """About how many numbers a model has, by the fields that they follow from; without biases and norms."""
        stacks = {name: getattr(self, name).sizes() for name in self.sub_configs}
        return {f"{name}: {fields}": count for name, sizes in stacks.items() for fields, count in sizes.items()}

    def check(self) -> None:
        """Refuse what cannot be. A subclass has its own rules."""

    def check_head(self, head: str) -> None:
        """Refuse a head that cannot stand on this configuration."""

    def check_memory(self, bytes_each: int = 4) -> None:
        """Refuse a model that this machine cannot hold. The system would not refuse it: it ends the process."""
        sizes, memory = self.sizes(), machine_memory()
        needed = bytes_each * sum(sizes.values())
        if needed > memory:
            raise ValueError(
                f"a model of this configuration takes about {needed / 1e9:,.1f} GB, and this machine has "
                f"{memory / 1e9:,.1f} GB; most of it follows from {max(sizes, key=sizes.get)}"
            )

    def _refuse_unknown_keys(self, kwargs: dict[str, Any]) -> None:
        unknown = [key for key in kwargs if key not in FOREIGN_KEYS and not key.startswith("_")]
        if unknown:
            known = [field.name for field in dataclasses.fields(self)]
            raise ValueError(
                f"{type(self).__name__} has no field {unknown[0]!r}{nearest(unknown[0], known)} "
                f"(fields: {', '.join(sorted(known))})"
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(
                f"this is a configuration of model_type {found!r}, and {cls.__name__} reads {cls.model_type!r}"
                + ("" if str(found).startswith("triune") else "; triune.conversion.load reads published models")
            )
        refuse_remote_kernels(config_dict)
        for key in REFUSED_KEYS.keys() & config_dict.keys():
            raise ValueError(f"config.json sets {key}, which {cls.__name__} does not have: {REFUSED_KEYS[key]}")
        kept = {key: value for key, value in config_dict.items() if cls._may_come_from_a_file(key)}
        return super().from_dict({**kept, "_from_user": False}, **kwargs)

    @classmethod
    def _may_come_from_a_file(cls, key: str) -> bool:
        """Fields and unknown keys may; a key must not replace a method, a property or what transformers keeps private
        (`_auto_class` in a file would keep the code from travelling)."""
        fields = {field.name for field in dataclasses.fields(cls)}
        return key in fields or key in FOREIGN_KEYS or not (key.startswith("_") or hasattr(cls, key))

    @classmethod
    def from_json_file(cls, json_file):
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Save the configuration and, beside it, the code that computes it: every way of saving a model passes here.

        A configuration that was itself loaded as remote code is left to transformers, which copies the flat files it
        came from.
        """
        self.check()
        if self._auto_class is None:
            self.auto_map = dict(self.auto_classes)
            write_code(save_directory, {place.split(".")[0] for place in self.auto_classes.values()})
        super().save_pretrained(save_directory)
        if push_to_hub:  # not by super, which uploads what changed after it began: the code was written before
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        """The last step of a push."""
        put_card(working_dir, repo_id, self, revision=kwargs.get("revision"), token=kwargs.get("token"))
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


@strictly
class TriuneConfig(FamilyConfig):
    r"""
    One stack of the Triune family. Axis fields (`AXES`) take the name of a choice, or a dict with its options.

    Args:
        embedding: What enters: `"tokens"` or `"patches"`.
        position: `"learned"`, `"none"`, `"sinusoidal"`, `"rotary"` or `"relative"`.
        norm: `"layernorm"` or `"rmsnorm"`.
        norm_placement: `"pre"`: x + f(norm(x)), or `"post"`: norm(x + f(x)).
        final_norm: A norm after the last layer. Default: with `"pre"`, not with `"post"`.
        attention: `"bidirectional"` or `"causal"`.
        feed_forward: `"plain"` or `"gated"`.
        residual: `"plain"` or `"layer_scale"`; both take `stochastic_depth` and `zero_init`.
        pooling: The vector that stands for the whole input. Default: `"last"` for causal attention, `"mean"` for
            patches without a CLS token, else `"cls"`.
        lm_head: `"plain"` or `"transform"`; both take `softcap`.
        classifier: `"linear"` or `"mlp"`.
        layer_types: `"full_attention"` or `"sliding_attention"` for each layer. Default: sliding where
            `sliding_window` is given, else full.
        sliding_window: Tokens that a sliding layer sees: with causal attention the last so many, the token itself
            included; else so many on each side.
        max_position_embeddings: The longest input of learned positions, in tokens; with other positions the length
            the model is meant for. Not for patches: there it follows from the image size (`num_positions`).

    Example:

    ```python
    >>> from triune.configuration import TriuneConfig, preset
    >>> config = TriuneConfig(attention="causal", position="rotary", hidden_size=256, num_attention_heads=4)
    >>> config = preset("gpt2", num_hidden_layers=6)
    ```
    """

    model_type = "triune"
    heads = HEADS
    auto_classes = AUTO_MAP
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - a field of transformers' config class

    embedding: str | dict = "tokens"
    position: str | dict = "learned"
    norm: str | dict = "layernorm"
    norm_placement: str = "pre"
    final_norm: bool | None = None
    attention: str | dict = "bidirectional"
    feed_forward: str | dict = "plain"
    residual: str | dict = "plain"
    pooling: str | dict | None = None
    lm_head: str | dict = "plain"
    classifier: str | dict = "linear"

    vocab_size: int | None = None
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    max_position_embeddings: int | None = None
    layer_types: list[str] | None = None
    sliding_window: int | None = None

    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    classifier_dropout: float | int | None = None
    initializer_range: float | int = 0.02

    tie_word_embeddings: bool = True
    use_cache: bool | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in AXES and value is not None:
            value = complete_entry(name, with_own_type(value, getattr(self, name, None)))
        elif name in FIELDS:
            checked(name, FIELDS[name], value)
        super().__setattr__(name, value)

    def __post_init__(self, **kwargs):
        if kwargs.pop("_from_user", True):
            self._refuse_unknown_keys(kwargs)
        kwargs.pop("model_type", None)  # the class's own
        kwargs.pop("tie_last_hidden_states", None)  # follows from the embedding
        self._fill_derived()
        super().__post_init__(**kwargs)
        self.check()

    def _fill_derived(self) -> None:
        for field, value in self._derived_defaults().items():
            if getattr(self, field) is None:
                setattr(self, field, value)

    def _derived_defaults(self) -> dict[str, Any]:
        """Fields that follow from others unless given. Derived here and not in the class body, where they would keep
        the value they had for the default sizes."""
        text = self.embedding["type"] == "tokens"
        return {
            "vocab_size": 30522 if text else None,
            "max_position_embeddings": 512 if text else None,
            "head_dim": self._head_dim(),
            "num_key_value_heads": self.num_attention_heads,
            "intermediate_size": 4 * self.hidden_size,
            "final_norm": self.norm_placement == "pre",
            "layer_types": self.num_hidden_layers
            * ["full_attention" if self.sliding_window is None else "sliding_attention"],
            "pooling": self._default_pooling(),
            "use_cache": True,  # where attention is causal; elsewhere there is nothing to keep
        }

    def _head_dim(self) -> int:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={self.num_attention_heads}: "
                "change one of them, or give head_dim"
            )
        return self.hidden_size // self.num_attention_heads

    def _default_pooling(self) -> str:
        if self.attention["type"] == "causal":
            return "last"
        return "cls" if self.embedding.get("cls_token", True) else "mean"

    # -- what follows from the axes ----------------------------------------------------------------------------------

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        size = self.embedding["image_size"]
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        patch = self.embedding["patch_size"]
        if height % patch or width % patch:
            raise ValueError(f"embedding image_size={size!r} is not divisible by patch_size={patch}")
        return height // patch, width // patch

    @property
    def num_positions(self) -> int:
        """Length of a table of positions: the longest text, or the CLS token and the patches of an image."""
        if self.embedding["type"] == "tokens":
            return self.max_position_embeddings
        rows, columns = self.grid
        return self.num_placed_tokens + rows * columns

    @property
    def num_placed_tokens(self) -> int:
        """Tokens in front of the patches that have a position: CLS, DeiT's second one, those given."""
        names = ("cls_token", "distillation_token", "num_given_tokens")
        return sum(int(self.embedding.get(name, 0)) for name in names)

    @property
    def num_prefix_tokens(self) -> int:
        """All that is in front of the patches: those and the registers."""
        return self.num_placed_tokens + self.embedding.get("num_register_tokens", 0)

    @property
    def pooled_size(self) -> int:
        """Numbers in the vector that stands for the whole input."""
        kind = self.pooling["type"]
        rows, columns = self.grid if kind == "patches" else (1, 1)
        return self.hidden_size * (2 if kind == "cls_and_mean" else rows * columns)

    def sizes(self) -> dict[str, int]:
        size, entry, layers = self.hidden_size, self.embedding, self.num_hidden_layers
        heads = self.num_attention_heads + self.num_key_value_heads
        maps = 3 if self.feed_forward["type"] == "gated" else 2
        labels = self.num_labels if self.classifier["type"] == "linear" else self.classifier["hidden_size"] or size
        found = {
            "hidden_size, num_attention_heads, head_dim, num_hidden_layers": 2 * layers * size * heads * self.head_dim,
            "hidden_size, intermediate_size, num_hidden_layers": maps * layers * size * self.intermediate_size,
            "hidden_size, num_labels, pooling, classifier": self.pooled_size * labels + size * self.num_labels,
        }
        if self.position["type"] in ("learned", "sinusoidal"):
            found["hidden_size, max_position_embeddings, embedding, position"] = size * self.num_positions
        if self.position["type"] == "relative":
            found["num_attention_heads, position"] = self.num_attention_heads * self.position["num_buckets"]
        if entry["type"] == "tokens":
            tables = 1 if self.tie_word_embeddings else 2
            found["vocab_size, hidden_size"] = size * (tables * self.vocab_size + entry["type_vocab_size"])
        else:
            pixels = entry["num_channels"] * entry["patch_size"] ** 2
            found["embedding, hidden_size"] = size * (pixels + entry["num_register_tokens"])
        return found

    @property
    def adds_to_scores(self) -> bool:
        """Whether positions are an addend to the attention scores, which not every kernel takes."""
        return self.position["type"] == "relative"

    @property
    def tie_last_hidden_states(self) -> bool:
        """As the originals: the last of `hidden_states` is after the final norm for text, before it for images."""
        return self.embedding["type"] == "tokens"

    # -- plans for parallel execution: properties, because a plan may only name modules that exist -------------------

    @settable
    def base_model_tp_plan(self) -> dict[str, str]:
        plan = {}
        if not self.adds_to_scores:  # a bias has a column per head, which no style shards
            plan = {f"layers.*.self_attn.{name}": "colwise" for name in ("q_proj", "k_proj", "v_proj")}
            plan["layers.*.self_attn.o_proj"] = "rowwise"
        if plan and self.attention["qk_norm"]:
            plan |= {f"layers.*.self_attn.{name}": "replicated_with_grad_allreduce" for name in ("q_norm", "k_norm")}
        if self.hidden_act == "prelu":
            plan["layers.*.mlp.act_fn"] = "replicated_with_grad_allreduce"
        if self.feed_forward["type"] == "gated":
            plan["layers.*.mlp.gate_proj"] = "colwise"
        return plan | {"layers.*.mlp.up_proj": "colwise", "layers.*.mlp.down_proj": "rowwise"}

    @settable
    def base_model_pp_plan(self) -> dict[str, tuple[list[str], list[str]]]:
        plan = {
            "embed_tokens": (["input_ids"], ["inputs_embeds"]),
            "embeddings": (["inputs_embeds"], ["hidden_states"]),
            "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        }
        return plan | ({"norm": (["hidden_states"], ["hidden_states"])} if self.final_norm else {})

    @settable
    def base_model_fsdp_plan(self) -> dict[str, str]:
        plan = {"embed_tokens": "free_full_weight", "layers.*": "free_full_weight"}
        return plan | ({"norm": "keep_full_weight"} if self.final_norm else {})

    # -- pairs of values ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse pairs that cannot be. Runs when a configuration is made, when a model is built from it and when it
        is saved: in between, fields may be set one by one."""
        self._fill_derived()
        for axis in AXES:
            setattr(self, axis, getattr(self, axis))  # again: an entry may have been changed in place
        self._check_heads()
        self._check_positions()
        self._check_layers()
        self._check_pooling()

    def _check_heads(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not divisible by "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.position["type"] == "rotary" and self.head_dim % 2:
            raise ValueError(f"position 'rotary' turns pairs of channels: head_dim={self.head_dim} must be even")

    def _check_positions(self) -> None:
        if self.embedding["type"] == "patches" and self.max_position_embeddings not in (None, self.num_positions):
            raise ValueError(
                f"max_position_embeddings={self.max_position_embeddings} contradicts the {self.num_positions} "
                "positions of this image: leave it out for embedding 'patches'"
            )
        if self.position["type"] == "relative":
            self._check_buckets()
        if self.position["type"] != "sinusoidal":
            return
        dimensions = self.position["dimensions"]
        if self.hidden_size % (2 * dimensions):
            raise ValueError(
                f"position 'sinusoidal' with dimensions={dimensions} needs a hidden_size divisible by "
                f"{2 * dimensions}, got {self.hidden_size}"
            )
        if dimensions == 2 and self.embedding["type"] != "patches":
            raise ValueError("position 'sinusoidal' with dimensions=2 needs embedding 'patches', got 'tokens'")

    def _check_buckets(self) -> None:
        """Half of the buckets of a direction are exact, one for each distance; the others lie beyond those."""
        buckets, both = self.position["num_buckets"], self.attention["type"] == "bidirectional"
        exact = buckets // (4 if both else 2)
        if both and buckets % 2:
            raise ValueError(
                f"position 'relative' shares num_buckets={buckets} between two directions: it must be even"
            )
        if self.position["max_distance"] <= exact:
            raise ValueError(
                f"position 'relative' has max_distance={self.position['max_distance']}, but its first {exact} "
                f"distances have a bucket each (num_buckets={buckets}): max_distance must be above {exact}"
            )

    def _check_layers(self) -> None:
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types names {len(self.layer_types)} layers, but num_hidden_layers={self.num_hidden_layers}"
            )
        if "sliding_attention" in self.layer_types and self.sliding_window is None:
            raise ValueError("layer_types holds 'sliding_attention', which needs a sliding_window; it is None")
        if self.sliding_window is not None and "sliding_attention" not in self.layer_types:
            raise ValueError(
                f"sliding_window={self.sliding_window}, but no layer of layer_types is 'sliding_attention': name the "
                "layers that have the window (or set layer_types to None: all), or set sliding_window to None"
            )
        allowed = {"full_attention", "sliding_attention"}
        if not allowed.issuperset(self.layer_types):
            raise ValueError(f"layer_types may hold {sorted(allowed)}, got {sorted(set(self.layer_types) - allowed)}")
        if self.embedding["norm"] == "first" and self.norm_placement != "pre":
            raise ValueError("embedding norm 'first' stands for the first layer's own: it needs norm_placement 'pre'")

    def _check_pooling(self) -> None:
        kind, patches = self.pooling["type"], self.embedding["type"] == "patches"
        cls = (not patches or self.embedding["cls_token"], "a CLS token: set embedding cls_token=True")
        needs = {
            "cls": cls,
            "cls_and_mean": cls,
            "registers": (
                patches and self.embedding["num_register_tokens"] > 0,
                "embedding 'patches' with num_register_tokens above 0",
            ),
            "patches": (patches, "embedding 'patches'"),
        }
        met, what = needs.get(kind, (True, ""))
        if not met:
            raise ValueError(f"pooling {kind!r} needs {what}")
        if kind in ("cls", "cls_and_mean", "registers") and self.attention["type"] == "causal":
            raise ValueError(
                f"pooling {kind!r} reads the first tokens, which see nothing after them in causal attention: "
                "use 'last' or 'mean'"
            )

    def check_head(self, head: str) -> None:
        """Refuse a head that cannot stand on this configuration. A class that is no head is none of our business."""
        for axis, choice in HEADS.get(head, Head("", {})).needs.items():
            found = getattr(self, axis)["type"]
            if found != choice:
                fitting = [name for name, other in HEADS.items() if self._fits(other)]
                raise ValueError(
                    f"{head} needs {axis} {choice!r}, but this configuration has {axis} {found!r}. "
                    f"Heads that fit it: {', '.join(fitting)}"
                )

    def _fits(self, head: Head) -> bool:
        return all(getattr(self, axis)["type"] == choice for axis, choice in head.needs.items())


__all__ = ["TriuneConfig"]
