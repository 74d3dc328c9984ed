"""What the Hub of the tests (`hub_server.py`) says of the YAML at the top of a model card, as the real one does.

Errors refuse a card, warnings do not. Checked are the fields that have a form: names of licences, languages,
repositories and tasks, what must be an array, what a `model-index` must say. The Hub reads YAML 1.2: `no` is a word
there (and Norwegian), and a key may stand only once.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import yaml


BLOCK = re.compile(r"\A(?:\s*---(?:\r\n|\r|\n))([\S\s]*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|\Z)")
REPO = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")
DATASET = re.compile(r"(?:[\w-]+/)?[\w.-]+")  # the type of a dataset in a model-index
LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")  # by its form: the Hub knows the list of ISO 639

# As the Hub listed them in May 2026.
LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown other
""".split()

TASKS = """
text-classification token-classification table-question-answering question-answering zero-shot-classification
translation summarization feature-extraction text-generation text2text-generation fill-mask sentence-similarity
text-to-speech text-to-audio automatic-speech-recognition audio-to-audio audio-classification audio-text-to-text
voice-activity-detection depth-estimation image-classification object-detection image-segmentation text-to-image
image-to-text image-to-image image-to-video unconditional-image-generation video-classification
reinforcement-learning robotics tabular-classification tabular-regression tabular-to-text table-to-text
multiple-choice text-ranking text-retrieval time-series-forecasting text-to-video image-text-to-text
visual-question-answering document-question-answering zero-shot-image-classification graph-ml mask-generation
zero-shot-object-detection text-to-3d image-to-3d image-feature-extraction video-text-to-text keypoint-detection
visual-document-retrieval any-to-any video-to-video other
""".split()
RELATIONS = ("adapter", "merge", "quantized", "finetune")


class Loader(yaml.SafeLoader):
    """YAML 1.2 as far as cards need it: only `true` and `false` are booleans, no key twice."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.MarkedYAMLError(problem=f"duplicated mapping key {twice!r}", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"true|false", re.IGNORECASE), list("tTfF"))


def read(card: str) -> dict[str, Any]:
    """The metadata of a card; none if it is not a mapping or no YAML."""
    block = BLOCK.match(card)
    try:
        found = yaml.load(block[1], Loader) if block else None
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def check(card: str) -> tuple[list[str], list[str]]:
    """Errors and warnings."""
    block = BLOCK.match(card)
    try:
        found = yaml.load(block[1], Loader) if block else None
    except yaml.YAMLError as error:
        return [f"bad YAML: {' '.join(str(error).split())}"], []
    if not found:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(found, dict):
        return ['"value" must be of type object'], []
    errors = [message for name, rule in FIELDS.items() if name in found for message in rule(found[name], name)]
    return errors, list(warnings(found))


def warnings(found: dict[str, Any]) -> Iterator[str]:
    task = found.get("pipeline_tag")
    if task is not None and task not in TASKS:
        yield f'The pipeline tag "{task}" is not in the official list: {", ".join(TASKS)}'


# ---------------------------------------------------------------------------------------------------------------------
# Rules: (value, where it stands) -> messages

Rule = Callable[[Any, str], Iterator[str]]


def text(value, where: str) -> Iterator[str]:
    if not isinstance(value, str):
        yield f'"{where}" must be a string'


def flag(value, where: str) -> Iterator[str]:
    if not isinstance(value, bool):
        yield f'"{where}" must be a boolean'


def anything(value, where: str) -> Iterator[str]:
    if value is None:
        yield f'"{where}" is required'


def one_of(allowed) -> Rule:
    def rule(value, where):
        if value not in allowed:
            yield f'"{where}" must be one of [{", ".join(allowed)}]'

    return rule


def form(pattern: re.Pattern, otherwise: str) -> Rule:
    def rule(value, where):
        if not isinstance(value, str):
            yield f'"{where}" must be a string'
        elif not pattern.fullmatch(value):
            yield f'"{where}" with value "{value}" {otherwise}'

    return rule


def language(value, where: str) -> Iterator[str]:
    if isinstance(value, str) and value != value.lower():
        yield f'"{where}" must only contain lowercase characters'
    else:
        yield from form(LANGUAGE, NO_LANGUAGE)(value, where)


def array(item: Rule) -> Rule:
    def rule(value, where):
        if not isinstance(value, list):
            yield f'"{where}" must be an array'
            return
        for index, one in enumerate(value):
            yield from item(one, f"{where}[{index}]")

    return rule


def one_or_more(item: Rule) -> Rule:
    """An array, or what would be its only item."""

    def rule(value, where):
        yield from (array(item) if isinstance(value, list) else item)(value, where)

    return rule


class Part(NamedTuple):
    name: str
    rule: Rule
    needed: bool = True


def mapping(*parts: Part) -> Rule:
    def rule(value, where):
        if not isinstance(value, dict):
            yield f'"{where}" must be of type object'
            return
        for part in parts:
            if part.name in value:
                yield from part.rule(value[part.name], f"{where}.{part.name}")
            elif part.needed:
                yield f'"{where}.{part.name}" is required'

    return rule


NO_LANGUAGE = (
    "is not valid. It must be an ISO 639-1, 639-2 or 639-3 code (two/three letters), or a special value like "
    '"code", "multilingual". If you want to use BCP-47 identifiers, you can specify them in language_bcp47.'
)
NO_DATASET = "is not valid. If possible, use a dataset id from https://hf.co/datasets."
NO_MODEL = "is not valid. Use a model id from https://hf.co/models."
NO_TYPE = f"fails to match the required pattern: {DATASET.pattern}"

METRIC = mapping(Part("type", text), Part("value", anything), Part("name", text, False), Part("verified", flag, False))
RESULT = mapping(
    Part("task", mapping(Part("type", text), Part("name", text, False))),
    Part("dataset", mapping(Part("type", form(DATASET, NO_TYPE)), Part("name", text))),
    Part("metrics", array(METRIC)),
    Part("source", mapping(Part("url", text), Part("name", text, False)), False),
)
FIELDS: dict[str, Rule] = {
    "license": one_or_more(one_of(LICENSES)),
    "license_name": text,
    "license_link": text,
    "language": one_or_more(language),
    "library_name": text,
    "pipeline_tag": text,
    "thumbnail": text,
    "tags": array(text),
    "datasets": one_or_more(form(REPO, NO_DATASET)),
    "metrics": one_or_more(text),
    "base_model": one_or_more(form(REPO, NO_MODEL)),
    "base_model_relation": one_of(RELATIONS),
    "new_version": form(REPO, NO_MODEL),
    "widget": array(mapping()),
    "model-index": array(mapping(Part("name", text), Part("results", array(RESULT)))),
}
