"""What of a model folder goes to the Hub: an allow-list by name, and what a complete folder must hold.

    folder = model_folder(Path("runs/bert"))
    travelling(folder)      # {"config.json": ..., "model.safetensors": ..., ...}: these, and nothing else
    left_behind(folder)     # [".env", "optimizer.safetensors", ...]: what lies there and stays
    lacking(folder)         # ["tokenizer.json is missing: ...", ...]: a sentence for each thing that has to be mended

Notable: a file is named here or it stays at home, whatever it is: pickles, keys, notebooks and hidden files need no
rule. Links stay too, wherever they lead: behind an innocent name could be any file. A file that travels is what its
name says: a PNG, safetensors, JSON, code that parses, text.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import safetensors
import yaml
from huggingface_hub.errors import StrictDataclassError

from triune.configuration import CONFIGS, TriuneConfig, stack_reading
from triune.configuration.configuration_triune import FamilyConfig, nearest
from triune.configuration.export import source_files


CONFIG, CARD, LICENSE, RECIPE, GOLDEN = "config.json", "README.md", "LICENSE", "recipe.yaml", "golden.safetensors"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
TOKENIZER, TOKENIZER_CONFIG, IMAGE_PROCESSOR = "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # of several: an image processor stands in it, a tokenizer beside it
FIXED = frozenset(
    {
        *(CONFIG, "generation_config.json", CARD, LICENSE, RECIPE, GOLDEN, IMAGE_PROCESSOR, PROCESSOR),
        *(TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json"),
        *("vocab.txt", "vocab.json", "merges.txt", "chat_template.jinja"),
    }
)
PICTURES = ("figures", "samples")  # folders of PNGs

IMPORT = re.compile(r"^\s*from \.(\w+) import", re.MULTILINE)  # as modeling is written, and the loader follows
PATH_KEY = re.compile(r"(_file|_path|_dir|^path)$")  # of a JSON file: vocab_file, name_or_path, ...
ROOT = Path(__file__).resolve().parents[2]

Content = Path | bytes


def model_folder(path) -> Path:
    """The model folder that is meant: this one, or the `model` of a run folder."""
    folder = Path(path).expanduser()
    for place in (folder, folder / "model"):
        if (place / CONFIG).is_file():
            return place
    if folder.is_dir():
        raise ValueError(f"{str(path)!r} holds no {CONFIG}: a finished run leaves its model in runs/<name>/model")
    others = [place.name for place in folder.parent.iterdir()] if folder.parent.is_dir() else []
    raise ValueError(f"there is no folder {str(path)!r}{nearest(folder.name, others)}")


# ---------------------------------------------------------------------------------------------------------------------
# What travels


def travelling(folder: Path) -> dict[str, Path]:
    """Path in the repository -> file, in the order of the paths."""
    names = allowed(folder)
    return {name: folder / name for name in names if (folder / name).is_file() and not is_link(folder, name)}


def allowed(folder: Path) -> list[str]:
    return sorted({*FIXED, *weight_files(folder), *code_files(folder), *pictures(folder)})


def is_link(folder: Path, name: str) -> bool:
    """The file, or a folder on the way to it."""
    return (folder / name).resolve() != folder.resolve() / name


def weight_files(folder: Path) -> list[str]:
    """One file, or an index and the shards that it names: transformers looks in this order too."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    return [INDEX, *(name for name in set(weight_map(folder).values()) if SHARD.fullmatch(name))]


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor -> shard."""
    found = read_object(folder / INDEX).get("weight_map")
    return {str(tensor): str(shard) for tensor, shard in found.items()} if isinstance(found, dict) else {}


def without_weights(folder: Path) -> bool:
    return not any((folder / name).is_file() for name in (WEIGHTS, INDEX))


def code_files(folder: Path) -> list[str]:
    """The files that the auto classes load, and those that they import in turn."""
    found, waiting = set(), sorted(entry_modules(folder))
    while waiting:
        name = f"{waiting.pop()}.py"
        if name not in found:
            found.add(name)
            waiting += imported(folder / name)
    return sorted(found)


def entry_modules(folder: Path) -> set[str]:
    """The modules named by the `auto_map` of this kind of model, and by the folder's own."""
    found = read_object(folder / CONFIG)
    named = found.get("auto_map")
    values = [*kind_of(found).auto_classes.values(), *(named.values() if isinstance(named, dict) else ())]
    return {module for module in (str(value).rpartition(".")[0] for value in values) if module.isidentifier()}


def kind_of(found: dict[str, Any]) -> type[FamilyConfig]:
    """The class of a configuration; that of one stack, where a file does not say."""
    return CONFIGS.get(str(found.get("model_type")), TriuneConfig)


def imported(file: Path) -> list[str]:
    return IMPORT.findall(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else []


def pictures(folder: Path) -> list[str]:
    found = [file for name in PICTURES for file in (folder / name).glob("*.png")]
    return [file.relative_to(folder).as_posix() for file in found if is_plain(file.name)]


def is_plain(name: str) -> bool:
    return name.isprintable() and not name.startswith(".")


def ours(path: str) -> bool:
    """Whether a file of a repository is one that publishing puts there: what it may take away again."""
    place = PurePosixPath(path)
    if len(place.parts) == 2:
        return place.parts[0] in PICTURES and place.suffix == ".png" and is_plain(place.name)
    code = {file.name for file in source_files()}
    return path in FIXED or path in (WEIGHTS, INDEX) or path in code or bool(SHARD.fullmatch(path))


def left_behind(folder: Path) -> list[str]:
    """A folder of which nothing travels is one entry, with a slash at its end."""
    kept = travelling(folder)
    opened = {name.partition("/")[0] for name in kept if "/" in name}
    found = []
    for place in folder.iterdir():
        inside = place.iterdir() if place.name in opened else [place]
        found += [one.relative_to(folder).as_posix() + "/" * is_folder(one) for one in inside]
    return sorted(name for name in found if name not in kept)


def is_folder(place: Path) -> bool:
    return place.is_dir() and not place.is_symlink()


# ---------------------------------------------------------------------------------------------------------------------
# The licence


def licence() -> bytes:
    """The family's own: Apache 2.0, from the checkout or from the installed package."""
    if (ROOT / LICENSE).is_file():
        return (ROOT / LICENSE).read_bytes()
    try:
        text = distribution("triune").read_text(f"licenses/{LICENSE}")
    except PackageNotFoundError:
        text = None
    if text is None:
        raise FileNotFoundError(f"{LICENSE} lies neither in {ROOT} nor in the installed package: put one there")
    return text.encode()


def write_licence(folder: Path) -> Path:
    """Another licence that lies there already stays."""
    target = folder / LICENSE
    if not target.exists():
        target.write_bytes(licence())
        target.chmod(0o644)
    return target


# ---------------------------------------------------------------------------------------------------------------------
# What is lacking


def lacking(folder: Path, have: Mapping[str, Content] | None = None) -> list[str]:
    """What has to be mended before the folder can be published. `have`: the files that are to stand in the repository,
    where they are not just those of the folder; the card is then the caller's."""
    wanted = [CARD] if have is None else []
    have = travelling(folder) if have is None else have
    return [
        *linked(folder),
        *lacking_weights(folder, have),
        *lacking_config(folder),
        *lacking_code(folder, have),
        *lacking_processors(folder, have),
        *(f"{name} is missing: {PAPERS[name]}" for name in (LICENSE, GOLDEN, *wanted) if name not in have),
        *broken(have),
    ]


PAPERS = {
    LICENSE: "put the text of the licence there",
    GOLDEN: "triune.training.hub.golden.write(folder) computes it",
    CARD: "scripts/publish.py writes it",
}
SAVE = "save the model again with save_pretrained"


def linked(folder: Path) -> Iterator[str]:
    for name in allowed(folder):
        if (folder / name).is_symlink() or ((folder / name).exists() and is_link(folder, name)):
            yield f"{name} is a link, and links do not travel: put the file itself there"


def lacking_weights(folder: Path, have: Mapping[str, Content]) -> Iterator[str]:
    if WEIGHTS in have:
        return
    if INDEX not in have:
        yield f"there are no weights ({WEIGHTS}; .bin and .pt are never published): {SAVE}"
        return
    shards: dict[str, set[str]] = {}
    for tensor, shard in weight_map(folder).items():
        shards.setdefault(shard, set()).add(tensor)
    if not shards:
        yield f"{INDEX} names no shard: {SAVE}"
    for shard, tensors in sorted(shards.items()):
        if not SHARD.fullmatch(shard):
            yield f"{INDEX} names {shard!r}, which is no shard (model-00001-of-00002.safetensors): {SAVE}"
        elif shard not in have:
            yield f"{shard} is missing, and {INDEX} names it: {SAVE}"
        elif not broken({shard: have[shard]}) and (lost := tensors - tensor_names(have[shard])):
            yield f"{shard} does not hold {min(lost)}, which {INDEX} promises: {SAVE}"


def tensor_names(file: Content) -> set[str]:
    """Reads the header, and compares it with the length of the file."""
    if isinstance(file, bytes):
        return {name for name, _ in safetensors.deserialize(file)}
    with safetensors.safe_open(file, "pt") as tensors:
        return set(tensors.keys())


REFUSED = (ValueError, TypeError, AttributeError, StrictDataclassError)  # what a configuration says no with


def lacking_config(folder: Path) -> Iterator[str]:
    """model_type, one head, the whole auto_map of that kind of model, values that are allowed."""
    found = read_object(folder / CONFIG)
    kind = kind_of(found)
    try:
        kind.from_dict(dict(found))
    except REFUSED as error:
        yield f"{CONFIG} is refused: {' '.join(str(error).split())}"
        return
    if found.get("model_type") not in CONFIGS:
        yield f"{CONFIG} has no model_type, which is one of {', '.join(CONFIGS)}: {SAVE}"
    named = found.get("architectures")
    if not (isinstance(named, list) and len(named) == 1 and named[0] in kind.heads):
        yield f"{CONFIG} has architectures {named!r}, and not one of {', '.join(kind.heads)}: {SAVE}"
    auto_map, whole = found.get("auto_map") or {}, kind.auto_classes
    wrong = [key for key, value in whole.items() if auto_map.get(key) != value] if auto_map else ["every entry"]
    if wrong:
        yield f"auto_map in {CONFIG} lacks or changes {', '.join(wrong)}, so others would load other code: {SAVE}"


def lacking_code(folder: Path, have: Mapping[str, Content]) -> Iterator[str]:
    missing = [name for name in code_files(folder) if name not in have]
    if missing:
        yield f"code is missing ({', '.join(missing)}), without which nobody can load the weights: {SAVE}"


def lacking_processors(folder: Path, have: Mapping[str, Content]) -> Iterator[str]:
    """Of a backbone nothing is asked: what comes before it may be someone else's affair."""
    found = read_object(folder / CONFIG)
    try:
        config = kind_of(found).from_dict(dict(found))
    except REFUSED:  # `lacking_config` says what is wrong with it
        return
    saved_as = [config.heads[head] for head in found.get("architectures") or () if head in config.heads]
    if any(head.is_backbone for head in saved_as):
        return
    needed, what = NEEDED[tuple(embedding for embedding in ("tokens", "patches") if stack_reading(config, embedding))]
    missing = [name for name in needed if name not in have]
    if missing:
        yield f"{' and '.join(missing)} missing: save the {what} with {what}.save_pretrained(folder)"


NEEDED = {
    ("tokens",): ((TOKENIZER, TOKENIZER_CONFIG), "tokenizer"),
    ("patches",): ((IMAGE_PROCESSOR,), "image_processor"),
    ("tokens", "patches"): ((TOKENIZER, TOKENIZER_CONFIG, PROCESSOR), "processor"),
}


# ---------------------------------------------------------------------------------------------------------------------
# Files that are not what their names say


WRONG = (OSError, ValueError, SyntaxError, RecursionError, safetensors.SafetensorError, yaml.YAMLError)


def broken(files: Mapping[str, Content]) -> list[str]:
    found = []
    for name, file in files.items():
        try:
            CHECKS.get(PurePosixPath(name).suffix, check_text)(file)
        except WRONG as error:
            found.append(f"{name} {told(error)}")
    return found


def told(error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or first}"
    return first if type(error) is ValueError else f"is not what its name says: {first}"


def read(file: Content) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none, which `broken` tells of."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def check_png(file: Content) -> None:
    data = read(file)
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or not data.endswith(b"IEND\xaeB`\x82"):
        raise ValueError("is no PNG, or not a whole one, or more than one")


def check_json(file: Content) -> None:
    try:
        found = json.loads(read(file))
    except ValueError as error:
        raise ValueError(f"is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"holds a {type(found).__name__}, and no JSON object")
    for key, value in paths(found):
        if leads_out(value):
            raise ValueError(f"has {key}={value!r}, which leads out of the folder: name a file beside it, or none")


def paths(found: Any) -> Iterator[tuple[str, str]]:
    """Every value that is the name of a file by its key."""
    entries = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, value in entries:
        if isinstance(value, str) and PATH_KEY.search(str(key)):
            yield str(key), value
        elif not isinstance(value, str):
            yield from paths(value)


def leads_out(value: str) -> bool:
    """An absolute path, one through a parent, a hidden file."""
    places = (PurePosixPath(value), PureWindowsPath(value))
    return any(place.is_absolute() or place.drive or value[:1] == "~" for place in places) or any(
        part.startswith(".") for place in places for part in place.parts
    )


def check_code(file: Content) -> None:
    ast.parse(read(file))


def check_yaml(file: Content) -> None:
    if not isinstance(yaml.safe_load(read(file)), (dict, type(None))):
        raise ValueError("holds no settings (name: value)")


def check_text(file: Content) -> None:
    try:
        text = read(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: {error}") from error
    if "\0" in text:
        raise ValueError("is no text: it holds a NUL")


CHECKS: dict[str, Callable[[Content], Any]] = {
    ".png": check_png,
    ".safetensors": tensor_names,
    ".json": check_json,
    ".py": check_code,
    ".yaml": check_yaml,
}
