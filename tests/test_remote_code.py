"""Saved folders and Hub repositories, read by people who do not have Triune.

Every head is exported with random weights (no parameter keeps its starting value, so one that is not loaded shows),
then loaded in a *clean process*: Python isolated from its environment, `triune` not importable, an empty Hugging Face
cache, no network. What it computes there must equal what was computed here, to the bit. A clean process takes some
seconds, so each one does all the work of its kind and the tests look at what it brought back.
"""

import ast
import contextlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import transformers
from hub_server import HubServer, Repository
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.dynamic_module_utils import get_imports, get_relative_import_files
from transformers.models.vit import ViTImageProcessorPil

from triune import modeling
from triune.configuration import TriuneConfig, preset
from triune.configuration.configuration_triune import HEADS


# ---------------------------------------------------------------------------------------------------------------------
# What is exported: small relatives of six presets, and every head that stands on each of them

LABELS = ("bad", "good", "odd")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SMALL |= {"id2label": dict(enumerate(LABELS)), "label2id": {label: index for index, label in enumerate(LABELS)}}
SMALL_TEXT = {**SMALL, "vocab_size": 99, "max_position_embeddings": 32, "pad_token_id": 0}
SMALL_CAUSAL = {**SMALL_TEXT, "bos_token_id": 2, "eos_token_id": 3}
OVERRIDES = {
    "bert-mini": SMALL_TEXT,
    "modernbert-mini": {**SMALL_TEXT, "sliding_window": 3, "layer_types": ["full_attention", "sliding_attention"]},
    "gpt2-mini": SMALL_CAUSAL,
    "llama-mini": {**SMALL_CAUSAL, "num_key_value_heads": 2},
    "modern-mini": {**SMALL_CAUSAL, "num_key_value_heads": 2, "hidden_act": "prelu"},
    "vit-mini": {**SMALL, "embedding": {"image_size": 16}},
}
UNDERSTANDING = ("TriuneModel", "TriuneForSequenceClassification", "TriuneForTokenClassification")
HEADS_OF = {
    "bert-mini": ("TriuneForMaskedLM", *UNDERSTANDING),
    "modernbert-mini": ("TriuneForMaskedLM", *UNDERSTANDING),
    "gpt2-mini": ("TriuneForCausalLM", *UNDERSTANDING),
    "llama-mini": ("TriuneForCausalLM", *UNDERSTANDING),
    "modern-mini": ("TriuneForCausalLM", "TriuneModel"),
    "vit-mini": ("TriuneModel", "TriuneForImageClassification"),
}
PAIRS = [(name, head) for name, heads in HEADS_OF.items() for head in heads]
every_pair = pytest.mark.parametrize(("name", "head"), PAIRS, ids=lambda value: value)

# What a file of the first version may hold, and no more: the rest is filled in.
FEW_FIELDS = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
DERIVED = ("num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings", "layer_types")
DERIVED += ("final_norm", "pooling", "use_cache", "sliding_window")

MODELING = Path(modeling.__file__).resolve().parent
# What the models of one stack need; those of several have files of their own.
SEVERAL = ("composite", "seq2seq", "mae", "clip")
SOURCES = sorted((MODELING.parent / "configuration").glob("configuration_*.py"))
SOURCES += [file for file in sorted(MODELING.glob("*.py")) if file.name != "__init__.py"]
SOURCES = [file for file in SOURCES if not file.stem.endswith(SEVERAL)]
CODE = {file.name for file in SOURCES}
AUTO_MAP = {
    "AutoConfig": "configuration_triune.TriuneConfig",
    "AutoModel": "modeling_triune.TriuneModel",
    "AutoModelForMaskedLM": "modeling_triune.TriuneForMaskedLM",
    "AutoModelForPreTraining": "modeling_triune.TriuneForPreTraining",
    "AutoModelForCausalLM": "modeling_triune.TriuneForCausalLM",
    "AutoModelForImageClassification": "modeling_triune.TriuneForImageClassification",
    "AutoModelForSequenceClassification": "modeling_triune.TriuneForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_triune.TriuneForTokenClassification",
}


class Export(NamedTuple):
    folder: Path
    auto_class: str
    kind: str  # "text" or "image"
    output: torch.Tensor  # logits, or the last hidden state of a TriuneModel
    hidden: torch.Tensor  # the backbone's last hidden state


@contextlib.contextmanager
def one_thread():
    """Sums in the order in which a process with one thread makes them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def make_inputs():
    torch.manual_seed(0)
    ids = torch.randint(5, 99, (2, 9))
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    text["attention_mask"][1, 6:] = 0
    text["token_type_ids"][0, 4:] = 1
    return {"text": text, "image": {"pixel_values": torch.randn(2, 3, 16, 16)}}


def randomised(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def export(model, folder):
    """Save a model, and what it computes before it is saved."""
    auto_class = HEADS[type(model).__name__].auto_class
    kind = "image" if model.config.embedding["type"] == "patches" else "text"
    batch = make_inputs()[kind]
    with torch.no_grad(), one_thread():
        output = model(**batch)[0]
        hidden = model.base_model(**batch).last_hidden_state
    model.save_pretrained(folder)
    return Export(folder, auto_class, kind, output, hidden)


def read_json(file):
    return json.loads(Path(file).read_text(encoding="utf-8"))


def write_json(file, value):
    Path(file).write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """(preset, head) -> Export."""
    root = tmp_path_factory.mktemp("exports")
    return {
        (name, head): export(
            randomised(getattr(modeling, head)(preset(name, **OVERRIDES[name]))), root / f"{name}-{head}"
        )
        for name, head in PAIRS
    }


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """Folders as an older version may have left them, by what their config.json lacks."""
    root = tmp_path_factory.mktemp("older")
    made = {}
    for lack in ("few-fields", "derived-fields-are-null", "names-instead-of-entries"):
        made[lack] = export(randomised(modeling.TriuneForMaskedLM(TriuneConfig(**FEW_FIELDS))), root / lack)
        file = made[lack].folder / "config.json"
        config = read_json(file)
        if lack == "few-fields":
            config = {key: config[key] for key in (*FEW_FIELDS, "model_type", "architectures", "auto_map")}
        elif lack == "derived-fields-are-null":
            config |= dict.fromkeys(DERIVED)
        else:
            config |= {"norm": "layernorm", "attention": "bidirectional", "embedding": {"type": "tokens"}}
        write_json(file, config)
    return made


# ---------------------------------------------------------------------------------------------------------------------
# Clean processes. The functions up to the next rule are sent there as source: they import what they need, take and
# return JSON, and hand tensors over in files.


def hide_triune():
    """Let imports of triune fail as they do where it is not installed."""
    import importlib.abc
    import sys

    class NotInstalled(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "triune":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, NotInstalled())


def step(name):
    """A heading on the console, by which the tests find what a step printed."""
    import sys

    print(f"== {name}", file=sys.stderr, flush=True)


def load_and_save(cases, inputs, out):
    """Load each folder through its auto class, keep what it computes, save it again."""
    from pathlib import Path

    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    outputs, found = {}, {}
    for name, (auto_class, folder, kind) in cases.items():
        step(name)
        model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True)
        with torch.no_grad():
            outputs[name] = model(**load_file(f"{inputs}/{kind}.safetensors"))[0]
        model.save_pretrained(Path(out) / name)
        found[name] = [type(model).__name__, type(model).__module__, type(model.config).__module__]
    save_file(outputs, Path(out) / "outputs.safetensors")
    return found


def load_other_heads(cases, inputs, out):
    """Load folders through an auto class they were not saved with; keep the outputs and what did not fit."""
    from pathlib import Path

    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    outputs, found = {}, {}
    for name, (auto_class, folder, kind) in cases.items():
        step(f"other head {name}")
        auto = getattr(transformers, auto_class)
        model, info = auto.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
        with torch.no_grad():
            outputs[name] = model(**load_file(f"{inputs}/{kind}.safetensors"))[0]
        new = {key: model.get_parameter(key).detach() for key in sorted(info["missing_keys"])}
        found[name] = {
            "class": type(model).__name__,
            "new": {key: [value.min().item(), value.max().item()] for key, value in new.items()},
            **{keys: sorted(info[keys]) for keys in ("missing_keys", "unexpected_keys", "mismatched_keys")},
        }
    save_file(outputs, Path(out) / "other_heads.safetensors")
    return found


def refusals(folder, hostile):
    """What the auto classes answer without the user's trust, and to a config.json that names code to download."""
    import transformers

    def message(load):
        try:
            load()
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    step("refusals")
    return {
        "no trust": message(lambda: transformers.AutoModel.from_pretrained(folder)),
        "hostile config": message(lambda: transformers.AutoConfig.from_pretrained(hostile, trust_remote_code=True)),
        "hostile model": message(lambda: transformers.AutoModel.from_pretrained(hostile, trust_remote_code=True)),
    }


def first_visit(cases, other_cases, inputs, out, folder, hostile):
    return {
        "loaded": load_and_save(cases, inputs, out),
        "other heads": load_other_heads(other_cases, inputs, out),
        "refusals": refusals(folder, hostile),
    }


def pipeline_outputs(folders, image):
    """Every pipeline the family serves, on a folder with its tokenizer or image processor."""
    import sys

    import PIL.Image
    from transformers import pipeline

    def make(task, folder):
        step(f"{task} {folder}")
        return pipeline(task, folders[folder], trust_remote_code=True, device="cpu")

    text = "the small dog saw a bird ."
    texts = [text, "a cat ran home"]
    masked = "the small [MASK] saw a bird ."
    image = PIL.Image.open(image)
    results = {
        f"fill-mask {name}": make("fill-mask", f"{name}-TriuneForMaskedLM")(masked, top_k=99)
        for name in ("bert-mini", "modernbert-mini")
    }
    for name in ("gpt2-mini", "llama-mini"):
        generate = make("text-generation", f"{name}-TriuneForCausalLM")
        length = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
        results[f"text-generation {name}"] = {
            "ids": generate(text, return_tensors=True, **length)[0]["generated_token_ids"],
            "text": generate(text, return_full_text=False, **length)[0]["generated_text"],
            "batch": [made[0]["generated_text"] for made in generate(texts, batch_size=2, **length)],
        }
    classify = make("text-classification", "bert-mini-TriuneForSequenceClassification")
    results["text-classification"] = classify(text, top_k=None)
    results["text-classification batch"] = classify(texts, batch_size=2)
    tag = make("token-classification", "bert-mini-TriuneForTokenClassification")
    results["token-classification"] = [{**token, "score": float(token["score"])} for token in tag(text)]
    results["feature-extraction"] = make("feature-extraction", "bert-mini-TriuneModel")(text)
    results["image-classification"] = make("image-classification", "vit-mini-TriuneForImageClassification")(image)
    look = make("image-feature-extraction", "vit-mini-TriuneModel")
    results["image-feature-extraction"] = look(image)
    results["image-feature-extraction pooled"] = look(image, pool=True)
    step("end")
    results["torchvision"] = "torchvision" in sys.modules
    return results


def second_visit(cases, inputs, out, folders, image):
    return {"loaded": load_and_save(cases, inputs, out), "pipelines": pipeline_outputs(folders, image)}


def push(first, second, work):
    """Send models to the Hub in each way there is. Here Triune is installed."""
    from transformers import AutoModelForMaskedLM

    remote = AutoModelForMaskedLM.from_pretrained(first, trust_remote_code=True)
    remote.push_to_hub("user/remote-code")

    import triune.modeling  # from here on its classes are the ones that the auto classes give

    assert not isinstance(remote, triune.modeling.TriuneForMaskedLM)
    model = AutoModelForMaskedLM.from_pretrained(first)
    assert isinstance(model, triune.modeling.TriuneForMaskedLM)
    model.push_to_hub("user/name", commit_message="the first")
    model.push_to_hub("user/on-a-branch", revision="v1.0")
    AutoModelForMaskedLM.from_pretrained(second).push_to_hub("user/name", commit_message="the second")
    model.save_pretrained(f"{work}/named-by-its-folder", push_to_hub=True)
    model.save_pretrained(f"{work}/saved-before")
    model.save_pretrained(f"{work}/saved-before", push_to_hub=True)
    model.config.push_to_hub("user/config")
    model.config.save_pretrained(f"{work}/config-by-its-folder", push_to_hub=True)


def pull(revision, inputs, out):
    """Read the repository at a revision and at its newest, and send a copy back from where Triune is not installed."""
    from pathlib import Path

    import torch
    from huggingface_hub import snapshot_download
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForMaskedLM

    outputs = {}
    batch = load_file(f"{inputs}/text.safetensors")
    for name, options in {"pinned": {"revision": revision}, "newest": {}}.items():
        step(name)
        model = AutoModelForMaskedLM.from_pretrained("user/name", trust_remote_code=True, **options)
        with torch.no_grad():
            outputs[name] = model(**batch).logits
        model.push_to_hub(f"user/{name}-again")
    save_file(outputs, Path(out) / "outputs.safetensors")
    step("download")
    return [file.name for file in Path(snapshot_download("user/on-a-branch", revision="v1.0")).iterdir()]


# ---------------------------------------------------------------------------------------------------------------------
# The other side: start a process, read what it brought back


class Visit(NamedTuple):
    result: object
    console: dict[str, str]  # step -> what it printed


def visit(function, *arguments, home, calls=(), installed=False, **environment):
    """Call `function`, which may call `calls`, in another process; without Triune unless `installed`."""
    home.mkdir(parents=True)
    sources = [inspect.getsource(part) for part in (hide_triune, step, *calls, function)]
    main = [
        "import json, sys",
        "" if installed else "hide_triune()",
        f"result = {function.__name__}(*json.loads(sys.argv[1]))",
        "loaded = [name for name in sys.modules if name.split('.')[0] == 'triune']",
        f"assert {installed} or not loaded, loaded",
        "json.dump(result, open(sys.argv[2], 'w'))",
    ]
    script = home / "script.py"
    script.write_text("\n\n".join([*sources, *main]), encoding="utf-8")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    fixed = {"HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*"}
    fixed |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    arguments = json.dumps(arguments, default=str)
    done = subprocess.run(
        [sys.executable, *([] if installed else ["-I"]), str(script), arguments, str(home / "result.json")],
        env={**kept, **fixed, **(environment or {"HF_HUB_OFFLINE": "1"})},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^== (.*)\n", done.stderr, flags=re.MULTILINE)
    return Visit(read_json(home / "result.json"), {"": parts[0], **dict(zip(parts[1::2], parts[2::2]))})


def as_cases(exports):
    """Export by name -> what `load_and_save` is told."""
    return {name: (export.auto_class, export.folder, export.kind) for name, export in exports.items()}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for kind, batch in make_inputs().items():
        save_file(batch, folder / f"{kind}.safetensors")
    return folder


def named(exports, older):
    return {"-".join(pair): export for pair, export in exports.items()} | older


def other_heads(exports):
    """Backbones of folders that hold a head, and every head on the folders that hold a backbone."""
    cases = {}
    for (name, head), made in exports.items():
        others = set(HEADS_OF[name]) - {head} if head == "TriuneModel" else {"TriuneModel"}
        cases |= {(name, head, other): (HEADS[other].auto_class, made.folder, made.kind) for other in sorted(others)}
    return cases


@pytest.fixture(scope="module")
def first(exports, older, inputs, tmp_path_factory):
    """Every folder loaded in a clean process, also as what it was not saved as; and what was saved again there."""
    out = tmp_path_factory.mktemp("first")
    bert = exports["bert-mini", "TriuneModel"].folder
    hostile = shutil.copytree(bert, out / "hostile")
    write_json(hostile / "config.json", read_json(bert / "config.json") | {"attn_implementation": "someone/kernel"})
    others = {" ".join(key): case for key, case in other_heads(exports).items()}
    calls = (load_and_save, load_other_heads, refusals)
    cases = as_cases(named(exports, older))
    home = out / "home"
    return out, visit(first_visit, cases, others, inputs, out, bert, hostile, home=home, calls=calls)


@pytest.fixture(scope="module")
def second(first, exports, older, inputs, tmp_path_factory):
    """The folders that the first clean process saved, loaded and saved in another; and the pipelines there, on
    exported folders that hold their tokenizer or image processor."""
    out = tmp_path_factory.mktemp("second")
    cases = as_cases(named(exports, older))
    cases = {name: (auto_class, first[0] / name, kind) for name, (auto_class, _, kind) in cases.items()}
    folders = {}
    for (name, head), made in exports.items():
        folders[f"{name}-{head}"] = shutil.copytree(made.folder, out / "pipelines" / f"{name}-{head}")
        processor = make_tokenizer("bert" in name) if made.kind == "text" else make_image_processor()
        processor.save_pretrained(folders[f"{name}-{head}"])
    make_image().save(out / "image.png")
    arguments = (cases, inputs, out, folders, out / "image.png")
    return out, visit(second_visit, *arguments, home=out / "home", calls=(load_and_save, pipeline_outputs))


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def test_every_head_is_exported():
    """The pairs of preset and head above cover every head that the configuration knows, but for the one that has two
    outputs: `tests/modeling/test_pretraining.py` exports it."""
    assert {head for _, head in PAIRS} == set(HEADS) - {"TriuneForPreTraining"}


@every_pair
def test_folder_holds_these_files(exports, name, head):
    """Weights, configuration, the flat code and nothing else: against the list of the repository's sources."""
    folder = exports[name, head].folder
    generation = {"generation_config.json"} if head == "TriuneForCausalLM" else set()
    assert {file.name for file in folder.iterdir()} == CODE | {"config.json", "model.safetensors"} | generation
    assert read_json(folder / "config.json")["auto_map"] == AUTO_MAP
    assert read_json(folder / "config.json")["architectures"] == [head]


def test_code_is_the_source_with_one_import_rewritten(exports):
    """Line by line against the repository: only imports from the configuration's package differ, by their prefix."""
    folder = exports["bert-mini", "TriuneForMaskedLM"].folder
    rewritten = 0
    for source in SOURCES:
        lines = source.read_text(encoding="utf-8").split("\n")
        copied = (folder / source.name).read_text(encoding="utf-8").split("\n")
        assert len(lines) == len(copied), source.name
        for line, copy in zip(lines, copied):
            if line != copy:
                assert line.startswith("from triune.configuration.configuration_"), line
                assert copy == line.replace("triune.configuration", "", 1), copy
                rewritten += 1
    assert rewritten >= 2, "modeling_triune.py and transformer.py read the configuration"


@pytest.mark.parametrize("file", sorted(CODE))
def test_code_imports_only_what_is_there(exports, file):
    """By the syntax tree and by transformers' own scanner: torch, transformers, huggingface_hub, the standard library
    and neighbours. What is optional stands inside `try`."""
    path = exports["bert-mini", "TriuneForMaskedLM"].folder / file
    tree = ast.parse(path.read_text(encoding="utf-8"))
    optional = {id(node) for attempt in ast.walk(tree) if isinstance(attempt, ast.Try) for node in ast.walk(attempt)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level < 2 and node.module, ast.unparse(node)
            modules = [] if node.level else [node.module]
            assert not node.level or f"{node.module}.py" in CODE, ast.unparse(node)
        else:
            continue
        allowed = {"torch", "transformers", "huggingface_hub"} | sys.stdlib_module_names
        allowed |= {"peft", "triune"} if id(node) in optional else set()
        assert {module.split(".")[0] for module in modules} <= allowed, ast.unparse(node)
    assert set(get_imports(path)) <= {"torch", "transformers", "huggingface_hub"} | sys.stdlib_module_names
    # What the scanner takes for an import is one: a line of a docstring that looks like one is followed too.
    assert {Path(needed).name for needed in get_relative_import_files(path)} <= CODE


def test_code_is_readable(exports):
    """Each file says at its top what it is, and each class that auto_map names exists there and says what it is."""
    folder = exports["bert-mini", "TriuneForMaskedLM"].folder
    trees = {file: ast.parse((folder / file).read_text(encoding="utf-8")) for file in CODE}
    for file, tree in trees.items():
        assert ast.get_docstring(tree), file
    for reference in AUTO_MAP.values():
        module, name = reference.split(".")
        classes = {node.name: node for node in trees[f"{module}.py"].body if isinstance(node, ast.ClassDef)}
        assert ast.get_docstring(classes[name]), reference


def test_code_can_be_read_by_others(exports, tmp_path):
    """Code and configuration are written with the ordinary mode of new files: a colleague can load the folder."""
    folder = exports["bert-mini", "TriuneForMaskedLM"].folder
    (tmp_path / "ordinary").write_text("")
    ordinary = (tmp_path / "ordinary").stat().st_mode
    for file in (*CODE, "config.json"):
        assert (folder / file).stat().st_mode == ordinary, file


# ---------------------------------------------------------------------------------------------------------------------
# A clean process


def difference(x, y):
    assert x.shape == y.shape and x.dtype == y.dtype
    return (x - y).abs().max().item()


@every_pair
def test_clean_process_computes_the_same(exports, first, name, head):
    """Loaded where Triune is not installed, against the model that was saved: difference 0.0, and a silent console."""
    out, visited = first
    key = f"{name}-{head}"
    assert difference(load_file(out / "outputs.safetensors")[key], exports[name, head].output) == 0.0
    loaded, module, config_module = visited.result["loaded"][key]
    assert loaded == head
    assert module.startswith("transformers_modules.") and config_module.startswith("transformers_modules.")
    assert visited.console[key] == ""


@every_pair
def test_saved_again_from_a_clean_process(exports, first, second, name, head):
    """Saved there and loaded in another clean process: difference 0.0; every file equal to the one first saved."""
    key = f"{name}-{head}"
    assert difference(load_file(second[0] / "outputs.safetensors")[key], exports[name, head].output) == 0.0
    assert second[1].console[key] == ""
    original = exports[name, head].folder
    for folder in (first[0] / key, second[0] / key):
        assert {file.name for file in folder.iterdir()} == {file.name for file in original.iterdir()}
        assert read_json(folder / "config.json") == read_json(original / "config.json")
        for file in (*CODE, "model.safetensors"):
            assert (folder / file).read_bytes() == (original / file).read_bytes(), file


def weights(export):
    """The names of the weights in a folder, in the words of the backbone."""
    return {key.removeprefix("model.") for key in load_file(export.folder / "model.safetensors")}


@every_pair
def test_other_head_on_the_same_folder(exports, first, name, head):
    """The backbone of a head's folder computes what it did there; a head on a backbone's folder starts as
    `_init_weights` says. Missing and left over is exactly what one file has and the other has not."""
    out, visited = first
    outputs = load_file(out / "other_heads.safetensors")
    for _, _, other in (case for case in other_heads(exports) if case[:2] == (name, head)):
        case = f"{name} {head} {other}"
        found = visited.result["other heads"][case]
        saved, wanted = weights(exports[name, head]), weights(exports[name, other])
        assert found["class"] == other
        assert {key.removeprefix("model.") for key in found["missing_keys"]} == wanted - saved
        assert {key.removeprefix("model.") for key in found["unexpected_keys"]} == saved - wanted
        assert found["mismatched_keys"] == []
        for key, (low, high) in found["new"].items():
            ones_or_zeros = {"norm.weight": (1, 1), "bias": (0, 0)}
            expected = [value for ending, value in ones_or_zeros.items() if key.endswith(ending)]
            assert (low, high) == expected[0] if expected else -0.2 < low < 0 < high < 0.2, key
        if other == "TriuneModel":
            assert difference(outputs[case], exports[name, head].hidden) == 0.0
        else:
            assert torch.isfinite(outputs[case]).all()


def test_no_trust_no_code(first):
    """Without trust_remote_code the folder is refused, with transformers' own advice."""
    assert "pass the argument `trust_remote_code=True`" in first[1].result["refusals"]["no trust"]


# ---------------------------------------------------------------------------------------------------------------------
# Where Triune is installed


@every_pair
@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}, {"trust_remote_code": False}], ids=str)
def test_installed_code_wins(exports, name, head, trust):
    """With triune.modeling imported the auto classes give its classes, with and without the user's trust, and nobody
    is asked; against the model that was saved."""
    made = exports[name, head]
    assert type(transformers.AutoConfig.from_pretrained(made.folder, **trust)) is TriuneConfig
    model = getattr(transformers, made.auto_class).from_pretrained(made.folder, **trust)
    assert type(model) is getattr(modeling, head) and type(model.config) is TriuneConfig
    with torch.no_grad(), one_thread():
        assert difference(model(**make_inputs()[made.kind])[0], made.output) == 0.0


# ---------------------------------------------------------------------------------------------------------------------
# Pipelines

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "a", "small", "big", "red", "cat", "dog", "bird", "saw", "ran", "sat", "on", "home", ".")
TEXT = "the small dog saw a bird ."
SHORT = "a cat ran home"


def make_tokenizer(understanding):
    """99 words; for understanding with CLS and SEP around each text."""
    names = [*SPECIAL, *WORDS]
    names += [f"w{index}" for index in range(len(names), 99)]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if understanding:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=32,
        **dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL)),
    )


def make_image_processor():
    return ViTImageProcessorPil(size={"height": 16, "width": 16})


def make_image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipelines(second):
    return second[1].result["pipelines"]


def load_here(exports, name, head):
    return getattr(modeling, head).from_pretrained(exports[name, head].folder)


def test_pipelines_are_silent(second):
    """No pipeline warns of anything: an unsupported model, missing weights, padding; and torchvision is not needed."""
    assert {step: text for step, text in second[1].console.items() if text} == {}
    assert second[1].result["pipelines"]["torchvision"] is False


@pytest.mark.parametrize("name", ["bert-mini", "modernbert-mini"])
def test_fill_mask(exports, pipelines, name):
    """Every word of the vocabulary with its probability, against a softmax over the logits at the mask."""
    tokenizer, model = make_tokenizer(True), load_here(exports, name, "TriuneForMaskedLM")
    batch = tokenizer(TEXT.replace("dog", "[MASK]"), return_tensors="pt")
    place = batch["input_ids"][0].tolist().index(4)
    with torch.no_grad():
        expected = model(**batch).logits[0, place].softmax(-1)
    answers = pipelines[f"fill-mask {name}"]
    assert [answer["token"] for answer in answers] == expected.argsort(descending=True).tolist()
    assert sum(answer["score"] for answer in answers) == pytest.approx(1.0, abs=1e-5)
    for answer in answers:
        assert answer["score"] == pytest.approx(expected[answer["token"]].item(), abs=1e-6)
        assert answer["token_str"] == tokenizer.decode([answer["token"]])
        if answer["token_str"] not in SPECIAL:
            assert answer["sequence"] == TEXT.replace("dog", answer["token_str"])


@pytest.mark.parametrize("name", ["gpt2-mini", "llama-mini"])
def test_text_generation(exports, pipelines, name):
    """Five new tokens that continue the prompt, against repeated greedy choice without a cache; the same in a batch
    of two texts of different length."""
    tokenizer, model = make_tokenizer(False), load_here(exports, name, "TriuneForCausalLM")
    made = pipelines[f"text-generation {name}"]
    for text, from_batch in zip((TEXT, SHORT), made["batch"]):
        ids = tokenizer(text)["input_ids"]
        start = len(ids)
        for _ in range(5):
            with torch.no_grad():
                logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            logits[model.config.eos_token_id] = -torch.inf  # min_new_tokens
            ids.append(logits.argmax().item())
        continuation = tokenizer.decode(ids[start:], skip_special_tokens=True)
        assert from_batch == text + continuation
        if text == TEXT:
            assert made["ids"] == ids and len(ids) == start + 5
            assert made["text"] == continuation


def test_text_classification(exports, pipelines):
    """Labels from id2label with their probabilities, against a softmax over the logits; and the best of each text of
    a padded batch."""
    tokenizer, model = make_tokenizer(True), load_here(exports, "bert-mini", "TriuneForSequenceClassification")
    for number, text in enumerate((TEXT, SHORT)):
        with torch.no_grad():
            scores = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1).tolist()
        expected = dict(zip(LABELS, scores))
        best = pipelines["text-classification batch"][number]
        assert best["label"] == max(expected, key=expected.get)
        assert best["score"] == pytest.approx(expected[best["label"]], abs=1e-6)
        if text == TEXT:
            answer = {label["label"]: label["score"] for label in pipelines["text-classification"]}
            assert answer == pytest.approx(expected, abs=1e-6)
            assert sum(answer.values()) == pytest.approx(1.0, abs=1e-6)


def test_token_classification(exports, pipelines):
    """One label for every word, none for CLS and SEP, against a softmax over the logits."""
    tokenizer, model = make_tokenizer(True), load_here(exports, "bert-mini", "TriuneForTokenClassification")
    with torch.no_grad():
        scores = model(**tokenizer(TEXT, return_tensors="pt")).logits[0].softmax(-1)[1:-1]
    answer = pipelines["token-classification"]
    assert [token["word"] for token in answer] == TEXT.split()
    assert [token["entity"] for token in answer] == [LABELS[index] for index in scores.argmax(-1)]
    assert [token["score"] for token in answer] == pytest.approx(scores.amax(-1).tolist(), abs=1e-6)
    assert all(TEXT[token["start"] : token["end"]] == token["word"] for token in answer)


def test_feature_extraction(exports, pipelines):
    """The backbone's last hidden state, one vector for each token."""
    model = load_here(exports, "bert-mini", "TriuneModel")
    with torch.no_grad(), one_thread():
        expected = model(**make_tokenizer(True)(TEXT, return_tensors="pt")).last_hidden_state
    assert difference(torch.tensor(pipelines["feature-extraction"]), expected) == 0.0


def test_image_classification(exports, pipelines):
    """Labels from id2label with their probabilities, against a softmax over the logits."""
    model = load_here(exports, "vit-mini", "TriuneForImageClassification")
    with torch.no_grad():
        scores = model(**make_image_processor()(make_image(), return_tensors="pt")).logits[0].softmax(-1)
    answer = {label["label"]: label["score"] for label in pipelines["image-classification"]}
    assert answer == pytest.approx(dict(zip(LABELS, scores.tolist())), abs=1e-6)
    assert sum(answer.values()) == pytest.approx(1.0, abs=1e-6)


def test_image_feature_extraction(exports, pipelines):
    """The backbone's last hidden state, CLS and 16 patches; pooled: its one vector."""
    model = load_here(exports, "vit-mini", "TriuneModel")
    with torch.no_grad(), one_thread():
        expected = model(**make_image_processor()(make_image(), return_tensors="pt"))
    features = torch.tensor(pipelines["image-feature-extraction"])
    assert features.shape == (1, 17, 32)
    assert difference(features, expected.last_hidden_state) == 0.0
    pooled = torch.tensor(pipelines["image-feature-extraction pooled"])
    assert difference(pooled, expected.pooler_output) == 0.0


# ---------------------------------------------------------------------------------------------------------------------
# The Hub


class HubVisit(NamedTuple):
    repositories: dict[str, Repository]
    requests: list[tuple[str, str]]  # of the process that read
    console: dict[str, str]
    outputs: dict[str, torch.Tensor]
    downloaded: list[str]


@pytest.fixture(scope="module")
def hub(exports, inputs, tmp_path_factory):
    """A Hub to which every way of pushing sent its files, and from which a clean process read and sent them back."""
    out = tmp_path_factory.mktemp("hub")
    two = [exports[name, "TriuneForMaskedLM"].folder for name in ("bert-mini", "modernbert-mini")]
    with HubServer() as server:
        environment = {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": "x"}
        visit(push, *two, out, home=out / "push", installed=True, **environment)
        server.requests.clear()
        revision = server.repositories["user/name"].commits[1].oid
        downloaded, console = visit(pull, revision, inputs, out, home=out / "pull", **environment)
    return HubVisit(server.repositories, server.requests, console, load_file(out / "outputs.safetensors"), downloaded)


WEIGHTS = {"model.safetensors"}
PUSHES = {
    "push_to_hub": ("user/name", WEIGHTS),
    "push_to_hub to a branch": ("user/on-a-branch", WEIGHTS),
    "save_pretrained(push_to_hub=True)": ("user/named-by-its-folder", WEIGHTS),
    "save_pretrained(push_to_hub=True) over an older export": ("user/saved-before", WEIGHTS),
    "push_to_hub of remote code where Triune is installed": ("user/remote-code", WEIGHTS),
    "push_to_hub from a clean process": ("user/pinned-again", WEIGHTS),
    "config.push_to_hub": ("user/config", set()),
    "config.save_pretrained(push_to_hub=True)": ("user/config-by-its-folder", set()),
}


@pytest.mark.parametrize("way", PUSHES)
def test_every_way_of_pushing_carries_the_code(exports, hub, way):
    """The code, a configuration that names every head and the weights arrive together, in one commit."""
    repository, weights = PUSHES[way]
    commit = hub.repositories[repository].commits[1]  # the first is the empty one
    assert set(commit.changed) - {"README.md"} == CODE | {"config.json"} | weights
    folder = exports["bert-mini", "TriuneForMaskedLM"].folder
    for file in CODE | weights:
        assert commit.files[file] == (folder / file).read_bytes(), file
    assert json.loads(commit.files["config.json"])["auto_map"] == AUTO_MAP
    assert len(hub.repositories[repository].commits) == (3 if way == "push_to_hub" else 2)


def test_a_branch_is_a_version(hub):
    """A push to a branch leaves main as it was, and the whole branch can be downloaded by its name."""
    assert hub.repositories["user/on-a-branch"].branches["main"].files == {}
    assert set(hub.downloaded) - {"README.md"} == CODE | {"config.json"} | WEIGHTS


def test_hub_repository_loads_in_a_clean_process(exports, hub):
    """From an empty cache: the pinned revision and the newest, each against its own model: difference 0.0. With the
    revision the console is silent; without it transformers advises to pin one, and says nothing else."""
    for revision, name in {"pinned": "bert-mini", "newest": "modernbert-mini"}.items():
        assert difference(hub.outputs[revision], exports[name, "TriuneForMaskedLM"].output) == 0.0
    printed = {step: text for step, text in hub.console.items() if text}
    assert set(printed) <= {"newest"}
    for advice in re.split(r"^(?=\[transformers\])", printed.get("newest", ""), flags=re.MULTILINE)[1:]:
        assert "you can pin a revision" in advice, advice


def test_a_pinned_revision_pins_the_code(hub):
    """Until the newest is asked for, every file that is read is read at the revision that was named."""
    revision = hub.repositories["user/name"].commits[1].oid
    reads = [path for method, path in hub.requests if method == "GET" and path.startswith("/user/name/resolve/")]
    pinned = [path.rsplit("/", 1)[1] for path in reads if f"/{revision}/" in path]
    assert set(pinned) >= CODE | {"config.json", "model.safetensors"}
    assert reads[: len(pinned)] == [path for path in reads if f"/{revision}/" in path]


# ---------------------------------------------------------------------------------------------------------------------
# Odd configurations

HOSTILE = {
    "plain": {"attn_implementation": "someone/kernel"},
    "private": {"_attn_implementation": "someone/kernel@main:fast"},
    "by sub-configuration": {"attn_implementation": {"": "someone/kernel"}},
    "nested": {"text_config": {"_attn_implementation": "someone/kernel"}},
    "experts": {"experts_implementation": "someone/kernel"},
}


def changed(export, folder, changes):
    """A copy of an exported folder with other words in its config.json."""
    shutil.copytree(export.folder, folder)
    write_json(folder / "config.json", read_json(folder / "config.json") | changes)
    return folder


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_cannot_choose_code(exports, tmp_path, case):
    """A config.json that names a kernel of the Hub is refused however it is read, with the key and what to do."""
    folder = changed(exports["bert-mini", "TriuneForMaskedLM"], tmp_path / "hostile", HOSTILE[case])
    readers = (transformers.AutoConfig, transformers.AutoModel, transformers.AutoModelForMaskedLM)
    for reader in (*readers, TriuneConfig, modeling.TriuneForMaskedLM):
        with pytest.raises(ValueError, match=r"config\.json sets .*would download and run code.*remove it there"):
            reader.from_pretrained(folder)


def test_a_file_cannot_choose_code_in_a_clean_process(first):
    """The same where Triune is not installed: the code that travelled refuses too."""
    for reader in ("hostile config", "hostile model"):
        message = first[1].result["refusals"][reader]
        assert message.startswith("ValueError: config.json sets attn_implementation='someone/kernel', which would")


def test_a_caller_may_choose_code(exports, tmp_path, monkeypatch):
    """The same name as an explicit argument reaches transformers' own loader of kernels, stopped here before it
    downloads; and it is not written into the file, which would then be refused."""
    asked = []

    def stop(name, **kwargs):
        asked.append(name)
        raise ConnectionError("stopped by the test")

    monkeypatch.setattr(transformers.modeling_utils, "lazy_import_flash_attention", stop)
    folder = exports["bert-mini", "TriuneForMaskedLM"].folder
    with pytest.raises(ConnectionError, match="stopped by the test"):
        transformers.AutoModel.from_pretrained(folder, attn_implementation="someone/kernel")
    assert asked == ["someone/kernel"]
    config = transformers.AutoConfig.from_pretrained(folder, attn_implementation="someone/kernel")
    assert config._attn_implementation == "someone/kernel"
    config.save_pretrained(tmp_path)
    assert "someone/kernel" not in (tmp_path / "config.json").read_text()


def test_a_file_may_choose_among_what_is_there(exports, tmp_path):
    """An implementation that needs no download may stand in the file, and is used."""
    folder = changed(exports["bert-mini", "TriuneForMaskedLM"], tmp_path / "eager", {"attn_implementation": "eager"})
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    assert model.config._attn_implementation == "eager"


FOREIGN = {
    "some_future_field": {"a": [1, 2.5, None]},
    "peft": {"peft_type": "LORA", "r": 8},
    "task_specific_params": {"summary": {"prefix": "x"}},
    "custom_pipelines": {},
}
QUANTISED = {
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True, "skip_modules": ["lm_head"]}
}


def test_unknown_keys_of_a_file_survive_a_model(exports, tmp_path):
    """Keys of a later version or another tool are read with the model and written with it, unchanged."""
    made = exports["bert-mini", "TriuneForMaskedLM"]
    model = transformers.AutoModelForMaskedLM.from_pretrained(changed(made, tmp_path / "foreign", FOREIGN))
    model.save_pretrained(tmp_path / "again")
    assert read_json(tmp_path / "again" / "config.json") == read_json(made.folder / "config.json") | FOREIGN


def test_quantiser_key_survives_a_configuration(exports, tmp_path):
    """The entry that a quantiser leaves in config.json is read and written unchanged."""
    made = exports["bert-mini", "TriuneForMaskedLM"]
    config = transformers.AutoConfig.from_pretrained(changed(made, tmp_path / "quantised", QUANTISED))
    config.save_pretrained(tmp_path / "again")
    assert read_json(tmp_path / "again" / "config.json") == read_json(made.folder / "config.json") | QUANTISED


def test_a_file_cannot_stop_the_code_from_travelling(exports, tmp_path):
    """A private key of transformers in config.json does not change what is saved: against the list of sources."""
    made = exports["bert-mini", "TriuneForMaskedLM"]
    folder = changed(made, tmp_path / "odd", {"_auto_class": "AutoConfig", "auto_map": {"AutoConfig": "x.Y"}})
    transformers.AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert {file.name for file in (tmp_path / "again").glob("*.py")} == CODE
    assert read_json(tmp_path / "again" / "config.json")["auto_map"] == AUTO_MAP


def test_unknown_key_of_a_user_is_an_error():
    """What a file may hold, a user may not: a misspelt field is refused with the nearest name and the real fields."""
    with pytest.raises(ValueError, match="no field 'hiden_size'; did you mean 'hidden_size'") as caught:
        TriuneConfig(hiden_size=32)
    with pytest.raises(ValueError, match="no field 'num_hidden_layer'; did you mean 'num_hidden_layers'"):
        preset("bert-mini", num_hidden_layer=2)
    listed = str(caught.value).partition("(fields: ")[2].rstrip(")").split(", ")
    defaults = TriuneConfig()
    assert TriuneConfig(**{name: getattr(defaults, name) for name in listed}).to_dict() == defaults.to_dict()


# ---------------------------------------------------------------------------------------------------------------------
# Older folders


@pytest.mark.parametrize("lack", ["few-fields", "derived-fields-are-null", "names-instead-of-entries"])
def test_older_folder_loads(older, first, second, lack):
    """What config.json lacks is filled in, here, in a clean process, and in a clean process after saving there:
    difference 0.0 against the model that was saved."""
    made = older[lack]
    model = transformers.AutoModelForMaskedLM.from_pretrained(made.folder)
    with torch.no_grad(), one_thread():
        assert difference(model(**make_inputs()["text"]).logits, made.output) == 0.0
    for out, visited in (first, second):
        assert difference(load_file(out / "outputs.safetensors")[lack], made.output) == 0.0
        assert visited.console[lack] == ""


def test_defaults_are_frozen(older):
    """A file that leaves fields out means these values, in every later version: against the list of the first one."""
    config = TriuneConfig.from_pretrained(older["few-fields"].folder).to_dict()
    attention = {"type": "bidirectional", "qkv_bias": True, "out_bias": True, "qk_norm": False, "scale": None}
    expected = {
        **{"embedding": {"type": "tokens", "type_vocab_size": 0, "norm": "none", "scale": False}},
        **{"position": {"type": "learned", "frozen": False}, "norm": {"type": "layernorm", "eps": 1e-5, "bias": True}},
        **{"norm_placement": "pre", "final_norm": True, "attention": attention},
        **{"feed_forward": {"type": "plain", "bias": True, "dropout": 0.0}, "hidden_act": "gelu"},
        **{"residual": {"type": "plain", "stochastic_depth": 0.0, "zero_init": False}},
        **{"pooling": {"type": "cls", "dense": False}, "classifier": {"type": "linear", "bias": True}},
        **{"lm_head": {"type": "plain", "bias": False, "softcap": None}},
        **{"num_key_value_heads": 4, "head_dim": 8, "intermediate_size": 128, "max_position_embeddings": 512},
        **{"layer_types": ["full_attention"] * 2, "sliding_window": None, "tie_word_embeddings": True},
        **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": None},
        **{"initializer_range": 0.02, "use_cache": True},
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    }
    assert {key: config[key] for key in expected} == expected
