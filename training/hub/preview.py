"""A card as a page to look at before anything is published: what the Hub would make of it, in one local HTML file.

    write(card, Path("runs/bert/model"), "user/bert", Path("runs/bert/preview.html"))
    missing(card, Path("runs/bert/model"))              # the pictures that the page cannot show

Notable: the page is whole by itself. Styles are inside, pictures are data URIs, there is no script, and a policy in
its head forbids a browser to load anything. Only what lies in the folder (or in `files`: what will travel) is shown or
linked to; a picture that is not there leaves a visible gap with its name. Every string of the card is escaped.

Where the page differs from the Hub's: HTML in a card shows as text, except comments, which do not show (the Hub keeps
some tags and drops the others); bare addresses are no links; footnotes, formulas and alerts stay as they are written;
pictures from elsewhere are named, not loaded. Widgets do not compute, there as here: they show the recorded outputs.
"""

import base64
import html
import math
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import pygments
import pygments.formatters
import pygments.lexers
import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from jinja2 import Environment, StrictUndefined, Template
from markdown_it import MarkdownIt
from markupsafe import Markup
from pygments.util import ClassNotFound
from safetensors import SafetensorError, safe_open

from triune.training.console import number, quantity
from triune.training.report import replace


HUB = "https://huggingface.co"
README = "README.md"

# What a browser shows, by how such a file begins: a name can claim anything.
PICTURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
}
# Where the Hub's words differ from the card's.
SPELLINGS = {
    "transformers": "Transformers",
    "fill-mask": "Fill-Mask",
    "zero-shot-classification": "Zero-Shot Classification",
    "zero-shot-image-classification": "Zero-Shot Image Classification",
    "en": "English",
    "de": "German",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "ja": "Japanese",
    "ru": "Russian",
    "zh": "Chinese",
}
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)
LEADS = re.compile(r"#|(https?|mailto):", re.IGNORECASE)
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


# ---------------------------------------------------------------------------------------------------------------------
# The card and the files around it


class Card(NamedTuple):
    metadata: dict[str, Any]
    body: str  # Markdown


def split(card: str) -> Card:
    """The metadata and the Markdown of a card; without metadata all of it is Markdown."""
    card = card.removeprefix("\ufeff")
    block = REGEX_YAML_BLOCK.search(card)
    if block is None:
        return Card({}, card)
    try:
        metadata = yaml.safe_load(block.group(2))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a ValueError: a date that no calendar has
        raise ValueError(f"the card's metadata, {wrong_yaml(error, card, block)}") from error
    if not isinstance(metadata, dict | None):
        raise ValueError(f"the card's metadata must be lines of `name: value`, and is {metadata!r:.60}")
    return Card(metadata or {}, card[block.end() :])


def wrong_yaml(error: Exception, card: str, block: re.Match) -> str:
    """What is wrong, and in which line of the card as far as YAML tells."""
    text = block.group(2)
    first = card.count("\n", 0, block.start(2)) + 1
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"line {first + mark.line}: {error.problem}"
    if hasattr(error, "position"):
        line = first + text.count("\n", 0, error.position)
        return f"line {line}: the character {error.character:#x} is not allowed"
    return f"lines {first} to {first + text.count(chr(10))}: {error}"


def lying(folder: Path) -> dict[str, Path]:
    """The files of a folder, as paths in a repository; neither hidden ones nor links that lead out of it."""
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is no folder: a finished run leaves its model in runs/<name>/model")
    inside = folder.resolve()
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in found.items()
        if path.resolve().is_relative_to(inside) and not any(part.startswith(".") for part in name.parts)
    }


class Repository(NamedTuple):
    """What the page may show and link to."""

    name: str
    files: Mapping[str, Path | bytes]  # path in the repository -> the file, or its content
    base: str  # the folder as seen from the page

    def path(self, address: str) -> str | None:
        """The place in this repository that a card's address means; None: it is elsewhere."""
        own = re.match(rf"{HUB}/{re.escape(self.name)}/(?:resolve|blob|raw)/[^/]+/", address) if self.name else None
        address = address[own.end() :] if own else address
        if ELSEWHERE.match(address) or address.startswith(("/", "#")):
            return None
        return posixpath.normpath(unquote(re.split("[?#]", address)[0]))

    def link(self, path: str) -> str | None:
        """Where a browser finds the file; None where it has none to open."""
        found = isinstance(self.files.get(path), Path)
        return posixpath.join(self.base, quote(path)) if found else None

    def data(self, path: str) -> str | None:
        """A picture as a data URI; None for what is not there or no picture."""
        file = self.files.get(path, b"")
        content = file if isinstance(file, bytes) else file.read_bytes()
        kind = next((kind for start, kind in PICTURES.items() if content.startswith(start)), None)
        return kind and f"data:{kind};base64,{base64.b64encode(content).decode()}"


# ---------------------------------------------------------------------------------------------------------------------
# Markdown


def picture(repository: Repository, address: str, alt: str, title: str = "") -> str:
    """The picture itself, or a gap that says what would be there."""
    path = repository.path(address)
    shown = address if path is None and address.startswith("data:image/") else path and repository.data(path)
    if shown:
        titled = f' title="{html.escape(title)}"' if title else ""
        return f'<img src="{html.escape(shown)}" alt="{html.escape(alt)}"{titled}>'
    if path is None:
        return gap("gap away", f"not loaded here: {address}", alt)
    return gap("gap", f"{path} is no picture" if path in repository.files else f"missing picture: {path}", alt)


def gap(kind: str, says: str, alt: str) -> str:
    return f'<span class="{kind}">{html.escape(says)}<small>{html.escape(alt)}</small></span>'


def render_image(self, tokens, place, options, env) -> str:
    token = tokens[place]
    alt = self.renderInlineAsText(token.children or [], options, env)
    return picture(env["repository"], token.attrs["src"], alt, token.attrs.get("title", ""))


def render_link(self, tokens, place, options, env) -> str:
    """Links to files of the repository open the local ones; one to a file that is not there has nowhere to lead."""
    repository, token = env["repository"], tokens[place]
    address = token.attrs["href"]
    path = repository.path(address)
    leads_to = abroad(address) if path is None else repository.link(path)
    says = "not an address of the web" if path is None else f"no such file: {path}"
    token.attrs |= {"href": leads_to} if leads_to else {"class": "dead", "title": says}
    if leads_to is None:
        del token.attrs["href"]
    return self.renderToken(tokens, place, options, env)


def abroad(address: str) -> str | None:
    """Where an address leads on a page of the Hub; None where it would not let it lead."""
    if address.startswith("/"):
        return f"https:{address}" if address.startswith("//") else HUB + address
    return address if LEADS.match(address) else None


def render_heading(self, tokens, place, options, env) -> str:
    """With an id, so that `#use-it` leads there."""
    words = re.sub(r"[^\w\- ]", "", tokens[place + 1].content.lower()).strip().replace(" ", "-")
    times = env["headings"][words]
    env["headings"][words] += 1
    tokens[place].attrs["id"] = f"{words}-{times}" if times else words
    return self.renderToken(tokens, place, options, env)


def render_html(self, tokens, place, options, env) -> str:
    return html.escape(COMMENT.sub("", tokens[place].content).strip("\n"))


def render_html_block(self, tokens, place, options, env) -> str:
    text = render_html(self, tokens, place, options, env)
    return f"<p>{text}</p>\n" if text.strip() else ""


def highlighted(code: str, language: str, attributes: str) -> str:
    try:
        lexer = pygments.lexers.get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        return html.escape(code)
    return pygments.highlight(code, lexer, pygments.formatters.HtmlFormatter(nowrap=True))


RULES: dict[str, Callable] = {
    "image": render_image,
    "link_open": render_link,
    "heading_open": render_heading,
    "html_inline": render_html,
    "html_block": render_html_block,
}


def markdown() -> MarkdownIt:
    """CommonMark with tables and strikethrough. HTML is recognised, for its comments to be left out, and escaped."""
    made = MarkdownIt("commonmark", {"html": True, "highlight": highlighted}).enable(["table", "strikethrough"])
    for name, rule in RULES.items():
        made.add_render_rule(name, rule)
    return made


def body(text: str, repository: Repository) -> Markup:
    return Markup(markdown().render(text, {"repository": repository, "headings": Counter()}))


# ---------------------------------------------------------------------------------------------------------------------
# Metadata. A card can hold anything anywhere: what has not the expected shape is left out.


def entries(value: Any) -> list:
    """The Hub takes one value for a list of one."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def mappings(value: Any) -> list[dict]:
    return [entry for entry in entries(value) if isinstance(entry, dict)]


def mapping(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def words(value: Any) -> list[str]:
    return [str(entry) for entry in entries(value)]


def spelled(word: str) -> str:
    return SPELLINGS.get(word, word)


class Chip(NamedTuple):
    kind: str  # its class
    text: str
    says: str = ""  # before it, in grey


def chips(metadata: dict[str, Any], files: Mapping[str, Any]) -> list[Chip]:
    """In the Hub's order. The tags that it adds by itself are added here too."""
    tags = words(metadata.get("pipeline_tag"))
    kept = [word for word in words(metadata.get("license")) if word != "other"]
    license = kept or words(metadata.get("license_name"))
    found = {
        "Safetensors": any(WEIGHTS.fullmatch(path) for path in files),
        "Eval Results": bool(results(metadata)),
    }
    return [
        *(Chip("task", SPELLINGS.get(word, word.replace("-", " ").title())) for word in tags),
        *(Chip("library", spelled(word)) for word in words(metadata.get("library_name"))),
        *(Chip("library", word) for word, is_so in found.items() if is_so),
        *(Chip("data", word, "Dataset:") for word in words(metadata.get("datasets"))),
        *(Chip("language", spelled(word)) for word in words(metadata.get("language"))),
        *(Chip("tag", word) for word in words(metadata.get("tags"))),
        *(Chip("license", word, "License:") for word in license),
    ]


class Bar(NamedTuple):
    label: str
    score: str
    percent: str


def bar(entry: dict[str, Any]) -> Bar:
    try:
        score = float(entry.get("score"))
    except (TypeError, ValueError):
        score = math.nan
    shown = f"{score:.3f}" if math.isfinite(score) else ""
    return Bar(str(entry.get("label", "")), shown, f"{100 * min(max(score, 0), 1) if shown else 0:.1f}")


class Example(NamedTuple):
    title: str
    text: str
    picture: Markup
    answer: str
    answer_picture: Markup
    bars: list[Bar]


def examples(metadata: dict[str, Any], repository: Repository) -> list[Example]:
    """The widget's inputs, with the outputs that the card has recorded."""

    def shown(address: Any, alt: str) -> Markup:
        return Markup(picture(repository, str(address), alt) if address else "")

    made = []
    for place, entry in enumerate(mappings(metadata.get("widget")), start=1):
        title = str(entry.get("example_title") or f"Example {place}")
        output = mapping(entry.get("output"))
        made.append(
            Example(
                title,
                "\n".join(words(entry.get("text"))),
                shown(entry.get("src"), title),
                "\n".join(words(output.get("text"))),
                shown(output.get("url"), f"{title}: output"),
                [bar(one) for one in mappings(entry.get("output")) if "label" in one],
            )
        )
    return made


class Result(NamedTuple):
    """A row of the evaluation panel."""

    on: str  # the data
    source: str
    metric: str
    value: str


def results(metadata: dict[str, Any]) -> list[Result]:
    """What `model-index` says was measured, three decimals as on the Hub."""
    rows = []
    measured = [one for model in mappings(metadata.get("model-index")) for one in mappings(model.get("results"))]
    for one in measured:
        data, source = mapping(one.get("dataset")), mapping(one.get("source"))
        on = " · ".join(words(data.get("name", data.get("type"))) + words(data.get("split")))
        for metric in mappings(one.get("metrics")):
            said = "verified" if metric.get("verified") is True else "self-reported"
            value = metric.get("value")
            rows.append(
                Result(
                    on,
                    str(source.get("name", said)),
                    str(metric.get("name", metric.get("type", ""))),
                    f"{value:.3f}" if isinstance(value, float) else str(value),
                )
            )
    return rows


def weights(files: Mapping[str, Path | bytes]) -> dict[str, str]:
    """Number and type of the parameters, from the headers of the weights."""
    counts: Counter[str] = Counter()
    for path in (file for name, file in files.items() if WEIGHTS.fullmatch(name)):
        try:
            with safe_open(path, framework="numpy") as opened:
                tensors = [opened.get_slice(name) for name in opened.keys()]
                for tensor in tensors:
                    counts[tensor.get_dtype()] += math.prod(tensor.get_shape())
        except (SafetensorError, OSError, TypeError):
            return {"Weights": "cannot be read"}
    size = number(counts.total()).replace("k", "K").replace("G", "B")
    return {"Model size": f"{size} params", "Tensor type": " · ".join(sorted(counts))} if counts else {}


class Related(NamedTuple):
    """A model or a data set of the Hub that the card names."""

    name: str
    link: str | None


def related(value: Any, kind: str = "") -> list[Related]:
    return [Related(name, f"{HUB}/{kind}{name}" if HUB_ID.fullmatch(name) else None) for name in words(value)]


# ---------------------------------------------------------------------------------------------------------------------
# The page


@lru_cache
def template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE)


def page(card: str, folder: Path, name: str, files: Mapping[str, Path | bytes] | None = None, base: str = "") -> str:
    """The card of `folder` as a page. `files`: what will travel, if that is not all that lies there; `base`: where the
    folder lies as seen from the page, for links to its files."""
    metadata, text = split(card)
    around = {**(lying(folder) if files is None else files), README: card.encode("utf-8", "replace")}
    repository = Repository(name, around, base)
    owner, _, short = name.rpartition("/")
    sizes = {path: len(file) if isinstance(file, bytes) else file.stat().st_size for path, file in around.items()}
    named = chips(metadata, around)
    made = template().render(
        style=Markup(STYLE),
        owner=owner,
        short=short,
        name=name,
        chips=named,
        described=bool(metadata),
        newer=related(metadata.get("new_version")),
        body=body(text, repository),
        files=[(path, quantity(sizes[path], "B"), repository.link(path)) for path in sorted(around)],
        total=quantity(sum(sizes.values()), "B"),
        weights=weights(around),
        task=[chip.text for chip in named if chip.kind == "task"],
        examples=examples(metadata, repository),
        bases=related(metadata.get("base_model")),
        datasets=related(metadata.get("datasets"), "datasets/"),
        results=results(metadata),
    )
    return made.encode("utf-8", "replace").decode()  # YAML can write half a character


def write(card: str, folder: Path, name: str, target: Path, files: Mapping[str, Path | bytes] | None = None) -> Path:
    """The page as a file, whole or not at all."""
    base = Path(os.path.relpath(folder.resolve(), target.resolve().parent)).as_posix()
    replace(target, page(card, folder, name, files, quote(base)))
    return target


def missing(card: str, folder: Path, name: str = "", files: Mapping[str, Path | bytes] | None = None) -> list[str]:
    """The pictures of the repository that the card shows and that are not there, or are none. With `name`, those count
    too that are named by their address on the Hub."""
    metadata, text = split(card)
    repository = Repository(name, lying(folder) if files is None else files, "")
    tokens = [child for token in markdown().parse(text) for child in token.children or ()]
    widget = mappings(metadata.get("widget"))
    addresses = [
        *(token.attrs["src"] for token in tokens if token.type == "image"),
        *(entry.get("src") for entry in widget),
        *(mapping(entry.get("output")).get("url") for entry in widget),
    ]
    paths = dict.fromkeys(repository.path(str(address)) for address in addresses if address)
    return [path for path in paths if path is not None and repository.data(path) is None]


STYLE = """
:root { color-scheme: light; --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --tint: #f9fafb; --link: #2563eb;
  --sans: "Source Sans 3", "Source Sans Pro", -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial,
  sans-serif; --mono: "IBM Plex Mono", SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.6 var(--sans); overflow-wrap: break-word; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
.wide { max-width: 1280px; margin: 0 auto; padding: 0 24px; }
.ribbon { background: #111827; color: #d1d5db; font-size: 13px; padding: 6px 0; } .ribbon b { color: #fff; }
header { background: linear-gradient(#f3f4f6, #fff); padding-top: 28px; }
header h1 { margin: 0 0 14px; font: 600 21px/1.3 var(--mono); }
header h1 span { color: var(--soft); font-family: var(--sans); font-weight: 400; }
.chips { display: flex; flex-wrap: wrap; gap: 8px; margin-bottom: 22px; }
.chip { border: 1px solid var(--line); border-radius: 8px; padding: 1px 10px; font-size: 14px; max-width: 100%;
  background: linear-gradient(#fff, #f9fafb); unicode-bidi: isolate; }
.chip small { color: var(--soft); font-size: inherit; }
.chip::before { content: ""; display: inline-block; width: 8px; height: 8px; border-radius: 3px; margin-right: 7px;
  background: #d1d5db; }
.chip.task::before { background: #6366f1; } .chip.library::before { background: #f59e0b; }
.chip.data::before { background: #ef4444; } .chip.language::before { background: #10b981; }
.chip.license::before { background: #0ea5e9; }
.chip.tag { padding: 1px 9px; background: #fff; } .chip.tag::before { display: none; }
.tab { position: absolute; opacity: 0; }
.tabs { border-bottom: 1px solid var(--line); }
.tabs label { display: inline-block; padding: 8px 4px 9px; margin: 0 20px -1px 0; color: var(--soft); cursor: pointer;
  border-bottom: 2px solid transparent; }
.tabs label small { background: #f3f4f6; border-radius: 9px; padding: 1px 7px; margin-left: 4px; }
.tab.one:checked ~ header .one, .tab.two:checked ~ header .two { color: var(--ink); border-color: #111827;
  font-weight: 600; }
.tab.one:focus-visible ~ header .one, .tab.two:focus-visible ~ header .two { outline: 2px solid var(--link); }
.tab.one:checked ~ main.two, .tab.two:checked ~ main.one { display: none; }
main.one { display: grid; grid-template-columns: minmax(0, 1fr) 400px; }
article { max-width: 812px; padding: 32px 32px 80px 0; min-width: 0; }
aside { border-left: 1px solid var(--line); padding: 32px 0 60px 28px; min-width: 0; font-size: 15px; }
article > :first-child { margin-top: 0; }
article h1, article h2, article h3, article h4 { line-height: 1.3; margin: 1.6em 0 .6em; font-weight: 600; }
article h1 { font-size: 30px; margin-top: .4em; } article h2 { font-size: 23px; border-bottom: 1px solid var(--line);
  padding-bottom: 6px; } article h3 { font-size: 19px; } article h4 { font-size: 16px; }
article p, article ul, article ol, article blockquote, article table, article pre { margin: 0 0 16px; }
article ul, article ol { padding-left: 26px; } article li + li { margin-top: 4px; }
article img { max-width: 100%; height: auto; border-radius: 6px; vertical-align: middle; }
article blockquote { border-left: 3px solid #d1d5db; padding: 2px 0 2px 16px; color: #4b5563; }
article blockquote > :last-child { margin-bottom: 0; }
article hr { border: 0; border-top: 1px solid var(--line); margin: 28px 0; }
article table { display: block; width: max-content; max-width: 100%; overflow-x: auto; border-collapse: collapse;
  font-size: 15px; line-height: 1.45; }
article th, article td { border: 1px solid var(--line); padding: 7px 13px; vertical-align: top; }
article th { background: var(--tint); font-weight: 600; text-align: left; }
article td { font-variant-numeric: tabular-nums; }
code { font-family: var(--mono); font-size: .86em; background: #f3f4f6; border-radius: 4px; padding: .15em .35em; }
pre { background: var(--tint); border: 1px solid #eef0f3; border-radius: 8px; padding: 13px 16px; overflow-x: auto;
  line-height: 1.5; } pre code { background: none; padding: 0; font-size: 13.5px; overflow-wrap: normal; }
.k, .kc, .kd, .kn, .kp, .kr, .kt, .ow { color: #cf222e; } .c, .ch, .cm, .c1, .cs, .cp, .cpf { color: #6e7781; }
.s, .s1, .s2, .sa, .sb, .sc, .sd, .se, .sh, .si, .sx, .l, .ld { color: #0a3069; } .nf, .fm, .nd { color: #8250df; }
.m, .mi, .mf, .mh, .nb, .bp, .no, .o, .nv { color: #0550ae; } .nt, .na, .nc { color: #116329; }
.gap { display: flex; flex-direction: column; align-items: center; justify-content: center; min-height: 120px;
  margin: 8px 0; padding: 16px; border: 2px dashed #f59e0b; border-radius: 8px; background: #fffbeb; color: #92400e;
  font-size: 14px; text-align: center; overflow-wrap: anywhere; }
.gap small { opacity: .8; } .gap.away { border: 1px solid var(--line); background: var(--tint); color: var(--soft);
  min-height: 0; padding: 8px 12px; font-size: 13px; } .dead { color: #b91c1c; text-decoration: line-through; }
.notice { border: 1px solid #fcd34d; background: #fffbeb; color: #92400e; border-radius: 8px; padding: 9px 14px;
  margin: 0 0 20px; }
aside section + section { margin-top: 26px; border-top: 1px solid var(--line); padding-top: 22px; }
aside h2 { margin: 0 0 10px; font-size: 16px; font-weight: 600; } aside h3 { margin: 14px 0 4px; font-size: 14px;
  font-weight: 400; color: var(--soft); } aside h2 .chip { float: right; font-weight: 400; }
aside dl + dl { margin-top: 8px; }
aside dl { display: flex; flex-wrap: wrap; gap: 8px; margin: 0; }
aside dl div { display: flex; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; font-size: 14px; }
aside dt { padding: 2px 10px; color: var(--soft); } aside dd { margin: 0; padding: 2px 10px; background: #f3f4f6;
  font-weight: 600; border-left: 1px solid var(--line); }
aside p { margin: 8px 0 0; color: var(--soft); font-size: 13px; }
aside table { width: 100%; border-collapse: collapse; } aside td { padding: 4px 0; border-top: 1px solid #f3f4f6; }
aside td:last-child { text-align: right; font-weight: 600; font-variant-numeric: tabular-nums; }
details { border: 1px solid var(--line); border-radius: 8px; padding: 0 12px; }
details + details { margin-top: 8px; }
summary { padding: 7px 0; cursor: pointer; color: #4b5563; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
details[open] { padding-bottom: 12px; } details[open] summary { color: var(--ink); font-weight: 600; }
.said { white-space: pre-wrap; background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 8px 12px;
  max-height: 260px; overflow: auto; line-height: 1.45; }
.said.out { background: var(--tint); margin-top: 8px; }
details img { display: block; max-width: 100%; min-width: 112px; max-height: 200px; margin: 0 auto; border-radius: 6px;
  image-rendering: auto; } details .gap { min-height: 80px; }
.bar { display: flex; justify-content: space-between; gap: 12px; margin-top: 10px; font: 13px/1.4 var(--mono); }
.bar span:first-child { overflow: hidden; text-overflow: ellipsis; white-space: pre; }
.track { height: 5px; border-radius: 3px; background: #f3f4f6; margin-top: 3px; }
.track i { display: block; height: 5px; border-radius: 3px; background: linear-gradient(90deg, #818cf8, #6366f1); }
.track + .bar ~ .track i { background: #c7d2fe; }
main.two { padding-top: 28px; padding-bottom: 80px; }
.list { border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.list > div { display: flex; justify-content: space-between; gap: 16px; padding: 8px 16px; font-size: 15px;
  border-top: 1px solid #f3f4f6; } .list > div:first-child { border: 0; background: var(--tint); color: var(--soft); }
.list span:first-child { min-width: 0; overflow-wrap: anywhere; } .list span:last-child { color: var(--soft);
  white-space: nowrap; font-variant-numeric: tabular-nums; }
@media (max-width: 900px) {
  .wide { padding: 0 16px; } main.one { display: block; } article { padding: 22px 0 36px; max-width: none; }
  aside { border-left: 0; border-top: 1px solid var(--line); padding: 24px 0 48px; }
  article h1 { font-size: 25px; } article h2 { font-size: 20px; } header h1 { font-size: 18px; }
}
"""

# Everything is escaped but what is Markup: the style, the rendered body, pictures.
TEMPLATE = """{% macro linked(one) %}
{% if one.link %}<a href="{{ one.link }}">{{ one.name }}</a>{% else %}{{ one.name }}{% endif %}
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }} · preview</title>
<style>{{ style }}</style>
</head>
<body>
<input class="tab one" type="radio" name="tab" id="tab.one" checked>
<input class="tab two" type="radio" name="tab" id="tab.two">
<div class="ribbon"><div class="wide"><b>Preview</b> of the page on the Hub; this one is local.</div></div>
<header>
<div class="wide">
<h1>{% if owner %}<span>{{ owner }} / </span>{% endif %}{{ short }}</h1>
<div class="chips">
{% for chip in chips %}
<span class="chip {{ chip.kind }}">{% if chip.says %}<small>{{ chip.says }} </small>{% endif %}{{ chip.text }}</span>
{% endfor %}
</div>
</div>
<div class="tabs"><div class="wide">
<label class="one" for="tab.one">Model card</label>
<label class="two" for="tab.two">Files and versions <small>{{ files | length }}</small></label>
</div></div>
</header>
<main class="one wide">
<article>
{% if not described %}
<div class="notice">The card has no metadata: the Hub will not know task, library, license and language.</div>
{% endif %}
{% for one in newer %}
<div class="notice">There is a newer version of this model: {{ linked(one) }}</div>
{% endfor %}
{{ body }}
</article>
<aside>
{% if weights %}
<section><h2>Safetensors</h2><dl>
{% for label, value in weights.items() %}
<div><dt>{{ label }}</dt><dd>{{ value }}</dd></div>
{% endfor %}
</dl></section>
{% endif %}
{% if examples %}
<section><h2>Examples{% for one in task[:1] %} <span class="chip task">{{ one }}</span>{% endfor %}</h2>
{% for example in examples %}
<details name="example"{{ " open" if loop.first else "" }}><summary>{{ example.title }}</summary>
{{ example.picture }}
{% if example.text %}
<div class="said">{{ example.text }}</div>
{% endif %}
{% if example.answer %}
<div class="said out">{{ example.answer }}</div>
{% endif %}
{{ example.answer_picture }}
{% for bar in example.bars %}
<div class="bar"><span>{{ bar.label }}</span><span>{{ bar.score }}</span></div>
<div class="track"><i style="width: {{ bar.percent }}%"></i></div>
{% endfor %}
</details>
{% endfor %}
<p>Outputs as recorded in the card; nothing is computed here.</p>
</section>
{% endif %}
{% if bases %}
<section><h2>Model tree for {{ name }}</h2>
{% for one in bases %}
<dl><div><dt>Base model</dt><dd>{{ linked(one) }}</dd></div></dl>
{% endfor %}
</section>
{% endif %}
{% if datasets %}
<section><h2>Datasets used to train {{ name }}</h2>
{% for one in datasets %}
<dl><div><dt>Dataset</dt><dd>{{ linked(one) }}</dd></div></dl>
{% endfor %}
</section>
{% endif %}
{% if results %}
<section><h2>Evaluation results</h2>
{% for place, rows in results | groupby("on") %}
<h3>{{ place }}</h3>
<table>
{% for row in rows %}
<tr><td>{{ row.metric }}</td><td>{{ row.value }}</td></tr>
{% endfor %}
</table>
<p>{{ rows | map(attribute="source") | unique | join(", ") }}</p>
{% endfor %}
</section>
{% endif %}
</aside>
</main>
<main class="two wide">
<div class="list">
<div><span>{{ files | length }} files</span><span>{{ total }}</span></div>
{% for path, size, link in files %}
<div><span>{% if link %}<a href="{{ link }}">{{ path }}</a>{% else %}{{ path }}{% endif %}</span>
<span>{{ size }}</span></div>
{% endfor %}
</div>
</main>
</body>
</html>
"""
