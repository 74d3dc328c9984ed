"""Recipes and flags: what a run is told, in three small dataclasses.

`train.py recipes/bert.yaml --learning_rate 1e-3`: a flag beats the recipe, the recipe beats the default. A recipe is a
flat YAML file whose keys are the flags, plus `config`, a mapping of fields of `TriuneConfig`. Names are Hugging Face's
where it has one. An unknown key is an error that names the nearest valid one; flags are not guessed from a prefix.
"""

import argparse
import dataclasses
import math
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


def nearest(name: object, names: Iterable[str]) -> str:
    """Imported when something is wrong: it brings transformers and torch, which take seconds, and `--help` none."""
    from triune.configuration.configuration_triune import nearest

    return nearest(name, names)


def text(default: Any, help: str, **metadata) -> Any:
    """A field with its line in `--help`."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class ModelArguments:
    task: str | None = text(None, "what is asked of the model; `--list` shows the tasks")
    preset: str | None = text(None, "the named configuration to start from")
    config: str | None = text(None, "fields of the configuration, as YAML: 'hidden_size: 128, position: rotary'")
    model_name_or_path: str | None = text(None, "a saved Triune model to go on from, instead of a preset")
    tokenizer_name: str | None = text(None, "a saved tokenizer, instead of training one on the data")
    tokenizer_type: str | None = text(
        None, "the tokenizer to train: wordpiece, bpe (byte-level) or characters; default: as the task's first models"
    )
    vocab_size: int = text(2048, "the size of the tokenizer to train; for characters the most it may hold")
    attn_implementation: str | None = text(
        None, "sdpa, eager, flex_attention, ...; default: transformers' choice, but see fast_fp32"
    )
    freeze: str | None = text(None, "parameters that are not trained: a regular expression over their names")
    lora_rank: int | None = text(None, "train matrices of this rank beside those of a saved model, by PEFT")
    lora_alpha: float | None = text(None, "they are scaled by lora_alpha / lora_rank; default: twice the rank")
    lora_dropout: float = text(0.0, "in front of them")
    lora_target_modules: str | None = text(
        None, "the linear maps that get them, by name, with commas, or all-linear; default: q_proj,v_proj"
    )


@dataclass
class DataArguments:
    dataset_name: str | None = text(
        None, "a bundled set (pydocs, names, copy, reverse, digits, letters, photos, shapes), or a name for `datasets`"
    )
    dataset_config_name: str | None = text(None, "the configuration of a Hub dataset")
    train_file: str | None = text(None, "local text, CSV, JSON lines or Parquet; globs are expanded")
    validation_file: str | None = text(None, "the same, for validation; without it a share is split off")
    train_dir: str | None = text(None, "a folder of images, one folder for each class")
    validation_dir: str | None = text(None, "the same, for validation")
    text_column: str = text("text", "the column that holds the text")
    target_column: str = text("target", "seq2seq: the column that holds what is to be made of the text")
    image_column: str = text("image", "the column that holds the image")
    label_column: str = text("label", "the column that holds the label")
    streaming: bool = text(False, "read the training data as it comes, instead of all of it before the first step")
    validation_split_percentage: float = text(
        5.0, "how much is split off, by whole documents, without a validation set"
    )
    remove_shared_passages: bool = text(True, "take what also stands in the validation text out of the training text")
    max_train_samples: int | None = text(None, "use only so many training samples (documents, texts or images)")
    max_eval_samples: int | None = text(None, "use only so many validation samples")
    max_seq_length: int = text(128, "tokens in a sequence")
    max_target_length: int | None = text(None, "tokens of what is written; default: max_seq_length")
    eval_stride: int | None = text(
        None, "evaluation: tokens from one row to the next; causal_lm: half a row by default"
    )
    group_by_length: bool = text(False, "put texts of like length into a batch: less padding")
    num_beams: int = text(1, "evaluation: of so many drafts the likeliest is what is written; 1: token by token")
    mlm_probability: float = text(0.15, "share of tokens that a masked language model has to predict, in training")
    eval_mlm_probability: float = text(0.15, "the same, in evaluation")
    mean_noise_span_length: float = text(3.0, "span_corruption: the mean length of a span that is hidden, in tokens")
    whole_word_mask: bool = text(False, "mask all tokens of a word or none, in training")
    fold: int = text(0, "digits: which of five stratified folds is held out")
    shift: float = text(0.0, "training images are moved by up to so many pixels each way")
    rotate: float = text(0.0, "turned by up to so many degrees")
    rescale: float = text(0.0, "enlarged or reduced by up to this share")
    shear: float = text(0.0, "leaning by up to this slope")
    noise: float = text(0.0, "with normal noise of this standard deviation; pixels are between 0 and 1")
    random_resized_crop: float = text(1.0, "cut to a random part of at least this share of their area")
    horizontal_flip: float = text(0.0, "mirrored with this probability")
    rand_augment: int = text(0, "changed by so many random operations: contrast, brightness, shear, ...")
    rand_augment_magnitude: float = text(0.5, "how strongly, from 0 to 1")
    random_erasing: float = text(0.0, "a rectangle of them blanked with this probability")
    mixup_alpha: float = text(0.0, "pairs of them mixed with a share drawn from Beta(alpha, alpha); 0: never")
    cutmix_alpha: float = text(0.0, "a rectangle of another pasted in, the same; with both, one or the other")
    dataloader_num_workers: int = text(0, "processes that prepare batches beside the training process")
    verify_data: bool = text(False, "read every sample once, list those that cannot be read, and end")


@dataclass
class TrainingArguments:
    output_dir: str | None = text(None, "the run folder; default: runs/<name of the recipe>")
    seed: int = text(0, "every random choice follows from it")
    max_steps: int = text(1000, "optimiser steps")
    max_minutes: float | None = text(None, "stop after so many minutes of training, evaluate and save")
    max_train_tokens: int | None = text(None, "stop after so many tokens (or images), evaluate and save")
    early_stopping_patience: int | None = text(None, "stop after so many evaluations without a better one")
    per_device_train_batch_size: int = text(32, "samples of one forward pass on one device")
    per_device_eval_batch_size: int = text(64, "the same, in evaluation")
    gradient_accumulation_steps: int = text(1, "forward passes of one optimiser step")
    optim: str = text("adamw", "the optimiser, by name")
    optim_args: str | None = text(None, "options of its own, as YAML: 'momentum: 0.9'")
    learning_rate: float = text(1e-3, "its highest value")
    weight_decay: float = text(0.01, "decoupled, on matrices")
    adam_beta1: float = text(0.9, "decay of the mean of the gradient")
    adam_beta2: float = text(0.99, "decay of the mean of its square")
    adam_epsilon: float = text(1e-8, "added to the square root")
    layer_decay: float = text(1.0, "factor of the learning rate from each layer to the one below it")
    lr_scheduler_type: str = text("cosine", "how the learning rate goes, by name")
    lr_scheduler_kwargs: str | None = text(None, "options of its own, as YAML: 'min_lr_rate: 0.1'")
    warmup_steps: int | None = text(None, "steps in which it rises from 0; default: a tenth of all, at most 100")
    max_grad_norm: float = text(1.0, "gradients are scaled down to this norm; 0: never")
    mixed_precision: str | None = text(
        None, "no, bf16, fp16, or auto: bf16 where it is fast; default: what `accelerate launch` was told"
    )
    fast_fp32: str = text(
        "auto",
        "auto: float32 products and attention to short rows by what is fastest on this processor; no: torch's",
    )
    torch_compile: bool = text(False, "compile the model: pays on a GPU, not on a processor")
    gradient_checkpointing: bool = text(False, "compute activations twice instead of keeping them")
    label_smoothing_factor: float = text(0.0, "share of the target that is spread over all classes")
    ema_decay: float = text(0.0, "keep a moving average of the weights and evaluate and save it; 0: no")
    logging_steps: int = text(50, "steps between two lines")
    eval_steps: int = text(250, "steps between two evaluations")
    save_steps: int = text(250, "steps between two checkpoints")
    save_total_limit: int = text(2, "how many checkpoints are kept, at least 2")
    load_best_model_at_end: bool = text(True, "the model folder gets the weights of the best evaluation, not the last")
    report_to: str = text("none", "besides the files: tensorboard, wandb, trackio, or several with commas")
    resume_from_checkpoint: str = text(
        "auto", "auto: go on where this run folder stopped; no: start over; or a folder"
    )
    ddp_timeout: int = text(1800, "seconds after which those who wait for another process give up")
    dry_run: bool = text(False, "build everything, print the plan and its cost, run one step, write nothing")
    list: bool = text(False, "list the recipes and the tasks")


@dataclass
class Arguments:
    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    recipe: str | None = None
    flags: list[str] = field(default_factory=list)  # the words behind the recipe

    def as_dict(self) -> dict[str, Any]:
        """Every flag with the value it came to: what a run folder holds, and a recipe that gives the same run."""
        groups = (self.model, self.data, self.training)
        flags = {key: value for group in groups for key, value in dataclasses.asdict(group).items()}
        flags["config"] = options_of("config", self.model.config) or None
        return {key: value for key, value in flags.items() if key not in ("list", "dry_run", "verify_data")}

    def differing(self) -> dict[str, Any]:
        """The recipe that gives this run, as it can be shown to anyone: the flags that are not at their defaults, and
        of files their names alone."""
        defaults = {name: item.default for name, item in known_flags().items()}
        return {
            key: without_folders(value) if isinstance(value, str) else value
            for key, value in self.as_dict().items()
            if value != defaults[key] and key not in ABOUT_HERE
        }

    def without_folders(self, text: str) -> str:
        """A text in which the files of this run have their names alone."""
        for value in self.as_dict().values():
            if isinstance(value, str) and without_folders(value) != value:
                whole = Path(value).expanduser()
                for form in (whole.resolve(), whole, Path(value)):
                    text = text.replace(f"{form.parent}/", "")
        return text

    def command(self, world: int) -> str:
        """What was typed, without what is true on this machine only."""
        several = ["--num_processes", str(world)] if world > 1 else []
        kept, skip = [], False
        for word in self.flags:
            name, _, value = word.partition("=")
            if word.startswith("--"):
                skip = name[2:].replace("-", "_") in ABOUT_HERE
                word = f"{name}={without_folders(value)}" if value else word
            if not skip:
                kept.append(without_folders(word))
        recipe = [without_folders(self.recipe)] if self.recipe else []
        return shlex.join(["accelerate", "launch", *several, "scripts/train.py", *recipe, *kept])


# Where a run lies and how it is watched: of no use elsewhere, and nobody's business.
ABOUT_HERE = frozenset({"output_dir", "resume_from_checkpoint", "report_to", "dry_run", "verify_data", "list"})


def without_folders(word: str) -> str:
    """The name of a file whose path leads through someone's home."""
    return Path(word).name if word.startswith(("/", "~", "..")) else word


class Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number: 1.1 of the standard, which PyYAML keeps to, wants 1.0e-3."""


# and in which only true and false are truth values: "no" is a word, as in `mixed_precision: no`
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:bool"]
    for first, found in Loader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF"))
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is no YAML: {' '.join(str(error).split())}") from error


def options_of(field: str, text: str | None) -> dict[str, Any]:
    """The options in a flag that holds YAML."""
    content = read_yaml(text, f"{field}={text!r}") if text else {}
    if not isinstance(content, dict):
        raise ValueError(f"{field}={text!r} must be a mapping of names to values, as YAML: 'name: value'")
    return content


# ---------------------------------------------------------------------------------------------------------------------
# The other scripts


def script_parser(doc: str, usage: str, more: str = "") -> argparse.ArgumentParser:
    """Of a script whose docstring says what it does."""
    summary, _, rest = doc.partition("\n")
    return argparse.ArgumentParser(
        description=summary,
        epilog=rest + more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage=f"python scripts/{usage}",
    )


def parse_words(parser: argparse.ArgumentParser, argv: list[str], known: Iterable[str]) -> argparse.Namespace:
    """Words and flags in any order; a flag that there is not is answered with the nearest."""
    given, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        names = [f"--{name}" for name in (*known, "help")]
        raise ValueError(f"there is no flag {unknown[0]}{nearest(unknown[0].partition('=')[0], names)}")
    return given


# ---------------------------------------------------------------------------------------------------------------------
# The flags of a run

GROUPS = (ModelArguments, DataArguments, TrainingArguments)

# From the lowest value to the highest.
RANGES = {
    **dict.fromkeys(("vocab_size", "max_seq_length", "eval_stride", "max_steps"), (1, math.inf)),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), (1, math.inf)),
    **dict.fromkeys(("gradient_accumulation_steps", "early_stopping_patience"), (1, math.inf)),
    **dict.fromkeys(("max_target_length", "num_beams", "mean_noise_span_length"), (1, math.inf)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), (1, math.inf)),
    **dict.fromkeys(("max_train_samples", "max_eval_samples", "max_train_tokens"), (1, math.inf)),
    **dict.fromkeys(("seed", "warmup_steps", "dataloader_num_workers", "shift", "rand_augment"), (0, math.inf)),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "max_minutes"), (0, math.inf)),
    **dict.fromkeys(("mixup_alpha", "cutmix_alpha"), (0, math.inf)),
    **dict.fromkeys(("horizontal_flip", "rand_augment_magnitude", "random_erasing", "random_resized_crop"), (0, 1)),
    **dict.fromkeys(("label_smoothing_factor", "ema_decay", "lora_dropout"), (0, 1)),
    **{"lora_rank": (1, math.inf), "lora_alpha": (0, math.inf)},
    "validation_split_percentage": (0, 100),
    "ddp_timeout": (1, math.inf),
    "save_total_limit": (2, math.inf),  # the newest may be the one that is being written
}


def known_flags() -> dict[str, dataclasses.Field]:
    return {item.name: item for group in GROUPS for item in dataclasses.fields(group)}


def read_recipe(path: str) -> dict[str, Any]:
    """The keys of a recipe, each of them a flag."""
    file = Path(path)
    if not file.is_file():
        recipes = sorted(str(found) for found in Path("recipes").rglob("*.yaml"))
        raise ValueError(f"no recipe {path!r}{nearest(path, recipes)}; there are {', '.join(recipes) or 'none here'}")
    content = read_yaml(file.read_text(encoding="utf-8"), path) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a recipe is a mapping of flags to values, got {type(content).__name__}")
    for key in content:
        if key not in known_flags():
            raise ValueError(f"{path}: there is no flag {key!r}{nearest(key, known_flags())}")
    return content


def flag_parser() -> argparse.ArgumentParser:
    """A flag for each field, with hyphens too. A truth value may stand alone, and what is true by itself has a flag
    with `no_`: as transformers' own parser has it, which takes a second to import."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        usage="train.py [recipe.yaml] [--flag value ...]",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for group in GROUPS:
        section = parser.add_argument_group(group.__name__.removesuffix("Arguments").lower())
        for item in dataclasses.fields(group):
            names = dict.fromkeys((f"--{item.name}", f"--{item.name.replace('_', '-')}"))
            kind = next(part for part in getattr(item.type, "__args__", (item.type,)) if part is not type(None))
            alone = {"nargs": "?", "const": True} if kind is bool else {}
            convert = truth if kind is bool else kind
            section.add_argument(*names, type=convert, default=item.default, help=item.metadata["help"], **alone)
            if item.default is True:
                turned = [name.replace("--", "--no_", 1) for name in names]
                section.add_argument(*turned, dest=item.name, action="store_false", default=True, help="the opposite")
    return parser


TRUTHS = {
    **dict.fromkeys(("true", "yes", "t", "y", "1"), True),
    **dict.fromkeys(("false", "no", "f", "n", "0"), False),
}


def truth(word: str) -> bool:
    if word.lower() not in TRUTHS:
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return TRUTHS[word.lower()]


def parse(argv: list[str] | None = None) -> Arguments:
    """The arguments of a run from a command line: an optional recipe, then flags."""
    argv = list(sys.argv[1:] if argv is None else argv)
    recipe = argv.pop(0) if argv and not argv[0].startswith("-") else None
    parser = flag_parser()
    flags = [word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--")]
    switches = {f"no_{name}" for name, item in known_flags().items() if item.default is True}
    allowed = {*known_flags(), *switches, "help"}
    for flag in flags:
        if flag not in allowed:
            raise ValueError(f"there is no flag --{flag}{nearest(flag, allowed)}")
    content = read_recipe(recipe) if recipe else {}
    parser.set_defaults(**{key: as_flag(key, value) for key, value in content.items()})
    given, rest = parser.parse_known_args(argv)
    if rest:
        raise ValueError(
            f"{' '.join(rest)!r} belongs to no flag; a recipe comes first: train.py recipe.yaml --flag value"
        )
    model, data, training = (
        group(**{item.name: getattr(given, item.name) for item in dataclasses.fields(group)}) for group in GROUPS
    )
    if training.warmup_steps is None:
        training.warmup_steps = min(100, training.max_steps // 10)
    training.output_dir = training.output_dir or f"runs/{Path(recipe).stem if recipe else 'run'}"
    arguments = Arguments(model, data, training, recipe, argv)
    check_ranges(arguments.as_dict())
    check_lora(arguments.as_dict())
    return arguments


def check_ranges(values: dict[str, Any]) -> None:
    for name, (low, high) in RANGES.items():
        value = values[name]
        if value is None and known_flags()[name].default is not None:
            raise ValueError(f"{name}={value!r} is not allowed: leave it out for {known_flags()[name].default!r}")
        if value is not None and not low <= value <= high:
            most = "" if high == math.inf else f" and at most {high}"
            raise ValueError(f"{name}={value!r} is not allowed: it must be at least {low}{most}")


def check_lora(values: dict[str, Any]) -> None:
    """Options of LoRA without it, and LoRA beside what it excludes."""
    rank, source, frozen = (values[name] for name in ("lora_rank", "model_name_or_path", "freeze"))
    if rank is None:
        for name in ("lora_alpha", "lora_dropout", "lora_target_modules"):
            if values[name] != known_flags()[name].default:
                raise ValueError(f"{name}={values[name]!r} is not allowed without lora_rank, such as 8")
        return
    if source is None:
        raise ValueError(f"lora_rank={rank} needs model_name_or_path: LoRA goes on from a model that was trained")
    if frozen is not None:
        raise ValueError(
            f"freeze={frozen!r} is not allowed with lora_rank={rank}, which freezes the whole saved model; "
            "lora_target_modules says what learns beside it"
        )


def as_flag(key: str, value: Any) -> Any:
    """YAML reads 1e-3 as a word and `config` as a mapping; a flag wants a number and a line of text."""
    kind = known_flags()[key].type
    if key == "config":
        return (
            yaml.safe_dump(value, default_flow_style=True, width=10**6).strip() if isinstance(value, dict) else value
        )
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = [part for part in (bool, int, float, str) if part is kind or part in getattr(kind, "__args__", ())]
    fits = isinstance(value, tuple(expected)) and not (isinstance(value, bool) and bool not in expected)
    if value is not None and expected and not fits:
        names = " or ".join(part.__name__ for part in expected)
        raise ValueError(f"{key}={value!r} in the recipe is a {type(value).__name__}, and the flag wants {names}")
    return value
