"""Strings of users made harmless for Markdown, HTML and YAML: names of classes, texts, paths, commands, settings.

    inline("<b> | *x*")         # &lt;b&gt; \\| \\*x\\*: shows what was given, in a sentence, a heading or a table
    code("a`b")                 # ``a`b``
    fence(text, "python")       # a block of code that its content cannot end
    page = environment(folder).get_template("template.md")

Notable: a template is safe by default. What it inserts is escaped unless it is of the class `Markdown`, which only the
functions here make; None and what is missing are errors. No character survives that hides or reorders others.
"""

import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import yaml


class Markdown(str):
    """Text that is Markdown already."""


# ---------------------------------------------------------------------------------------------------------------------
# Characters


SEEN = {"\n", "\t", "\u200c", "\u200d"}  # the joiners, which scripts and emoji need, beside what is blank
REPLACED = {"Cc", "Cf", "Cs", "Co", "Cn"}  # controls, invisible and bidirectional ones, halves, those without meaning
BREAKS = str.maketrans(dict.fromkeys("\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", "\n"))


def visible(text: str) -> str:
    """Without what cannot be seen or turns the direction of writing; every kind of line break as one."""
    plain = text.replace("\r\n", "\n").translate(BREAKS)
    if plain.isascii() and plain.isprintable():
        return plain
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(letter) in REPLACED and letter not in SEEN else letter
        for letter in plain
    )


def one_line(text: str) -> str:
    return " ".join(visible(text).split())


# ---------------------------------------------------------------------------------------------------------------------
# Inside a line


ESCAPED = str.maketrans({**{mark: f"\\{mark}" for mark in "\\`*_{}[]#|~$^"}, "<": "&lt;", ">": "&gt;", "&": "&amp;"})
# What becomes a link by itself: an address of the web, of mail.
LINKS = re.compile(r"(?<=\w):(?=//)|(?<=www)\.|@", re.IGNORECASE)
# What means something at the beginning of a line: the mark of a list, the line below a heading or a table's head.
BEGINS = re.compile(r"\d{1,9}(?=[.)](?:\s|$))|(?=[-+=:])")


def inline(text: Any) -> Markdown:
    """Shows what was given, on one line, wherever a sentence, a heading or the cell of a table stands."""
    line = one_line(str(text)).translate(ESCAPED)
    line = LINKS.sub(lambda found: f"\\{found[0]}", line)
    first = BEGINS.match(line)
    if first:
        line = f"{first[0]}\\{line[first.end() :]}"
    return Markdown(line)


def longest_run(text: str, mark: str) -> int:
    return max((len(run) for run in re.findall(f"{re.escape(mark)}+", text)), default=0)


def code(text: Any) -> Markdown:
    """A code span, on one line. In a table a span cannot hold every `|`: there it is plain text."""
    line = one_line(str(text))
    if not line or "|" in line:
        return inline(line)
    marks = "`" * (longest_run(line, "`") + 1) if "`" in line else "`"
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return Markdown(f"{marks}{space}{line}{space}{marks}")


def address(path: str) -> Markdown:
    """The destination of a link to a file of the repository."""
    return Markdown(quote(visible(path)))


def picture(path: str, says: str) -> Markdown:
    return Markdown(f"![{inline(says)}]({address(path)})")


def markdown(value: Any) -> Markdown:
    """What a template inserts."""
    if isinstance(value, Markdown):
        return value
    if value is None or isinstance(value, float):
        raise ValueError(f"a page cannot show {value!r}: it has no format")
    return inline(value)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks


def fence(text: str, language: str = "") -> Markdown:
    """A block of code, between longer fences than any inside."""
    content = visible(text).strip("\n")
    marks = "`" * max(3, longest_run(content, "`") + 1)
    return Markdown(f"{marks}{language}\n{content}\n{marks}")


def row(cells: Iterable[Any]) -> Markdown:
    return Markdown(f"| {' | '.join(markdown(cell) for cell in cells)} |")


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Markdown:
    line = Markdown(f"|{'---|' * len(header)}")
    return Markdown("\n".join([row(header), line, *map(row, rows)]))


def python(value: Any) -> Markdown:
    """A literal, as one would type it."""
    text = repr(value)
    plain = isinstance(value, str) and value.isprintable() and not set(value) & set("\"'\\")
    return Markdown(f'"{value}"' if plain else text)


# ---------------------------------------------------------------------------------------------------------------------
# YAML


WORD = re.compile(rf"[A-Za-z][{string.ascii_letters}{string.digits}_./+-]*")
NO_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "nan", "inf"}


class Quoting(yaml.SafeDumper):
    """Whatever could be read as something else by another version of YAML is quoted: PyYAML reads 1e3 as a word, the
    Hub reads a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = WORD.fullmatch(text) and text.lower() not in NO_WORDS
    return dumper.represent_scalar("tag:yaml.org,2002:str", visible(text), style=None if plain else '"')


Quoting.add_representer(str, represent)
Quoting.add_representer(Markdown, represent)


def as_yaml(data: dict[str, Any]) -> Markdown:
    """A mapping, as the head of a page has it."""
    return Markdown(yaml.dump(data, Dumper=Quoting, sort_keys=False, allow_unicode=True, width=float("inf")).rstrip())


# ---------------------------------------------------------------------------------------------------------------------
# Templates


def environment(folder: Path) -> jinja2.Environment:
    """For templates of Markdown: what they insert is harmless."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        finalize=markdown,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"code": code, "python": python}
    made.globals["fenced"] = fenced
    return made


def fenced(language: str, caller: Callable[[], str]) -> Markdown:
    """For `call`, which takes the line break behind it away."""
    return Markdown(f"{fence(caller(), language)}\n")
