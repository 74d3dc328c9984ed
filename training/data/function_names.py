"""Docstrings and the names of the functions that they describe: the standard library, as it is installed.

    named_functions()[0]  # Named(module="__future__", docstring="Return first release in which ...", name="...")

The docstring is its first paragraph, in one line; the name is its words: `assertIsNone` is "assert is none". A
docstring that calls the function by its name would give the answer away: what shows how it is called is left out where
a docstring begins with it, and elsewhere the name becomes `IT`. A name that is a word of the language, as `close`, is
taken for a name only where it is written as one: with a bracket or a dot, or in quotes.
"""

import re
from functools import cache
from typing import NamedTuple

from triune.training.data.python_docs import documented_modules


IT = "it"
PARAGRAPH = re.compile(r"\n[^\S\n]*\n")
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")  # is_file, HTTPServer2: is file, HTTP Server 2
PLAIN = re.compile(r"[a-z]+")
PATH, ARGUMENTS = r"(?:\w+\.)*", r"\([^()]*(?:\([^()]*\)[^()]*)*\)"
# name(a, b=(1, 2)) -> int, up to the end of the line; where there is no other, what is behind the arrow is prose
SIGNATURE = rf"\A\s*(?:\w+\s*=\s*)?{PATH}{{0}}\s*{ARGUMENTS}[ \t]*(?:[-=]>[ \t]*(?:[\w.\[\], ]+(?=\n))?|--?|:)?"
WORD_AS_NAME = r"\b(?:\w+\.)+{0}\b(?:\(\))?|\b{0}\(\)|\b{0}(?=\()|(?<=[`'\"*]){0}(?=[`'\"*])"
NAME = rf"\b{PATH}{{0}}\b(?:\(\))?"


class Named(NamedTuple):
    module: str
    docstring: str
    name: str


def words_of(name: str) -> str:
    return " ".join(WORDS.findall(name)).lower()


def without_name(docstring: str, name: str) -> str:
    """The first paragraph that says something, in one line, without the name."""
    bare = name.strip("_")
    spelled = f"_*{re.escape(bare)}_*"
    if bare in docstring:
        docstring = re.sub(SIGNATURE.format(spelled), "", docstring)
    paragraph = next((part for part in PARAGRAPH.split(docstring) if part.strip()), "")
    if bare in paragraph:
        paragraph = re.sub((WORD_AS_NAME if PLAIN.fullmatch(bare) else NAME).format(spelled), IT, paragraph)
    return " ".join(paragraph.split())


@cache
def named_functions() -> tuple[Named, ...]:
    """In the order of the modules. Special methods, such as `__init__`, have no name of their own."""
    functions = [
        (module, called.removesuffix("()"), docstring)
        for module, documented in documented_modules().items()
        for called, docstring in documented
        if called.endswith("()") and not called.endswith("__()")
    ]
    found = (Named(module, without_name(docstring, name), words_of(name)) for module, name, docstring in functions)
    return tuple(one for one in found if one.docstring and one.name)
