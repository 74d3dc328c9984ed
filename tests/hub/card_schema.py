"""What the Hub accepts at the head of a model's page: its fields, their types, and the lists that some must be of.

    problems({"license": "apache-2"})   # ["license: 'apache-2' is none that the Hub knows"]

From the Hub's documentation (model cards, licences, widgets). Fields that it does not know are allowed, as there. It
asks more than the Hub of the tests does, whose lists it uses (`hub_metadata.py`): every part of a widget and of
measured values has its form here. Written apart from what writes cards.
"""

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from hub_metadata import DATASET, LANGUAGE, LICENSES, REPO, TASKS


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


def known(names: Collection[str]) -> Check:
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
    mapping({"src": like(re.compile(r"https://\S+"))}, {**SHOWN, "candidate_labels": text}),
)
METRIC = mapping(
    {"type": text, "value": value_of_a_metric},
    {"name": text, "config": text, "args": anything, "verified": boolean, "verifyToken": text},
)
RESULT = mapping(
    {
        "task": mapping({"type": text}, {"name": text}),
        "dataset": mapping(
            {"type": like(DATASET), "name": text}, {"config": text, "split": text, "revision": text, "args": anything}
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
        "pipeline_tag": known(TASKS),
        "tags": many(text),
        "language": one_or_many(like(LANGUAGE)),
        "datasets": one_or_many(like(REPO)),
        "metrics": many(like(re.compile(r"[\w.-]+"))),
        "base_model": one_or_many(like(REPO)),
        "new_version": like(REPO),
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
