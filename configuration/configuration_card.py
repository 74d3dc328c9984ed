"""The card of a model that is pushed by `push_to_hub()`: what it is, how to load it, what lies there; nothing made up.

transformers sends a form with 39 times "[More Information Needed]". This puts a small card in its place, of which
every push renews the part between two comments. A card that somebody wrote stays. The one that transformers' Trainer
sends is completed, with its results kept, when the model is pushed after it:

    model.config.save_pretrained(args.output_dir)  # before training: what Trainer sends on the way lacks the code
    ...
    trainer.push_to_hub()
    trainer.model.push_to_hub(trainer.hub_model_id)

The file travels with the model, so that a copy that is pushed again gets its card too; loading does not need it.
"""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, file_exists, hf_hub_download


TAGS = ("triune", "custom_code")
FIRST, LAST = "<!-- push_to_hub() writes from here -->", "<!-- to here; what you write outside stays -->"
OURS = re.compile(f"{re.escape(FIRST)}.*?{re.escape(LAST)}", re.DOTALL)
BY_TRAINER = re.compile(r"\n?<!-- This model card has been generated automatically according to .*?-->\n", re.DOTALL)
EMPTY_SECTION = re.compile(r"\n## [^\n]+\n\nMore information needed\n")  # Trainer leaves three of them
FROM_NOTHING = "is a fine-tuned version of [](https://huggingface.co/)"  # Trainer, of a model without a name

# ---------------------------------------------------------------------------------------------------------------------
# What it says. Of the configuration's strings only those that it checks against its table of axes are shown; a branch
# may have any name, and stands in code only.

SIZES = {
    "tokens": "texts of up to {positions:,} tokens, vocabulary {vocab_size:,}",
    "patches": "images of {height} × {width} × {num_channels}, patches of {patch_size} × {patch_size}",
}
PROCESSORS = {"tokens": "tokenizer", "patches": "image_processor"}
PURPOSES = {  # of heads that no pipeline is for
    "AutoModel": "without a head",
    "AutoModelForPreTraining": "for hidden words, and for whether one text follows another",
    "AutoModelForSeq2SeqLM": "for writing a text from another",
    "AutoModelForMaskedImageModeling": "for drawing what is hidden of an image",
}
TITLE = """# {title}

"""
SENTENCE = """\
A {attention} transformer of the Triune family {purpose}: {parameters:,} parameters, {layers} layers of width \
{width}, position `{position}`, {sizes}.

## How to use it
"""
PIPELINE = """
```python
from transformers import pipeline

run = pipeline("{tag}", model={repository}, revision={branch}, trust_remote_code=True)
```
"""
MODEL = """
```python
from transformers import {auto_class}

model = {auto_class}.from_pretrained({repository}, revision={branch}, trust_remote_code=True)
```
"""
SEVERAL = """\
A model of several stacks of the Triune family {purpose}: {parameters:,} parameters; {stacks}.

## How to use it
"""
STACK = "`{name}`, {layers} layers of width {width}, position `{position}`"
CONFIGURATION = """\
The configuration of a transformer of the Triune family, and the code that builds it: there are no weights.

```python
from transformers import AutoConfig, {auto_class}

config = AutoConfig.from_pretrained({repository}, revision={branch}, trust_remote_code=True)
model = {auto_class}.from_config(config, trust_remote_code=True)
```
"""
TRUST = """
`trust_remote_code=True` runs the Python files of this repository: read them, and give a commit id from "Files and \
versions" as `revision`, which pins the code and the weights. Where Triune is installed, `import triune.modeling` \
makes it unnecessary.
"""
CONTENT = """
## What is here

`config.json`; the weights, `model.safetensors` or numbered parts and their index; in `*.py` all the code, which \
needs only torch and transformers. What turns inputs into tensors comes with `{processor}.push_to_hub({repository})`.
"""
NO_RECORD = """
No record of training travels with `push_to_hub()`: data, results and limits are for the author to add. From the \
folder of a training run, `python scripts/publish.py RUN {name}` of Triune writes a full card.
"""


def page(config, head: Any, parameters: int, name: str, branch: str, alone: bool) -> str:
    """What is said of every model. `head`: an entry of HEADS, or None for a configuration without weights; `alone`:
    nothing else stands on the card."""
    words = {"name": name, "title": name.rpartition("/")[2].replace("_", r"\_")}
    words |= {"repository": quoted(name), "branch": quoted(branch)}
    if head is None:
        words["auto_class"] = next(iter(config.heads.values())).auto_class
        return (TITLE + CONFIGURATION + TRUST).format(**words)
    words |= {"tag": head.pipeline_tag, "auto_class": head.auto_class, "purpose": purpose(config, head)}
    words |= {"parameters": parameters, **said_of(config)}
    use = (PIPELINE if head.pipeline_tag else "") + MODEL + TRUST
    sentence = SEVERAL if config.sub_configs else SENTENCE
    return (TITLE * alone + sentence + use + CONTENT + NO_RECORD * alone).format(**words)


def said_of(config) -> dict[str, Any]:
    """Of one stack what it is, of several each in a few words."""
    if config.sub_configs:
        stacks = {name: getattr(config, name) for name in config.sub_configs}
        kinds = {stack.embedding["type"] for stack in stacks.values()}
        return {
            "stacks": "; ".join(STACK.format(name=name, **size_of(stack)) for name, stack in stacks.items()),
            "processor": PROCESSORS[kinds.pop()] if len(kinds) == 1 else "processor",
        }
    return {
        **size_of(config),
        "attention": config.attention["type"],
        "sizes": sizes(config),
        "processor": PROCESSORS[config.embedding["type"]],
    }


def size_of(stack) -> dict[str, Any]:
    return {
        "layers": stack.num_hidden_layers,
        "width": stack.hidden_size,
        "position": stack.position["type"],
    }


def quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def purpose(config, head: Any) -> str:
    if head.pipeline_tag is None:
        return PURPOSES[head.auto_class]
    learned = head.pipeline_tag.endswith("classification") and not head.pipeline_tag.startswith("zero-shot")
    return f"for {head.pipeline_tag}" + (f" (labels: {config.num_labels})" if learned else "")


def sizes(config) -> str:
    entry = config.embedding
    side = entry.get("image_size")
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    own = {"height": height, "width": width, "positions": config.num_positions, "vocab_size": config.vocab_size}
    return SIZES[entry["type"]].format(**entry, **own)


# ---------------------------------------------------------------------------------------------------------------------
# Where it goes


def put_card(folder, repo_id: str, config, head: Any = None, parameters=0, revision=None, token=None) -> None:
    """Complete the card in a folder that is about to be sent to a repository."""
    file = Path(folder, "README.md")
    if not file.is_file():
        return
    # transformers reads the card of `main`, whichever branch it sends to
    card = (revision and card_of_branch(repo_id, revision, token)) or ModelCard.load(file)
    if not Path(folder, "config.json").is_file():  # an adapter, of which nothing is known here
        return file.unlink() if is_form(card.text) else None
    if is_form(card.text) or head is not None:  # a configuration that joins a model has nothing to say
        branch = "main" if revision is None or revision.startswith("refs/") else revision
        alone = "generated_from_trainer" not in (card.data.tags or ())
        complete(card, page(config, head, parameters, repo_id, branch, alone), head and head.pipeline_tag)
    card.save(file)


def card_of_branch(repo_id: str, revision: str, token) -> ModelCard | None:
    place = {"repo_id": repo_id, "filename": "README.md", "revision": revision, "token": token}
    return ModelCard.load(hf_hub_download(**place)) if file_exists(**place) else None


def is_form(text: str) -> bool:
    """transformers' form as nobody has touched it, or nothing: every line stands in the template."""
    known = ModelCard.from_template(ModelCardData()).text.splitlines()
    return all(line in known or "automatically generated" in line for line in text.splitlines())


def complete(card: ModelCard, part: str, pipeline_tag: str | None) -> None:
    """Our part in the place of the former one, of what Trainer left empty, or of the form; a card that somebody wrote
    stays."""
    part = f"{FIRST}\n\n{part}\n{LAST}"
    if OURS.search(card.text):
        card.text = OURS.sub(lambda _: part, card.text, count=1)
    elif BY_TRAINER.search(card.text):
        start, *rest = EMPTY_SECTION.split(BY_TRAINER.sub("", card.text))
        card.text = "".join((start.replace(FROM_NOTHING, "was trained from scratch"), f"\n{part}\n", *rest))
    elif is_form(card.text):
        card.text = f"\n{part}\n"
    else:
        return
    card.data.tags = list(dict.fromkeys((*TAGS, *(card.data.tags or ()))))
    card.data.pipeline_tag = pipeline_tag or card.data.pipeline_tag
