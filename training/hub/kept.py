"""What people have written on a page, and what becomes of it when the page is made again.

    <!-- yours: about (kept when the card is made again) -->
    Whatever stands here is kept as it is.
    <!-- end of yours -->

Notable: nothing is lost without a word. A page has a part for each of `PARTS`. If it was changed outside of them,
which the sum in its first comment tells, making it again is refused. A page that somebody wrote without any of this
goes into the part `about`, as it is; one that transformers made, with nothing in it yet, is replaced.
"""

import hashlib
import re
from typing import Any

from huggingface_hub.repocard import REGEX_YAML_BLOCK

from triune.configuration.configuration_card import BY_TRAINER, is_form
from triune.configuration.configuration_card import OURS as PUSHED
from triune.configuration.configuration_triune import nearest
from triune.training.arguments import read_yaml
from triune.training.hub.content import CARD
from triune.training.hub.markdown import Markdown


PARTS = ("about", "uses", "limits")
OPEN = re.compile(r"<!-- yours: *(?P<name>[^\s(>]*)[^>]*-->\s*")
CLOSE = re.compile(r"<!-- end of yours -->\s*")
FIRST = re.compile(r"\s*<!-- Made by Triune [^>]*; revision: (?P<revision>\S+); sum: (?P<sum>\w+) -->\s*")
UNPINNED = "-"  # in the place of a revision
TITLE = re.compile(r"\s*# [^\n]*\s*")


def part(name: str, content: str) -> Markdown:
    """A part of a page, between its markers."""
    return Markdown(f"<!-- yours: {name} (kept when the card is made again) -->\n{content}<!-- end of yours -->")


# ---------------------------------------------------------------------------------------------------------------------
# Reading a page


def split(text: str) -> tuple[dict[str, Any], str]:
    """The metadata of a page and its body."""
    text = text.removeprefix("\ufeff")
    head = REGEX_YAML_BLOCK.match(text)
    if head is None:
        return {}, text
    found = read_yaml("\n" + head.group(2), CARD) or {}  # with its lines numbered as those of the page
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{CARD}: what stands between the lines --- must be a mapping of names to values")
    return found, text[head.end() :]


def hand_written(text: str) -> dict[str, str]:
    """The parts of a page that are people's own, as they are."""
    found: dict[str, str] = {}
    inside, began, body = None, 0, split(text)[1].splitlines(keepends=True)
    above = len(text.splitlines()) - len(body)
    for place, line in enumerate(body, start=above + 1):
        opens = OPEN.fullmatch(line)
        if opens:
            refuse_beginning(place, opens["name"], inside, found)
            inside, began = opens["name"], place
            found[inside] = ""
        elif CLOSE.fullmatch(line):
            if inside is None:
                raise ValueError(f"{CARD}, line {place}: a part ends here, and none has begun")
            inside = None
        elif inside:
            found[inside] += line
    if inside:
        raise ValueError(f"{CARD}, line {began}: the part {inside!r} begins here and has no end")
    return found


def refuse_beginning(place: int, name: str, inside: str | None, found: dict[str, str]) -> None:
    wrong = {
        f"the part {name!r} begins here, and {inside!r} has not ended": inside is not None,
        f"there is no part {name!r}, only {', '.join(PARTS)}{nearest(name, PARTS)}": name not in PARTS,
        f"the part {name!r} begins a second time": name in found,
    }
    for says, applies in wrong.items():
        if applies:
            raise ValueError(f"{CARD}, line {place}: {says}")


def revision(text: str) -> str | None:
    """The revision that a page tells its readers to load; None for a page that names none."""
    first = FIRST.match(split(text)[1])
    return None if first is None or first["revision"] == UNPINNED else first["revision"]


def checksum(body: str) -> str:
    """Of all that is not people's own; how its words are spread over lines does not matter."""
    outside, keep, first = [], True, FIRST.match(body)
    for line in body[first.end() if first else 0 :].splitlines():
        keep = keep or bool(CLOSE.fullmatch(line))
        outside += line.split() if keep else []
        keep = keep and not OPEN.fullmatch(line)
    return hashlib.sha256(" ".join(outside).encode("utf-8", "replace")).hexdigest()[:12]


def first_comment(body: str, revision: str | None) -> str:
    """The line above a body: how it was made, and what is to be read from it again."""
    return (
        "<!-- Made by Triune from the files of the model: write between the lines that say yours, the rest is made "
        f"again; revision: {revision or UNPINNED}; sum: {checksum(body)} -->\n\n"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Taking over


def taken_over(former: str | None) -> dict[str, str]:
    """The parts that a new page takes from the one that it replaces."""
    body = split(former)[1] if former else ""
    parts = hand_written(former) if former else {}
    first = FIRST.match(body)
    if first or parts:
        if first is None or first["sum"] != checksum(body):
            raise ValueError(
                f"{CARD} was changed outside of the parts that are kept ({', '.join(PARTS)}): move what was written "
                "into one of them, between its two lines; or delete the file, and it is made anew"
            )
        return parts
    return {} if is_stub(body) else {"about": f"\n{PUSHED.sub('', body).strip()}\n\n"}


def is_stub(body: str) -> bool:
    """Whether nobody has written anything on this page: transformers has, its Trainer (which asks whoever reads its
    page to take the remark out that it was made by itself), or a model that was pushed."""
    return is_form(body) or bool(BY_TRAINER.search(body)) or bool(TITLE.fullmatch(PUSHED.sub("", body)))
