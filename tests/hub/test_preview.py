"""The page of a card against what the card and its folder hold: read back with html.parser, looked at in a browser."""

import base64
import random
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file

from triune.training.hub import preview


NAME = "ada/tiny"
CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: fill-mask
language: en
base_model: ada/base
datasets: [ada/words]
tags: [triune, custom_code]
model-index:
- name: tiny
  results:
  - task: {type: fill-mask}
    dataset: {name: Some words, type: words, split: held-out}
    metrics:
    - {type: loss, value: 2.12355, name: Loss}
    - {type: accuracy, value: 0.5254, name: Accuracy}
  - task: {type: fill-mask}
    dataset: {name: Other words, type: other}
    metrics:
    - {type: perplexity, value: 17, verified: true}
widget:
- text: A [MASK] in the sun
  example_title: Sun
  output: [{label: cat, score: 0.875}, {label: dog, score: 0.0625}]
- text: Once upon
  output: {text: " a time"}
- src: https://huggingface.co/ada/tiny/resolve/main/samples/0.png
  output: [{label: blue, score: 1.0}]
---
<!-- generated -->
# tiny

One *sentence*. <!-- yours: about --> And ~~no~~ more.

![A figure](figures/loss.png "drawn")

<!-- several
lines -->

| metric | this | before |
|:--|--:|--:|
| loss | 2.1 | 6.1 |
| accuracy | 52% | 1% |

## Use it

```python
# <!-- stays -->
model = load("ada/tiny") if 1 < 2 else None
```

See [the configuration](config.json), [use it](#use-it), [the paper](https://example.org/paper?a=1&b=2).
"""


class Read(HTMLParser):
    """A page as a list of tags, with the text below each; tags that do not close as they opened are an error."""

    VOID = frozenset(("meta", "img", "input", "hr", "br"))

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.comments = [], [], []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), attributes
        self.tags.append((tag, dict(attributes), []))
        if tag not in self.VOID:
            self.open.append(self.tags[-1])

    handle_startendtag = handle_starttag  # <hr />

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, text in self.open:
            text.append(data)

    def handle_comment(self, data):
        self.comments.append(data)

    def texts(self, tag, kind=None):
        wanted = (
            text for name, has, text in self.tags if name == tag and kind in (None, *has.get("class", "").split())
        )
        return ["".join(text).strip("\n") for text in wanted]

    def values(self, tag, attribute):
        return [has[attribute] for name, has, _ in self.tags if name == tag and attribute in has]

    def shape(self):
        return [(name, sorted(has)) for name, has, _ in self.tags]


def draw(path, *colours, size=(60, 30)):
    """Upright bands of these colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size)
    width = size[0] // len(colours)
    for place, colour in enumerate(colours):
        image.paste(colour, (place * width, 0, (place + 1) * width, size[1]))
    image.save(path)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "run" / "model"
    draw(made / "figures" / "loss.png", (200, 40, 40))
    draw(made / "samples" / "0.png", (40, 40, 200))
    (made / "config.json").write_text('{"model_type": "triune"}')
    (made / ".env").write_text("HF_TOKEN=x")
    save_file({"a": torch.zeros(300, 400), "b": torch.zeros(7)}, made / "model-00001-of-00002.safetensors")
    save_file({"c": torch.zeros(30, 100, dtype=torch.bfloat16)}, made / "model-00002-of-00002.safetensors")
    save_file({"inputs": torch.zeros(100, 100)}, made / "golden.safetensors")
    return made


def with_metadata(metadata, body="text"):
    return f"---\n{yaml.safe_dump(metadata)}---\n{body}"


# ---------------------------------------------------------------------------------------------------------------------
# What is on the page


def test_page_is_whole_by_itself(folder):
    """Pictures against the bytes of the files; nothing else that a browser would load, and a policy against it."""
    read = Read(preview.page(CARD, folder, NAME))
    pictures = [
        base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in read.values("img", "src")
    ]
    assert pictures == [(folder / path).read_bytes() for path in ("figures/loss.png", "samples/0.png")]
    assert not {name for name, _, _ in read.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert not [has for _, has, _ in read.tags if any(name.startswith("on") for name in has)]
    policy = dict(part.split(" ", 1) for part in read.values("meta", "content")[0].split("; "))
    assert policy == {"default-src": "'none'", "img-src": "data:", "style-src": "'unsafe-inline'"}
    assert "url(" not in read.texts("style")[0] and "@import" not in read.texts("style")[0]


def test_metadata_is_shown(folder):
    """Chips, panels and title against the metadata, in the Hub's spelling."""
    read = Read(preview.page(CARD, folder, NAME))
    chips = [text for text in read.texts("span", "chip") if text != "Fill-Mask"]
    assert chips == [
        *("Transformers", "Safetensors", "Eval Results", "Dataset: ada/words", "English", "triune", "custom_code"),
        "License: apache-2.0",
    ]
    assert read.texts("span", "task") == ["Fill-Mask"] * 2  # above, and over the examples
    assert read.texts("h1")[0] == "ada / tiny"
    links = read.values("a", "href")
    assert "https://huggingface.co/ada/base" in links and "https://huggingface.co/datasets/ada/words" in links


def test_results_against_the_hubs_own_reading(folder):
    """The evaluation panel against the EvalResults that huggingface_hub makes of the same card."""
    read = Read(preview.page(CARD, folder, NAME))
    panel = next(text for text in read.texts("section") if text.startswith("Evaluation results"))
    shown = [line for line in panel.splitlines() if line][1:]
    expected = ["Other words", "perplexity17", "verified", "Some words · held-out", "Loss2.124", "Accuracy0.525"]
    assert shown == [*expected, "self-reported"]
    parsed = ModelCard(CARD).data.eval_results
    assert {(one.dataset_name, round(one.metric_value, 3)) for one in parsed} == {
        (row.on.split(" · ")[0], float(row.value)) for row in preview.results(preview.split(CARD).metadata)
    }


def test_model_size_from_the_shards(folder):
    """Parameters and types against those saved, two shards; what is not the model's weights does not count."""
    assert preview.weights(preview.lying(folder)) == {"Model size": "123K params", "Tensor type": "BF16 · F32"}
    assert 300 * 400 + 7 + 30 * 100 == 123_007
    (folder / "model-00002-of-00002.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    assert preview.weights(preview.lying(folder)) == {"Weights": "cannot be read"}
    assert "cannot be read" in preview.page(CARD, folder, NAME)
    assert preview.weights({}) == {}


def test_examples_with_recorded_outputs(folder):
    """The widget panel against the widget: texts, answers, bars as wide as the scores."""
    read = Read(preview.page(CARD, folder, NAME))
    assert read.texts("summary") == ["Sun", "Example 2", "Example 3"]
    assert read.texts("div", "said") == ["A [MASK] in the sun", "Once upon", " a time"]
    assert read.texts("div", "out") == [" a time"]
    assert read.texts("div", "bar") == ["cat0.875", "dog0.062", "blue1.000"]
    assert read.values("i", "style") == ["width: 87.5%", "width: 6.2%", "width: 100.0%"]
    assert [has for name, has, _ in read.tags if name == "details"].count({"name": "example"}) == 2  # one is open


@pytest.mark.parametrize(
    "score, says, wide",
    [(7, "7.000", 100), (-1, "-1.000", 0), ("x", "", 0), (float("nan"), "", 0), ("0.5", "0.500", 50)],
)
def test_bars_stay_in_their_track(score, says, wide):
    """Whatever the score is, a bar is between nothing and the whole wide."""
    assert preview.bar({"label": 1, "score": score}) == preview.Bar("1", says, f"{wide:.1f}")


def test_files_are_listed(folder):
    """Names and sizes against the folder, the card as it will be; no hidden file, nothing from outside."""
    (folder / "outside.json").symlink_to(folder.parent / "secret.json")
    (folder.parent / "secret.json").write_text("{}")
    read = Read(preview.page(CARD, folder, NAME))
    rows = dict(tuple(text.split("\n")) for text in read.texts("div") if re.fullmatch(r"[\w./-]+\n[\d.]+ k?B", text))
    assert sorted(rows) == sorted(
        [path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*.*") if path.name != "outside.json"]
        + ["README.md"]
    )
    assert rows["config.json"] == f"{(folder / 'config.json').stat().st_size:.1f} B"
    assert rows["README.md"] == f"{len(CARD.encode()) / 1000:.2f} kB"


def test_only_what_travels_where_it_is_said(folder):
    """Given the files that travel, others are neither listed, shown nor linked to; contents need no file."""
    files = {"config.json": folder / "config.json", "samples/0.png": (folder / "samples" / "0.png").read_bytes()}
    read = Read(preview.page(CARD, folder, NAME, files))
    assert len(read.values("img", "src")) == 1 and read.texts("span", "gap")[0].startswith("missing picture: figures")
    assert preview.missing(CARD, folder, NAME, files) == ["figures/loss.png"]
    assert "golden" not in "".join(read.texts("main"))


# ---------------------------------------------------------------------------------------------------------------------
# The card's own text


def test_markdown(folder):
    """Table, code, emphasis and picture against the Markdown, read back."""
    read = Read(preview.page(CARD, folder, NAME))
    article = read.texts("article")[0]
    assert read.texts("th") == ["metric", "this", "before"]
    assert read.texts("td")[:6] == ["loss", "2.1", "6.1", "accuracy", "52%", "1%"]
    assert read.texts("code") == ['# <!-- stays -->\nmodel = load("ada/tiny") if 1 < 2 else None']
    assert read.texts("em") == ["sentence"] and read.texts("s") == ["no"]
    assert ("img", ["alt", "src", "title"]) in read.shape() and read.values("img", "title") == ["drawn"]
    assert '"ada/tiny"' in read.texts("span")
    assert article.startswith("tiny\nOne sentence.  And no more.")


@pytest.mark.parametrize(
    "text, shown",
    [
        ("<!-- a -->\nb", "b"),
        ("a <!-- b --> c", "a  c"),
        ("<!-- a --> b", " b"),
        ("<!--\na\n\n# b\n-->\nc", "c"),
        ("- a\n  <!-- b -->\n- c", "a\nc"),
        ("a\n\n<!-- never closed\n\nb", "a"),
        ("`<!-- a -->`", "<!-- a -->"),
        ("```\n<!-- a -->\n```", "<!-- a -->"),
        ("    <!-- a -->", "<!-- a -->"),
        ("a <b>c</b>", "a <b>c</b>"),
        ("<div>\na\n</div>", "<div>\na\n</div>"),
        ("<!-- a --><script>b</script>", "<script>b</script>"),
    ],
)
def test_comments_do_not_show_and_html_is_text(folder, text, shown):
    """What is read on the page against CommonMark's rules for comments; the page has none of its own."""
    read = Read(preview.page(text, folder, NAME))
    notice = read.texts("div", "notice")[0]
    assert read.texts("article")[0].strip("\n").removeprefix(notice).strip("\n") == shown
    assert not read.comments


@pytest.mark.parametrize(
    "address, leads_to",
    [
        ("config.json", "../model/config.json"),
        ("./config.json?a#b", "../model/config.json"),
        ("https://huggingface.co/ada/tiny/blob/main/config.json", "../model/config.json"),
        ("https://huggingface.co/ada/other/blob/main/config.json", "="),
        ("https://example.org/x?a=1&b=%20", "="),
        ("mailto:a@example.org", "="),
        ("#use-it", "="),
        ("/ada/other", "https://huggingface.co/ada/other"),
        ("//example.org/x", "https://example.org/x"),
        ("lost.json", None),
        ("../../../etc/passwd", None),
        (".env", None),
        ("tel:123", None),
        ("intent://x", None),
    ],
)
def test_links(folder, address, leads_to):
    """Files of the repository open here, the web stays the web, and the rest leads nowhere."""
    read = Read(preview.page(f"[word]({address})", folder, NAME, base="../model"))
    article = next(has for name, has, text in read.tags if name == "a" and text == ["word"])
    assert article.get("href") == (address if leads_to == "=" else leads_to)
    assert ("dead" in article.get("class", "")) == (leads_to is None)


@pytest.mark.parametrize("address", ["javascript:x", "JaVaScRiPt:x", "javascript&#58;x", "vbscript:x", "file:///x"])
def test_scripts_are_no_links(folder, address):
    """Addresses that do something are not even links: the Markdown stays as it was written."""
    read = Read(preview.page(f"[word]({address}) ![word]({address})", folder, NAME, {}))
    assert not {name for name, _, _ in read.tags} & {"a", "img"}
    assert read.texts("article")[0].count("[word](") == 2


def test_headings_can_be_linked_to(folder):
    """Ids as GitHub makes them, numbered where they would be equal; none is one of the page's own."""
    read = Read(preview.page("# Use it!\n## Use *it*\n## Über `x_1`, y-2\n## tab.one", folder, NAME))
    ids = [has["id"] for name, has, _ in read.tags if name in ("h1", "h2") and "id" in has]
    assert ids == ["use-it", "use-it-1", "über-x_1-y-2", "tabone"]
    assert max(Counter(has["id"] for _, has, _ in read.tags if "id" in has).values()) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Hostile strings


FRAGMENTS = (
    *("<script>alert(1)</script>", "</script>", "<img src=x onerror=alert(1)>", "</div>", '"><b>', "'", '" onload="x'),
    *(
        "](javascript:alert(1))",
        "![x](y)",
        "{{7*7}}",
        "{% raw %}",
        "{#",
        "<!--",
        "-->",
        "&lt;",
        "&#60;",
        "]]>",
        "\n# x",
    ),
    *("\n---\n", "```", "~~~", "|", "\\", "`", "\u2028", "\u202e", "\x00", "\x85", "\ufeff", "yes", "1e3", "@", ": "),
    *("<a href=javascript:x>", "</style>", "<!DOCTYPE", "<svg/onload=x>", "\t", "é", "𝔘", "a" * 300, "%3Cscript%3E"),
)
TAGS = {
    "p",
    "h1",
    "h2",
    "ul",
    "ol",
    "li",
    "a",
    "em",
    "strong",
    "s",
    "code",
    "pre",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
}
TAGS |= {"td", "blockquote", "hr", "br", "span", "small", "img"}
ATTRIBUTES = {"href", "class", "title", "id", "style", "start", "alt", "src"}


def hostile(count, seed):
    draw_from = random.Random(seed)
    return list(FRAGMENTS) + ["".join(draw_from.choices(FRAGMENTS, k=draw_from.randint(2, 6))) for _ in range(count)]


def everywhere(word):
    return {
        **dict.fromkeys(("license", "library_name", "pipeline_tag", "language", "base_model", "new_version"), word),
        **{key: [word, word] for key in ("tags", "datasets")},
        "widget": [
            {"text": word, "example_title": word, "output": {"text": word}},
            {"src": f"x{word}", "output": [{"label": word, "score": word}]},
        ],
        "model-index": [
            {
                "name": word,
                "results": [
                    {
                        "dataset": {"name": word, "type": word},
                        "source": {"name": word, "url": word},
                        "metrics": [{"type": word, "name": word, "value": word}],
                    }
                ],
            }
        ],
    }


def test_hostile_metadata_makes_no_tag(folder):
    """Hundreds of nasty strings at every place of the metadata: tags and attributes are those of a harmless word."""
    plain = Read(preview.page(with_metadata(everywhere("harm less!")), folder, "a/harm less!", {})).shape()
    for word in hostile(150, seed=0):
        word = f"{word}!"  # no name of the Hub, which would be a link
        card = with_metadata(everywhere(word))
        assert preview.split(card).metadata["tags"] == [word, word]
        read = Read(preview.page(card, folder, f"a/{word.replace('/', '')}", {}))
        assert read.shape() == plain, word
        assert read.texts("span", "tag")[0] == word.strip("\n"), word


def test_hostile_markdown_makes_only_the_tags_of_markdown(folder):
    """Hundreds of nasty texts as the card's body: nothing but what Markdown can say, and addresses that only lead."""
    files = {"p.png": (folder / "figures" / "loss.png").read_bytes()}
    for word in hostile(300, seed=1):
        quoted = word.replace("'", "").replace("\n", "")
        linked = f"[{word}]({word}) ![{word}]({word} '{word}') ![{word}](p.png '{quoted}')"
        body = f"x\n\n# {word}\n\n{word} {linked}\n\n| a |\n|---|\n| {word} |\n\n{word}"
        read = Read(preview.body(body, preview.Repository(NAME, files, "")))
        assert {name for name, _, _ in read.tags} <= TAGS, word
        assert {name for _, has, _ in read.tags for name in has} <= ATTRIBUTES, word
        assert all(re.match(r"https://|#", address) for address in read.values("a", "href")), word
        assert all(source.startswith("data:image/png;base64,") for source in read.values("img", "src")), word
        assert not read.comments


# ---------------------------------------------------------------------------------------------------------------------
# Cards that are not as they should be


def test_pictures_that_cannot_be_shown(folder):
    """Each leaves a gap with its name, and is told; those from elsewhere are named and not told."""
    (folder / "fake.png").write_text("<svg onload='x'>")
    body = "\n\n".join(
        f"![what]({address})"
        for address in ("figures/lost.png", "fake.png", "../outside.png", "/etc/x.png", "https://example.org/x.png")
    )
    widget = [
        {"src": f"https://huggingface.co/{NAME}/resolve/main/samples/9.png"},
        {"output": {"url": "figures/a.png"}},
    ]
    card = with_metadata({"widget": widget}, body)
    gaps = Read(preview.page(card, folder, NAME)).texts("span", "gap")
    assert [gap.removesuffix("what") for gap in gaps] == [
        "missing picture: figures/lost.png",
        "fake.png is no picture",
        "missing picture: ../outside.png",
        "not loaded here: /etc/x.png",
        "not loaded here: https://example.org/x.png",
        "missing picture: samples/9.pngExample 1",
        "missing picture: figures/a.pngExample 2: output",
    ]
    told = ["figures/lost.png", "fake.png", "../outside.png"]
    assert preview.missing(card, folder, NAME) == [*told, "samples/9.png", "figures/a.png"]
    assert preview.missing(card, folder) == [*told, "figures/a.png"]
    assert preview.missing(CARD, folder, NAME) == []


@pytest.mark.parametrize(
    "metadata, says",
    [
        ("license: mit\ntags: [a, b\nlanguage: en", "line 4: "),
        ("license: mit\nlicense_name: a: b", "line 3: mapping values are not allowed here"),
        ("a: 1\nb: 2\nc: \x07", "line 4: the character 0x7 is not allowed"),
        ("a: 1\nb: !!python/object:os.system x", "line 3: could not determine a constructor"),
        ("a: 1\ndate: 2026-13-45", "lines 2 to 3: month must be in 1..12"),
        ("a: " + "[" * 1000, "lines 2 to 2: maximum recursion depth"),
        ("- a\n- b", "must be lines of `name: value`, and is ['a', 'b']"),
    ],
)
def test_broken_metadata_is_one_line(folder, metadata, says):
    """The error names the line of the card, and no page is written over an older one."""
    target = folder.parent / "preview.html"
    target.write_text("older")
    with pytest.raises(ValueError, match=r"^the card's metadata") as raised:
        preview.write(f"---\n{metadata}\n---\n# x\n", folder, NAME, target)
    assert says in str(raised.value) and "\n" not in str(raised.value)
    assert target.read_text() == "older"


@pytest.mark.parametrize("card", ["", "# Only text", "---\n---\n# x", "---\nnever: closed\n", "\ufeff# x", "\r\n"])
def test_card_without_metadata(folder, card):
    """The page is there, and says what the Hub will lack."""
    read = Read(preview.page(card, folder, "local"))
    assert read.texts("div", "notice") == [
        "The card has no metadata: the Hub will not know task, library, license and language."
    ]
    assert read.texts("h1")[0] == "local" and read.texts("span", "chip") == ["Safetensors"]


def test_metadata_of_any_shape(folder):
    """Every value in every field that the page reads: it is made, whatever is there."""
    values = (
        None,
        1,
        0.5,
        float("nan"),
        True,
        "x",
        [],
        {},
        [[]],
        [None],
        [{"a": [1]}],
        {"a": {"b": 1}},
        ["x", {"y": 1}],
    )
    fields = ("widget", "model-index", "tags", "datasets", "base_model", "license", "pipeline_tag", "new_version")
    deeper = (
        *({"widget": [{key: value}]} for key in ("text", "src", "example_title", "output") for value in values),
        *({"widget": [{"output": {key: value}}]} for key in ("text", "url") for value in values),
        *({"widget": [{"output": [{"label": value, "score": value}]}]} for value in values),
        *({"model-index": [{"results": value}]} for value in values),
        *(
            {"model-index": [{"results": [{key: value}]}]}
            for key in ("dataset", "source", "metrics")
            for value in values
        ),
        *({"model-index": [{"results": [{"metrics": [{"name": value, "value": value}]}]}]} for value in values),
    )
    for metadata in (*({field: value} for field in fields for value in values), *deeper):
        card = with_metadata(metadata)
        assert Read(preview.page(card, folder, NAME, {})).texts("article")[0].strip().endswith("text"), metadata
        preview.missing(card, folder, NAME, {})


def test_a_page_can_always_be_written(folder):
    """Half a character, which YAML can hold and UTF-8 cannot, and links from the page to the files that are there."""
    target = folder.parent / "preview.html"
    card = '---\ntags: ["a\\ud800b"]\n---\n[x](config.json) [y](with%20space.json)'
    (folder / "with space.json").write_text("{}")
    assert preview.write(card, folder, NAME, target) == target
    read = Read(target.read_text(encoding="utf-8"))
    assert read.texts("span", "tag") == ["a?b"]
    links = [link for link in read.values("a", "href") if "space" in link]
    assert links == ["model/with%20space.json"] * 2  # in the card, and in the list of files
    assert (target.parent / "model" / "with space.json").is_file()


def test_no_folder(tmp_path):
    """A folder that is not there is an error that names it, before anything is read."""
    with pytest.raises(ValueError, match="nowhere' is no folder"):
        preview.page(CARD, tmp_path / "nowhere", NAME)


# ---------------------------------------------------------------------------------------------------------------------
# Looked at


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
NARROWEST = 500  # a headless window is no narrower; below, the page is put into a frame
RED, GREEN, BLUE, VIOLET = (200, 40, 40), (40, 160, 60), (30, 60, 220), (150, 30, 180)


def photograph(page: Path, target: Path, width: int, height: int) -> Image.Image:
    """What a headless browser shows of a page, `width` by `height` pixels of it."""
    shown = page
    if width < NARROWEST:
        shown = target.with_suffix(".frame.html")
        style = f"border: 0; width: {width}px; height: {height}px"
        shown.write_text(f'<body style="margin: 0"><iframe src="{page.as_uri()}" style="{style}"></iframe>')
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb"),
        *("--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={target.parent / 'profile'}"),
        *(f"--window-size={max(width, NARROWEST)},{height}", f"--screenshot={target}", shown.as_uri()),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(target) as image:
        return image.convert("RGB").crop((0, 0, width, height))


def box(image, colour, tolerance=3):
    """The smallest box around the pixels of a colour, and how many there are."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(image.height, image.width, 3)
    near = ((pixels.int() - torch.tensor(colour)).abs() <= tolerance).all(dim=2)
    rows, columns = (near.any(dim=side).nonzero().flatten().tolist() for side in (1, 0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, int(near.sum())) if rows else None


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome is installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(folder, tmp_path, width):
    """Pictures are decoded and fit: their colours and places in a screenshot against the layout, wide and narrow."""
    draw(folder / "figures" / "loss.png", RED, GREEN, BLUE, size=(1500, 600))
    draw(folder / "samples" / "0.png", VIOLET, size=(150, 150))
    wide = width > 900
    target = tmp_path / "preview.html"
    preview.write(CARD, folder, NAME, target)
    # no script: the third example is opened by hand
    target.write_text(target.read_text().replace('<details name="example">', "<details open>"))
    image = photograph(target, tmp_path / f"{width}.png", width, 2400)
    assert image.size == (width, 2400) and len(set(image.resize((width // 4, 600)).get_flattened_data())) > 100

    bands = [box(image, colour) for colour in (RED, GREEN, BLUE)]
    shown = 780 if wide else width - 32  # the column; 16 to the left and right on a phone
    left = 24 if wide else 16
    assert [band[0] for band in bands] == pytest.approx([left + place * shown / 3 for place in range(3)], abs=3)
    assert bands[-1][2] == pytest.approx(left + shown, abs=3)
    for x0, y0, x1, y1, count in bands:
        assert y1 - y0 == pytest.approx(shown * 600 / 1500, abs=3)
        assert count == pytest.approx((x1 - x0) * (y1 - y0), rel=0.05)  # all of it, but the rounded corners

    if wide:  # the other tab's list of files would follow the card
        assert set(image.crop((0, 1700, 800, 2400)).get_flattened_data()) == {(255, 255, 255)}

    x0, y0, x1, y1, _ = box(image, VIOLET)
    assert (x1 - x0, y1 - y0) == (pytest.approx(150, abs=3), pytest.approx(150, abs=3))
    assert x0 > 860 if wide else y0 > bands[0][3] + 300  # beside the card, or below it
    assert box(image, (17, 24, 39), tolerance=0)[2] == width  # the ribbon: no wider page than the window


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome is installed")
def test_files_in_a_browser(folder, tmp_path):
    """The second tab shows the files in place of the card, without a script: no picture is left, lines are there."""
    draw(folder / "figures" / "loss.png", RED, size=(1500, 600))
    shown = preview.page(CARD, folder, NAME).replace('id="tab.one" checked', 'id="tab.one"')
    (tmp_path / "files.html").write_text(shown.replace('id="tab.two"', 'id="tab.two" checked'))
    image = photograph(tmp_path / "files.html", tmp_path / "files.png", 1280, 1000)
    assert box(image, RED) is None
    x0, y0, x1, y1, _ = box(image, (37, 99, 235), tolerance=40)  # the links
    assert (x0, x1) == (pytest.approx(41, abs=4), pytest.approx(300, abs=120)) and y1 - y0 > 4 * 36
