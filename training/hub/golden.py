"""Golden inputs and outputs: a small file that travels with a model, by which anyone sees that a copy is whole.

    golden.write(folder)                              # golden.safetensors, from what lies in the folder
    print(golden.snippet("user/bert", "v1", "AutoModelForMaskedLM"))     # what a downloader pastes
    golden.check("user/bert", "v1")                   # the same in a clean process, and more; ValueError if it differs

What it holds: `inputs.*` as the model takes them; `outputs.logits` (of a backbone: `outputs.last_hidden_state`) in
float32; `outputs.columns`, the entries of the last axis that are kept; `outputs.real`, where an output counts, which
is not at padding; for images `raw.images`, the picture before the processor. What else there is to say is JSON in the
header, the SHA-256 of the weights among it, under one name: safetensors writes several in an order that changes, and
the same model would be another file.

Notable: the inputs are fixed, so nothing of the training data travels: two sentences, the second one padded, or two
pairs where the model has segments; a drawn picture, neither square nor of the model's size; a target by a formula for
a decoder, and for MAE which patches are hidden. Computed as a downloader's `from_pretrained` does it, in the type of
number that the weights are saved in, by one thread.

Measured on the demonstration's models and on twelve layers as BERT has them, in parts of the largest output: 0.0 in a
clean process and with 1, 2 or 4 threads; with eager kernels, or on a processor held to AVX2, up to 1e-6 in float32 and
1.4e-2 in bfloat16.
"""

import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import get_token
from safetensors.torch import save
from transformers import AutoTokenizer

import triune.modeling as modeling
from triune.configuration import TriuneConfig, TriuneMAEConfig, TriuneSeq2SeqConfig, stack_reading
from triune.configuration.configuration_triune import FamilyConfig
from triune.training.durable import digest
from triune.training.hub.content import GOLDEN, TOKENIZER, Content, weight_files
from triune.training.hub.scan import redact
from triune.training.image_processor import load_processor, processed
from triune.training.prediction import load_config, load_weights
from triune.training.tokenizers import first_line


TEXTS = ("The quick brown fox jumps over the lazy dog.", "One two.")
LENGTH = 16  # tokens of a text, at most
MOST = 1 << 17  # numbers of the output that are kept, half a megabyte
TOLERANCE = {"float32": 1e-4, "float64": 1e-4}  # of the largest output; of other types, which round more:
COARSE = 0.05

Tensors = dict[str, torch.Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# Inputs


def text_inputs(folder: Path, config: TriuneConfig) -> tuple[Tensors, dict[str, Any]]:
    """Two rows of different lengths, or one where the tokenizer cannot pad; and how they were made."""
    length = min(LENGTH, config.max_position_embeddings)
    if not (folder / TOKENIZER).is_file():
        return numbers(length, config.vocab_size), {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises no other
        raise ValueError(f"the tokenizer in {folder} cannot be loaded: {first_line(error)}") from error
    texts = list(TEXTS if tokenizer.pad_token_id is not None else TEXTS[:1])
    how = {"padding": len(texts) > 1, "truncation": True, "max_length": length, "return_attention_mask": True}
    segments = config.embedding["type_vocab_size"] > 1
    how |= {"text_pair": [TEXTS[-1]] * len(texts), "return_token_type_ids": True} if segments else {}
    encoded = tokenizer(texts, return_tensors="pt", **how)
    highest = int(encoded["input_ids"].max())
    if highest >= config.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} is not this model's: it gives the id {highest}, and the model has "
            f"{config.vocab_size} (vocab_size)"
        )
    names = ("input_ids", "attention_mask", *(["token_type_ids"] if segments else []))
    return {f"inputs.{name}": encoded[name] for name in names}, {"texts": texts, "tokenizer": how}


def counted(rows: int, length: int, vocab_size: int) -> torch.Tensor:
    """Ids by a formula: (rows, length)."""
    return (torch.arange(rows * length) * 7 + 5).remainder(vocab_size).view(rows, length)


def numbers(length: int, vocab_size: int) -> Tensors:
    """Without a tokenizer: the second row half as long."""
    ids = counted(2, length, vocab_size)
    mask = torch.ones_like(ids)
    mask[1, (length + 1) // 2 :] = 0
    return {"inputs.input_ids": ids, "inputs.attention_mask": mask}


def image_inputs(folder: Path, config: TriuneConfig) -> tuple[Tensors, dict[str, Any]]:
    height, width = (side * config.embedding["patch_size"] for side in config.grid)
    channels, processor = config.embedding["num_channels"], load_processor(str(folder))
    if processor is None:
        return {"inputs.pixel_values": picture(channels, height, width)[None] / 127.5 - 1}, {}
    raw = picture(channels, height + height // 4 + 3, width + width // 2 + 5)
    return {"inputs.pixel_values": processed(processor, [raw]), "raw.images": raw[None]}, {}


def picture(channels: int, height: int, width: int) -> torch.Tensor:
    """A disc on two gradients, in integers: (channels, height, width), uint8."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    middle = (2 * rows - height) ** 2 * 4 + (2 * columns - width) ** 2 * 4 < min(height, width) ** 2
    drawn = (255 * columns // width + 0 * rows, 255 * rows // height + 0 * columns, 255 * middle)
    return torch.stack([torch.where(middle, 255 - drawn[one % 3], drawn[one % 3]) for one in range(channels)]).byte()


def target_inputs(config: TriuneSeq2SeqConfig, tensors: Tensors) -> Tensors:
    """What a decoder has written so far, for each text; behind the token that it begins with, where there is one."""
    length = min(LENGTH, config.decoder.max_position_embeddings)
    ids = counted(len(tensors["inputs.input_ids"]), length, config.decoder.vocab_size)
    if config.decoder_start_token_id is not None:
        ids[:, 0] = config.decoder_start_token_id
    return {"inputs.decoder_input_ids": ids}


def hiding_inputs(config: TriuneMAEConfig, tensors: Tensors) -> Tensors:
    """Which patches are hidden: multiples of the golden ratio less their whole parts, of which no two are near."""
    places = torch.arange(config.num_patches, dtype=torch.float64) * ((5**0.5 - 1) / 2)
    return {"inputs.noise": places.frac().float().expand(len(tensors["inputs.pixel_values"]), -1).contiguous()}


INPUTS = {"tokens": text_inputs, "patches": image_inputs}
FURTHER = {TriuneSeq2SeqConfig: target_inputs, TriuneMAEConfig: hiding_inputs}


def inputs(folder: Path, config: FamilyConfig) -> tuple[Tensors, dict[str, Any]]:
    """All that the model reads, and how it was made: `further` is what no tokenizer or processor makes."""
    tensors, how = {}, {}
    for kind, make in INPUTS.items():
        stack = stack_reading(config, kind)
        found, told = make(folder, stack) if stack else ({}, {})
        tensors |= found
        how |= told
    further = FURTHER.get(type(config), lambda config, tensors: {})(config, tensors)
    told = {"further": sorted(name[7:] for name in further)} if further else {}
    return {**tensors, **further}, {**how, **told}


# ---------------------------------------------------------------------------------------------------------------------
# Outputs


def compute(folder: Path) -> bytes:
    """The file's content; the same for the same model and the same versions."""
    folder = Path(folder)
    config = load_config(str(folder))
    head = head_of(config, folder)
    auto_class = config.heads[head].auto_class
    tensors, how = inputs(folder, config)
    model = load_weights(str(folder), getattr(modeling, head))
    answer = answered(model, inputs_of(tensors), attribute_of(auto_class))
    padding = None if "inputs.decoder_input_ids" in tensors else tensors.get("inputs.attention_mask")
    tensors |= kept(answer, padding, f"outputs.{output_of(auto_class)}")
    page = {
        "about": "Inputs and what this model answers: a copy that answers the same is whole. Of the outputs only the "
        "entries outputs.columns of the last axis are kept, and they count only where outputs.real is true.",
        "auto_class": auto_class,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "threads": 1,
        "versions": {name: installed(name) for name in ("torch", "transformers", "triune")},
        "sha256": {name: digest(folder / name) for name in sorted(weight_files(folder))},
        **how,
    }
    return save(tensors, metadata={"golden": json.dumps(page, ensure_ascii=True)})


def head_of(config: FamilyConfig, folder: Path) -> str:
    found = config.architectures or []
    if len(found) != 1 or found[0] not in config.heads:
        names = ", ".join(config.heads)
        raise ValueError(f"config.json in {folder} has architectures {found}, and not one of {names}")
    return found[0]


def inputs_of(tensors: Tensors) -> Tensors:
    return {name[7:]: tensor for name, tensor in tensors.items() if name.startswith("inputs.")}


def answered(model: torch.nn.Module, inputs: Tensors, attribute: str) -> torch.Tensor:
    with torch.no_grad(), one_thread():
        return getattr(model(**inputs), attribute).float()


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def kept(answer: torch.Tensor, mask: torch.Tensor | None, name: str) -> Tensors:
    """As many columns, at equal distances, as there is room for. All positions: each has its own way to be wrong."""
    step = -(-answer.numel() // MOST)
    columns = torch.arange(0, answer.shape[-1], step)
    per_token = mask is not None and answer.dim() == mask.dim() + 1
    real = mask.bool() if per_token else torch.ones(answer.shape[:-1], dtype=torch.bool)
    if not answer[real].isfinite().all():
        raise ValueError("this model answers with numbers that are not finite: its weights are not worth publishing")
    return {name: answer[..., columns].contiguous(), "outputs.columns": columns, "outputs.real": real}


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def write(folder: Path) -> Path:
    target = Path(folder) / GOLDEN
    partial = target.with_name(f".{GOLDEN}.partial")
    partial.write_bytes(compute(folder))
    partial.chmod(0o644)
    os.replace(partial, target)
    return target


# ---------------------------------------------------------------------------------------------------------------------
# What a downloader pastes


def literal(text: str) -> str:
    """As a string of Python, between double quotes where that is the same."""
    return repr(text) if {"'", '"'} & set(text) else f'"{repr(text)[1:-1]}"'


def output_of(auto_class: str) -> str:
    """What is kept of an answer."""
    return "last_hidden_state" if auto_class == "AutoModel" else "logits"


def attribute_of(auto_class: str) -> str:
    """Where it stands in the answer: `logits` of BERT's two tasks are those of both, and those of words are kept."""
    return "prediction_logits" if auto_class == "AutoModelForPreTraining" else output_of(auto_class)


def snippet(name: str, revision: str | None, auto_class: str) -> str:
    """The Python that compares a copy with its golden outputs. A folder has no revision."""
    if revision is None:
        imported, pinned = [], ""
        lines = [f"name = {literal(name)}", 'golden = load_file(f"{name}/golden.safetensors")']
    else:
        imported, pinned = ["from huggingface_hub import hf_hub_download"], "revision=revision, "
        lines = [
            f"name, revision = {literal(name)}, {literal(revision)}",
            'golden = load_file(hf_hub_download(name, "golden.safetensors", revision=revision))',
        ]
    kept = f"outputs.{output_of(auto_class)}"
    return "\n".join(
        [
            "import torch",
            *imported,
            "from safetensors.torch import load_file",
            f"from transformers import {auto_class}",
            "",
            *lines,
            f"model = {auto_class}.from_pretrained(name, {pinned}trust_remote_code=True)",
            'inputs = {key[7:]: value for key, value in golden.items() if key.startswith("inputs.")}',
            "with torch.no_grad():",
            f'    answer = model(**inputs).{attribute_of(auto_class)}.float()[..., golden["outputs.columns"]]',
            f'difference = (answer - golden["{kept}"])[golden["outputs.real"]].abs().max().item()',
            "print(difference)  # 0.0; on other hardware or versions about 1e-5, of bfloat16 weights about 0.1",
        ]
    )


def usage(name: str, revision: str, facts: Any) -> str:
    """The few lines that load a published model, and what turns inputs into tensors."""
    processor, auto_class = facts.processor, facts.auto_class
    variable = "tokenizer" if processor == "AutoTokenizer" else "processor"
    return "\n".join(
        [
            f"from transformers import {auto_class}, {processor}",
            "",
            f"name, revision = {literal(name)}, {literal(revision)}",
            f"{variable} = {processor}.from_pretrained(name, revision=revision, trust_remote_code=True)",
            f"model = {auto_class}.from_pretrained(name, revision=revision, trust_remote_code=True)",
        ]
    )


# ---------------------------------------------------------------------------------------------------------------------
# The check, in a clean process


class Checked(NamedTuple):
    difference: float  # the largest
    largest: float  # output
    inputs_equal: bool | None  # whether tokenizer or processor make the same inputs again; None: there is none
    dtype: str
    commit: str | None  # None: a folder
    code_commit: str | None
    seconds: float
    digests: dict[str, str]  # path -> SHA-256 of every file, of a repository; a wrong bit may not show in an answer


def hide_triune() -> None:
    """Let imports of triune fail as they do where it is not installed."""
    import importlib.abc
    import sys

    class NotInstalled(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "triune":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, NotInstalled())


def made_again(raw: dict, page: dict, name: str, revision: str | None) -> dict:
    """The inputs as the tokenizer and the image processor of the copy make them."""
    from transformers import AutoImageProcessor, AutoTokenizer

    made = {}
    if "texts" in page:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        made |= tokenizer(page["texts"], return_tensors="pt", **page["tokenizer"])
    if "raw.images" in raw:
        processor = AutoImageProcessor.from_pretrained(name, revision=revision, backend="pil", trust_remote_code=False)
        made |= processor(images=list(raw["raw.images"]), input_data_format="channels_first", return_tensors="pt")
    return made


def digests_of(name: str, revision: str | None) -> dict:
    """Of every file of a repository, as it was downloaded: no client compares them with what the Hub has."""
    import hashlib

    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(name, revision=revision))
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    found = {}
    for path, file in files.items():
        with file.open("rb") as content:
            found[path] = hashlib.file_digest(content, "sha256").hexdigest()
    return found


def visit(name: str, revision: str | None) -> dict:
    """What the clean process does: runs the snippet, and looks at what it has run."""
    import json
    import sys

    import torch
    from huggingface_hub import hf_hub_download
    from safetensors import safe_open
    from transformers import AutoConfig

    torch.set_num_threads(1)
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=True)
    folder = revision is None and Path(name).is_dir()
    path = f"{name}/golden.safetensors" if folder else hf_hub_download(name, "golden.safetensors", revision=revision)
    with safe_open(path, "pt") as file:
        page = json.loads(file.metadata()["golden"])
    auto_class, head = page["auto_class"], config.architectures[0]
    assert config.auto_map[auto_class].endswith(f".{head}"), f"{auto_class} leads to {config.auto_map[auto_class]}"
    space = {}
    exec(snippet(name, revision, auto_class), space)
    model, golden = space["model"], space["golden"]
    places = [type(model).__module__, type(model.config).__module__]
    assert all(place.startswith("transformers_modules.") for place in places), f"the code is not the copy's: {places}"
    assert "triune" not in sys.modules, "an installed Triune was used, and not the copy"
    again = made_again(golden, page, name, revision)
    commit = None if folder else Path(path).parent.name  # of the snapshot in the cache
    own = space["inputs"].keys() - set(page.get("further", ()))
    expected = golden[f"outputs.{output_of(auto_class)}"]
    return {
        "difference": space["difference"],
        "largest": expected[golden["outputs.real"]].abs().max().item(),
        "inputs_equal": all(torch.equal(again[key], space["inputs"][key]) for key in own) if again else None,
        "dtype": str(model.dtype).removeprefix("torch."),
        "commit": commit,
        "code_commit": places[0].split(".")[-2] if commit else None,
        "digests": {} if folder else digests_of(name, revision),
    }


def main(name: str, revision: str, result: str) -> None:
    """An error is one line, the last on the console."""
    import json
    import sys

    hide_triune()
    try:
        found = visit(name, revision or None)
    except BaseException as error:
        sys.exit("\n" + f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
    with open(result, "w", encoding="utf-8") as file:
        json.dump(found, file)


# Sent as source, for the clean process has no Triune to import them from.
PROGRAM = (literal, output_of, attribute_of, snippet, hide_triune, made_again, digests_of, visit, main)


def program() -> str:
    source = "\n\n".join(inspect.getsource(function) for function in PROGRAM)
    return f"from pathlib import Path\nimport sys\n\n{source}\n\nmain(*sys.argv[1:])\n"


def check(name: str, revision: str | None = None, env: Mapping[str, str] | None = None) -> Checked:
    """Load a folder or a repository of the Hub as a stranger would: in an isolated process, with an empty cache (of a
    repository everything is downloaded), without Triune; compare what it computes with its golden outputs. `env` is
    added to the environment. The token goes no other way than there, and to a folder's code not at all."""
    local = revision is None and Path(name).is_dir()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="triune-") as place:
        environment = clean_environment(Path(place), local, dict(env or {}))
        result = Path(place) / "result.json"
        place_and_revision = (str(Path(name).resolve()), "") if local else (name, revision or "main")
        arguments = [*place_and_revision, str(result)]
        done = subprocess.run(
            [sys.executable, "-I", "-c", program(), *arguments],
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        shown = f"{name}{f' at {revision}' if revision else ''}"
        if done.returncode:
            raise ValueError(f"{shown} fails in a clean process: {why(done, environment.get('HF_TOKEN'))}")
        found = Checked(**json.loads(result.read_text(encoding="utf-8")), seconds=time.perf_counter() - started)
    return judged(found, shown)


TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def clean_environment(place: Path, local: bool, env: dict[str, str]) -> dict[str, str]:
    """This process's own, less where it keeps what it has downloaded; a folder needs neither token nor network."""
    own = {key: value for key, value in os.environ.items() if not (key.startswith("HF_") and key.endswith("_CACHE"))}
    own |= {"HF_HOME": str(place / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if local:
        own = {key: value for key, value in own.items() if key not in TOKENS} | {"HF_HUB_OFFLINE": "1"}
    elif not any(key in env or key in own for key in TOKENS):
        token = get_token()  # of `hf auth login`, which lies in the home that the process does not have
        own |= {"HF_TOKEN": token} if token else {}
    return {**own, **env}


def why(done: subprocess.CompletedProcess, token: str | None) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode < 0:
        return f"it was ended by signal {-done.returncode}"
    return redact(lines[-1], token) if lines else f"it ended with {done.returncode} and said nothing"


def judged(found: Checked, shown: str) -> Checked:
    if found.commit != found.code_commit:
        raise ValueError(
            f"{shown}: the files are those of {found.commit}, and the code is that of {found.code_commit}"
        )
    if found.inputs_equal is False:
        raise ValueError(f"{shown}: its tokenizer or image processor makes other inputs than those of {GOLDEN}")
    allowed = TOLERANCE.get(found.dtype, COARSE) * max(1.0, found.largest)
    if not found.difference <= allowed:  # NaN is not
        raise ValueError(
            f"{shown} answers differently than {GOLDEN} says: by {found.difference:g}, with {allowed:g} allowed; "
            "the file is of other weights, or the copy is not whole"
        )
    return found


def check_files(files: Mapping[str, Content], env: Mapping[str, str] | None = None) -> Checked:
    """The same of the files that are to be published, and of no others that may lie beside them."""
    with tempfile.TemporaryDirectory(prefix="triune-") as place:
        folder = Path(place) / "model"
        for name, file in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(file, bytes):
                target.write_bytes(file)
            else:
                target.symlink_to(file.resolve())
        return check(str(folder), env=env)
