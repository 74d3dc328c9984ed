"""What the Hub accepts at the head of a model's page: its fields, their types, and the lists that some must be of.

    problems({"license": "apache-2"})   # ["license: 'apache-2' is none that the Hub knows"]

From the Hub's documentation (model cards, licences, widgets) and the tasks that its own library lists. Fields that it
does not know are allowed, as there. Written for tests, apart from what writes cards: the lists are not shared.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any


LICENSES = set(
    "afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 "
    "bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 "
    "cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 "
    "cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 "
    "etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community "
    "h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 "
    "lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl "
    "postgresql unknown unlicense wtfpl zlib".split()
)
PIPELINE_TAGS = set(
    "any-to-any audio-classification audio-text-to-text audio-to-audio automatic-speech-recognition biology "
    "depth-estimation document-question-answering feature-extraction fill-mask graph-ml image-classification "
    "image-feature-extraction image-segmentation image-text-to-text image-to-3d image-to-image image-to-text "
    "image-to-video keypoint-detection mask-generation multiple-choice object-detection other question-answering "
    "reinforcement-learning robotics sentence-similarity summarization table-question-answering table-to-text "
    "tabular-classification tabular-regression tabular-to-text text-classification text-generation text-ranking "
    "text-retrieval text-to-3d text-to-audio text-to-image text-to-speech text-to-video text2text-generation "
    "time-series-forecasting token-classification translation unconditional-image-generation video-classification "
    "video-text-to-text visual-document-retrieval visual-question-answering voice-activity-detection "
    "zero-shot-classification zero-shot-image-classification zero-shot-object-detection".split()
)
LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
REPOSITORY = re.compile(r"([\w.-]+/)?[\w.-]+", re.ASCII)

Check = Callable[[Any, str], Iterator[str]]


# ---------------------------------------------------------------------------------------------------------------------
# Parts of a schema: each gives what is wrong, with the place where it is


def text(value: Any, place: str) -> Iterator[str]:
    if not isinstance(value, str) or not value.strip():
        yield f"{place}: {value!r} is no text"


def string(value: Any, place: str) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"{place}: {value!r} is no string"


def number(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        yield f"{place}: {value!r} is no number"


def boolean(value: Any, place: str) -> Iterator[str]:
    if not isinstance(value, bool):
        yield f"{place}: {value!r} is neither true nor false"


def anything(value: Any, place: str) -> Iterator[str]:
    yield from ()


def value_of_a_metric(value: Any, place: str) -> Iterator[str]:
    yield from text(value, place) if isinstance(value, str) else number(value, place)


def known(names: set[str]) -> Check:
    def check(value: Any, place: str) -> Iterator[str]:
        if value not in names:
            yield f"{place}: {value!r} is none that the Hub knows"

    return check


def like(pattern: re.Pattern[str]) -> Check:
    def check(value: Any, place: str) -> Iterator[str]:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            yield f"{place}: {value!r} is not of the form {pattern.pattern}"

    return check


def many(one: Check) -> Check:
    def check(value: Any, place: str) -> Iterator[str]:
        if not isinstance(value, list) or not value:
            yield f"{place}: {value!r} is no list, or an empty one"
            return
        for index, item in enumerate(value):
            yield from one(item, f"{place}[{index}]")

    return check


def one_or_many(one: Check) -> Check:
    return lambda value, place: (many(one) if isinstance(value, list) else one)(value, place)


def mapping(needed: dict[str, Check], further: dict[str, Check], others: bool = False) -> Check:
    """`others`: fields that are not named are allowed."""

    def check(value: Any, place: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{place}: {value!r} is no mapping"
            return
        yield from (f"{place}: {name} is missing" for name in needed if name not in value)
        for name, content in value.items():
            if name in needed or name in further:
                yield from {**needed, **further}[name](content, f"{place}.{name}".lstrip("."))
            elif not others:
                yield f"{place}: there is no field {name!r}"

    return check


def either(*checks: Check) -> Check:
    def check(value: Any, place: str) -> Iterator[str]:
        found = [list(one(value, place)) for one in checks]
        yield from () if [] in found else min(found, key=len)

    return check


# ---------------------------------------------------------------------------------------------------------------------
# The schema

LABELS = many(mapping({"label": string, "score": number}, {}))
OUTPUT = either(LABELS, mapping({"text": string}, {}), mapping({"url": text}, {}))
SHOWN = {"example_title": text, "group": text, "parameters": mapping({}, {}, others=True), "output": OUTPUT}
WIDGET = either(
    mapping({"text": text}, SHOWN),
    mapping({"src": like(re.compile(r"https://\S+"))}, SHOWN),
)
METRIC = mapping(
    {"type": text, "value": value_of_a_metric},
    {"name": text, "config": text, "args": anything, "verified": boolean, "verifyToken": text},
)
RESULT = mapping(
    {
        "task": mapping({"type": text}, {"name": text}),
        "dataset": mapping(
            {"type": text, "name": text}, {"config": text, "split": text, "revision": text, "args": anything}
        ),
        "metrics": many(METRIC),
    },
    {"source": mapping({"url": text}, {"name": text})},
)
CARD = mapping(
    {},
    {
        "license": one_or_many(known(LICENSES)),
        "license_name": like(re.compile(r"[a-z0-9.-]+")),
        "license_link": text,
        "library_name": text,
        "pipeline_tag": known(PIPELINE_TAGS),
        "tags": many(text),
        "language": one_or_many(like(LANGUAGE)),
        "datasets": one_or_many(like(REPOSITORY)),
        "metrics": many(like(re.compile(r"[\w.-]+"))),
        "base_model": one_or_many(like(REPOSITORY)),
        "new_version": like(REPOSITORY),
        "thumbnail": text,
        "widget": many(WIDGET),
        "model-index": many(mapping({"name": text, "results": many(RESULT)}, {})),
    },
    others=True,
)


def problems(metadata: Any) -> list[str]:
    """What the Hub would not accept; nothing for what it would."""
    found = list(CARD(metadata, ""))
    if isinstance(metadata, dict) and metadata.get("license") == "other" and "license_name" not in metadata:
        found.append("license: 'other' needs a license_name")
    return found
