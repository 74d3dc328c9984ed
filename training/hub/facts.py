"""What a card says about a model, read from the files of its run; nothing else is believed, and nothing is made up.

    facts = read(Path("runs/bert"))                              # a run folder, or a model folder alone
    facts = read(Path("runs/bert"), [Path("runs/bert-seed-1")])  # with the spread over runs of the same recipe

A run folder has `summary.json` and `run.yaml` beside `model/`; a card's own folder in `hub_cards/` has them beside
`config.json`. A model folder that no run left has none: there is less to say then, and all of it still holds.
"""

import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from triune.configuration import CONFIGS, TriuneConfig, stack_reading
from triune.configuration.configuration_triune import FamilyConfig, nearest
from triune.training.arguments import ABOUT_HERE, known_flags, read_yaml, without_folders
from triune.training.folder import SUMMARY
from triune.training.state import differences


RUN, RECIPE, CONFIG, MODEL = "run.yaml", "recipe.yaml", "config.json", "model"


class Spread(NamedTuple):
    mean: float
    deviation: float


class Seeds(NamedTuple):
    """What the recipe reaches over several runs that differ in nothing but their seed; where a seed has parts, such as
    folds, in their mean."""

    count: int
    parts: int
    metrics: dict[str, Spread]


@dataclass(frozen=True)
class Facts:
    title: str  # of a model that has no name on the Hub
    head: str
    config: FamilyConfig
    parameters: int | None
    settings: dict[str, Any] = field(default_factory=dict)  # the flags that differ from their defaults
    summary: dict[str, Any] = field(default_factory=dict)  # empty where no run is known
    seeds: Seeds | None = None

    @property
    def auto_class(self) -> str:
        return self.config.heads[self.head].auto_class

    @property
    def pipeline_tag(self) -> str | None:
        return self.config.heads[self.head].pipeline_tag or PIPELINES.get(self.head)

    @property
    def task(self) -> str:
        """What it was trained to do; empty where it is not known."""
        return str(self.summary.get("task") or self.settings.get("task") or "")

    @property
    def task_type(self) -> str | None:
        """What the Hub calls what was measured, whether or not a pipeline does it."""
        return self.pipeline_tag or MEASURED_AS.get(self.head)

    @property
    def texts(self) -> TriuneConfig | None:
        """The stack that reads texts, if there is one."""
        return stack_reading(self.config, "tokens")

    @property
    def images(self) -> TriuneConfig | None:
        """The stack that reads images, if there is one."""
        return stack_reading(self.config, "patches")

    @property
    def reads_text(self) -> bool:
        return self.texts is not None

    @property
    def reads_images(self) -> bool:
        return self.images is not None

    @property
    def processor(self) -> str:
        """The auto class of what turns inputs into tensors."""
        if self.reads_text and self.reads_images:
            return "AutoProcessor"
        return "AutoTokenizer" if self.reads_text else "AutoImageProcessor"

    @property
    def classes(self) -> list[str]:
        """The names, of a model that has classes."""
        names = self.config.id2label or {}
        return [str(names[number]) for number in sorted(names)] if "Classification" in self.head else []

    @property
    def metrics(self) -> dict[str, float]:
        """Those of the last evaluation that are numbers."""
        return numbers(self.summary.get("metrics", {}))

    @property
    def headline(self) -> str | None:
        """The metric that is quoted."""
        wanted = (self.summary.get("headline"), "accuracy", *self.metrics)
        return next((name for name in wanted if name in self.metrics), None)

    @property
    def examples(self) -> list[dict[str, Any]]:
        """The recorded ones that have all that belongs to an answer of this head."""
        needed = ANSWERS.get(self.head, ("no head of a task",))
        return [one for one in self.summary.get("examples", []) if all(one.get(name) for name in needed)]

    @property
    def data(self) -> str:
        """The name of the data; empty where it is not known."""
        return str(self.summary.get("data", {}).get("name") or "")

    @property
    def dataset(self) -> str | None:
        """The data set of the Hub that it was trained on, if it was one."""
        return on_the_hub(self.settings.get("dataset_name"))

    @property
    def base_model(self) -> str | None:
        """The model of the Hub that training went on from, if there was one."""
        return on_the_hub(self.settings.get("model_name_or_path"))


# What an answer consists of.
ANSWERS = {
    "TriuneForMaskedLM": ("text", "masks"),
    "TriuneForPreTraining": ("text", "masks"),
    "TriuneForCausalLM": ("text", "continuation"),
    "TriuneForConditionalGeneration": ("text",),  # a model may write nothing
    "TriuneForImageClassification": ("image", "top"),
    "TriuneForSequenceClassification": ("text", "top"),
    "TriuneForMaskedImageModeling": ("image", "psnr"),
    "TriuneCLIPModel": ("image", "top"),
}

# A pipeline that serves a head through another auto class: of the same folder it loads TriuneForMaskedLM.
PIPELINES = {"TriuneForPreTraining": "fill-mask"}
# Tasks of the Hub without a pipeline: of texts from texts it lists this one, of missing parts of images that one.
MEASURED_AS = {
    "TriuneForConditionalGeneration": "text2text-generation",
    "TriuneForMaskedImageModeling": "image-to-image",
}


class Bundled(NamedTuple):
    """What is known of the data that comes with Triune."""

    language: str | None
    says: str
    only: str  # what a model has seen that was trained on it
    license: str


RANDOM = "strings of 2 to 12 small letters and digits, drawn at random"
OURS = "made by Triune's own code, under Apache-2.0"
BUNDLED = {
    "pydocs": Bundled(
        language="en",
        says="the reference topics of Python's documentation and the docstrings of its standard library",
        only="documentation of Python, in English",
        license="Python's own licence (PSF-2.0)",
    ),
    "digits": Bundled(
        language=None,
        says="1,797 handwritten digits from the UCI repository, by way of scikit-learn",
        only="single handwritten digits, light on dark, centred, 8 x 8 pixels large",
        license="CC BY 4.0",
    ),
    "letters": Bundled(
        language=None,
        says="capital letters, drawn in the fonts that come with matplotlib",
        only="single printed capitals from A to Z, light on dark, 32 x 32 pixels large",
        license="the licences of the fonts that they are drawn in (DejaVu, STIX, BaKoMa)",
    ),
    "names": Bundled(
        language="en",
        says="docstrings of Python's standard library, and the names of the functions that they describe",
        only="docstrings of Python's standard library, in English, and names of functions",
        license="Python's own licence (PSF-2.0)",
    ),
    "copy": Bundled(None, "strings drawn at random, to be written once more", RANDOM, OURS),
    "reverse": Bundled(None, "strings drawn at random, to be written backwards", RANDOM, OURS),
    "photos": Bundled(
        language=None,
        says="crops of the two photographs that come with scikit-learn, a pagoda in China and a dahlia",
        only="crops of two photographs, of a pagoda and of a dahlia, at half their size",
        license="CC BY 2.0, of the photographers whom scikit-learn names",
    ),
    "shapes": Bundled(
        language="en",
        says="drawn scenes of one or two things, each a form in a colour, with captions",
        only="drawings of five forms in eight colours, 32 x 32 pixels large, and the captions that describe them",
        license=OURS,
    ),
}


def is_repository(name: str) -> bool:
    """Whether a repository of the Hub may have this name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def on_the_hub(name: str | None) -> str | None:
    """The name, if it is that of a repository in somebody's account; what may be a file or folder here is none."""
    own = name is None or "/" not in name or name.startswith("runs/") or not is_repository(name) or Path(name).exists()
    return None if own else name


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if is_number(value)}


# ---------------------------------------------------------------------------------------------------------------------
# What files may hold


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_metrics(value: Any) -> bool:
    """None stands for what is not finite."""
    return isinstance(value, dict) and all(one is None or is_number(one) for one in value.values())


def is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_text, value.values()))


def is_scores(value: Any, name: str) -> bool:
    """[{"label": "yes", "score": 0.9}, ...]"""
    return isinstance(value, list) and all(
        isinstance(one, dict) and is_text(one.get(name)) and is_number(one.get("score")) for one in value
    )


SAMPLE, PICTURE = (re.compile(rf"{folder}[\w-][\w.-]*", re.ASCII) for folder in ("samples/", ""))


def is_pictures(value: Any) -> bool:
    return is_texts(value) and all(map(PICTURE.fullmatch, value))


def is_example(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    words = ("text", "label", "filled", "continuation", "written")
    masks = value.get("masks", [])
    return (
        all(is_text(value.get(name, "")) for name in words)
        and bool(SAMPLE.fullmatch(str(value.get("image", "samples/0.png"))))
        and is_scores(value.get("top", []), "label")
        and is_scores([value["verdict"]] if "verdict" in value else [], "label")
        and is_number(value.get("psnr", 0))
        and isinstance(masks, list)
        and all(is_scores(one, "token_str") for one in masks)
    )


def is_data(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    lines = value.get("description", [])
    return (
        is_text(value.get("name", "")) and is_text(value.get("fingerprint", "")) and isinstance(lines, list)
    ) and all(map(is_text, lines))


class Field(NamedTuple):
    allowed: str
    accepts: Callable[[Any], bool]


SUMMARY_FIELDS = {
    **dict.fromkeys(("task", "recipe", "command", "finished", "headline"), Field("a text", is_text)),
    **dict.fromkeys(("reason", "unit", "hardware", "precision"), Field("a text", is_text)),
    **dict.fromkeys(("metrics", "first"), Field("a mapping of names to numbers", is_metrics)),
    **dict.fromkeys(("step", "weights_of_step", "units", "replaced", "skipped"), Field("a count", is_count)),
    **dict.fromkeys(("parameters", "threads", "world"), Field("a count", is_count)),
    **dict.fromkeys(("seconds", "flops"), Field("a number", is_number)),
    "pictures": Field("a mapping of plain names of files to captions", is_pictures),
    "versions": Field("a mapping of names to texts", is_texts),
    "baselines": Field(
        "a mapping of metrics to mappings of names to numbers",
        lambda value: isinstance(value, dict) and all(map(is_metrics, value.values())),
    ),
    "data": Field("a mapping with name, fingerprint and description, a list of lines", is_data),
    "examples": Field(
        "a list of answers as scripts/predict.py gives them, of images in samples/",
        lambda value: isinstance(value, list) and all(map(is_example, value)),
    ),
}


def checked(summary: Any, source: str) -> dict[str, Any]:
    """A summary whose fields are what they are meant to be; those that are null are left out."""
    if not isinstance(summary, dict):
        raise ValueError(f"{source} must hold a mapping, and holds a {type(summary).__name__}")
    found = {name: value for name, value in summary.items() if value is not None}
    for name, value in found.items():
        known = SUMMARY_FIELDS.get(name)
        if known is not None and not known.accepts(value):
            raise ValueError(f"{source}: {name}={shortened(value)} is not allowed: it must be {known.allowed}")
    return found


def shortened(value: Any, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of UTF-8 too
        raise ValueError(f"{path} is not JSON: {error}") from error


def read_settings(path: Path) -> dict[str, Any]:
    """The flags of a run that differ from their defaults, of files their names alone: what may be shown to anyone."""
    content = read_yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping of flags to values, and holds a {type(content).__name__}")
    flags = known_flags()
    for name in content:
        if name not in flags:
            raise ValueError(f"{path}: there is no flag {name!r}{nearest(name, flags)}")
    return {
        name: without_folders(value) if isinstance(value, str) else value
        for name, value in content.items()
        if value != flags[name].default and name not in ABOUT_HERE
    }


def read_config(path: Path) -> tuple[str, FamilyConfig]:
    """The head and its configuration."""
    content = read_json(path)
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind not in CONFIGS:
        raise ValueError(
            f"{path} describes no Triune model: its model_type must be one of {', '.join(CONFIGS)}, and is {kind!r}"
        )
    try:
        config = CONFIGS[kind].from_dict(content)
    except (TypeError, AttributeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"{path} describes no Triune model: {' '.join(str(error).split())}") from error
    head = next(iter(config.architectures or ()), None)
    if head not in config.heads:
        raise ValueError(f"{path}: architectures={config.architectures!r} must name one of {', '.join(config.heads)}")
    return head, config


def count_parameters(folder: Path) -> int | None:
    """From the heads of the files of weights, which are not read; None where there are none."""
    total = 0
    for file in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as weights:
                total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())
        except SafetensorError as error:
            raise ValueError(f"{file} is not safetensors: {error}") from error
    return total or None


def places(path: Path) -> tuple[Path, Path]:
    """The folder of the model and that of its run: the same one where a model lies alone."""
    if (path / MODEL / CONFIG).is_file():
        return path / MODEL, path
    if not (path / CONFIG).is_file():
        raise ValueError(f"{str(path)!r} holds no {CONFIG}: it is neither a model folder nor a run that is complete")
    run = path.resolve().parent
    own = path.resolve().name == MODEL and (run / SUMMARY).is_file() and not (path / SUMMARY).is_file()
    return path, run if own else path


def of(path: Path, summary: dict[str, Any]) -> Facts:
    """Facts of a run whose summary is not written yet."""
    model, run = places(path)
    head, config = read_config(model / CONFIG)
    found = checked(summary, str(run / SUMMARY))
    recorded = next((file for file in (run / RUN, model / RECIPE) if file.is_file()), None)
    named = run if run != model else model.resolve()
    return Facts(
        title=named.resolve().name,
        head=head,
        config=config,
        parameters=found.get("parameters") or count_parameters(model),
        settings=read_settings(recorded) if recorded else {},
        summary=found,
    )


def read(path: Path, seeds: Sequence[Path] = ()) -> Facts:
    """Facts of a run folder or a model folder; `seeds`: other runs of the same recipe."""
    path = Path(path)
    file = places(path)[1] / SUMMARY
    found = of(path, read_json(file) if file.is_file() else {})
    if not seeds:
        return found
    runs = [(path, found), *((other, read(other)) for other in map(Path, seeds))]
    refuse_others(runs)
    measured = ((run.settings.get("seed", 0), run.metrics) for _, run in runs)
    return replace(found, seeds=over_seeds(measured))


# ---------------------------------------------------------------------------------------------------------------------
# Several runs


def refuse_others(runs: Sequence[tuple[Path, Facts]]) -> None:
    """All of them must be the same but for the seed, and no seed there twice."""
    (first, one), seen = runs[0], {}
    for path, run in runs:
        seed = run.settings.get("seed", 0)
        other = differences(comparable(one), comparable(run), frozenset())
        if other:
            raise ValueError(f"seeds={str(path)!r} is no run of the same recipe as {first}: {'; '.join(other)}")
        if seed in seen:
            raise ValueError(f"seeds={str(path)!r} has seed {seed}, as {seen[seed]} has")
        if not run.metrics:
            raise ValueError(f"seeds={str(path)!r} has no evaluation: there is no {SUMMARY} in it")
        seen[seed] = path


def comparable(run: Facts) -> dict[str, Any]:
    settings = {name: value for name, value in run.settings.items() if name != "seed"}
    return {**settings, "data": run.summary.get("data", {}).get("fingerprint")}


def over_seeds(runs: Iterable[tuple[int, Mapping[str, float]]]) -> Seeds:
    """(seed, metrics) of each run: the mean over all, and the spread (standard deviation) over the means of seeds."""
    by_seed: dict[int, list[Mapping[str, float]]] = {}
    for seed, metrics in runs:
        by_seed.setdefault(seed, []).append(metrics)
    if len(by_seed) < 2:
        raise ValueError(f"a spread is over two seeds or more, got {len(by_seed)}")
    everywhere = set.intersection(*(set(metrics) for parts in by_seed.values() for metrics in parts))
    spreads = {}
    for name in sorted(everywhere):
        means = [statistics.fmean(part[name] for part in parts) for parts in by_seed.values()]
        spreads[name] = Spread(statistics.fmean(means), statistics.stdev(means))
    return Seeds(len(by_seed), max(map(len, by_seed.values())), spreads)
