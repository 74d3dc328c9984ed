"""Text from files, folders and streams against what was written into them; splits, streams and labels against counts.

What comes from the Hub takes the same way as a folder of Parquet files, which is tried here; the Hub itself is not."""

import gzip
import json
import pickle
import socket
from collections import Counter
from io import StringIO

import pandas
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from triune.training.arguments import DataArguments
from triune.training.data import labelled as labelled_texts
from triune.training.data import sections as section_reader
from triune.training.data import tables, text_sources
from triune.training.data.files import SPLIT_SEED
from triune.training.data.labelled import load_labelled_text, read_labelled
from triune.training.data.sections import read_sections, sections
from triune.training.data.tables import Files, Split, entries, numbered
from triune.training.data.text import Document, characters, normalised, passages, split_documents, text_data
from triune.training.data.text_sources import load_text, stream_text


ROWS = [{"id": f"A{row}" if row % 2 else row, "text": f"row {row} of many", "label": row % 3} for row in range(40)]
TEXTS = [row["text"] for row in ROWS]


def words(seed, count, vocabulary=5000):
    numbers = torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [f"w{number}" for number in numbers]


def prose(seed, paragraphs=10):
    """Paragraphs of random words, four lines each."""
    lines = [" ".join(words(seed * 1000 + line, 8)) for line in range(4 * paragraphs)]
    return "\n\n".join("\n".join(lines[start : start + 4]) for start in range(0, len(lines), 4))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(content)
    return str(path)


def csv(rows):
    return pandas.DataFrame(rows).to_csv(index=False)


def json_lines(rows):
    return "".join(json.dumps({**row, "id": str(row.get("id"))}) + "\n" for row in rows)


def parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows).astype({"id": str}, errors="ignore").to_parquet(path, row_group_size=16)
    return str(path)


def table(folder, name, rows):
    """A file of rows, of the kind that its name says."""
    if name.endswith(".parquet"):
        return parquet(folder / name, rows)
    kind = name.removesuffix(".gz").rsplit(".")[-1]
    plain = [{**row, "id": str(row["id"])} for row in rows]
    content = {"csv": csv(rows), "tsv": csv(rows).replace(",", "\t"), "json": json.dumps(plain)}
    return write(folder / name, content.get(kind, json_lines(rows)))


def load(**flags):
    return load_text(DataArguments(**flags))


def texts(documents):
    return [document.text for document in documents]


def names(documents):
    return [document.name for document in documents]


every_table = pytest.mark.parametrize(
    "name", ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.parquet", "a.csv.gz", "a.jsonl.gz"]
)


# ---------------------------------------------------------------------------------------------------------------------
# Sections


@pytest.mark.parametrize("joint", ["\n\n", "\n", " ", ""])
def test_sections_are_contiguous_and_cut_at_the_best_place(joint):
    """Joined they are the text; each ends at the largest break there is; sizes lie between one and two."""
    text = joint.join(words(0, 5000))
    parts = sections(text, 500)
    assert "".join(parts) == text and len(parts) > 20
    assert all(500 <= len(part) <= 1000 for part in parts[:-1]) and 0 < len(parts[-1]) <= 1000
    assert all(part.endswith(joint) and part[: -len(joint) or None] for part in parts[:-1])


def test_blank_lines_are_preferred():
    """A text with words, lines and paragraphs is cut behind blank lines only."""
    parts = sections(prose(0, 100), 300)
    assert all(part.endswith("\n\n") for part in parts[:-1])


@pytest.mark.parametrize("block", [1, 7, 100, 10**6])
def test_sections_of_a_stream_are_those_of_the_text(block, monkeypatch):
    """Read in blocks of any size, against the whole text cut at once."""
    monkeypatch.setattr(section_reader, "BLOCK", block)
    text = prose(1, 12)
    assert list(read_sections(StringIO(text), 200)) == sections(text, 200)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_a_text_file_is_a_document(tmp_path):
    """Thirty files, of which two in a folder and one zipped: a document each, split by whole documents; names do not
    say where the folder stands."""
    for place in ("here", "there"):
        for index in range(27):
            write(tmp_path / place / f"{index:02}.txt", prose(index, 2))
        for index, name in enumerate(("sub/x.md", "sub/y.rst", "z.txt.gz"), 27):
            write(tmp_path / place / name, prose(index, 2))
    here, there = (load(train_file=str(tmp_path / place / "**" / "*")) for place in ("here", "there"))
    written = {prose(index, 2) for index in range(30)}
    assert set(texts(here.train + here.validation)) == written
    assert {"sub/x.md", "z.txt.gz", "00.txt"} <= set(names(here.train + here.validation))
    assert 1 <= len(here.validation) <= 3 and here.headline == here.validation
    assert here.fingerprint == there.fingerprint and here.validation == there.validation


def test_one_file_is_split_by_sections(tmp_path):
    """Together the two sides are the file; a twentieth is held out, in whole sections; the seed of the run changes
    nothing."""
    content = prose(3, 400)
    file = write(tmp_path / "book.txt", content)
    text = load(train_file=file)
    parts = sorted(text.train + text.validation, key=lambda document: int(document.name.split()[-1]))
    assert "".join(texts(parts)) == content and names(parts)[:2] == ["book.txt 0", "book.txt 1"]
    assert characters(text.validation) / len(content) == pytest.approx(0.05, rel=0.3)
    assert load_text(DataArguments(train_file=file)).fingerprint == text.fingerprint
    assert text.source == file


def test_documents_are_cut_only_where_they_are_too_few(tmp_path, monkeypatch):
    """With validation text of their own, two files are two documents."""
    held_out = write(tmp_path / "held out.txt", prose(9))
    for index in range(2):
        write(tmp_path / f"{index}.txt", prose(index, 50))
    text = load(train_file=str(tmp_path / "[01].txt"), validation_file=held_out)
    assert names(text.train) == ["0.txt", "1.txt"] and texts(text.validation) == [prose(9)]
    commas = load(train_file=f"{tmp_path / '0.txt'}, {tmp_path / '1.txt'}", validation_file=held_out)
    assert commas.train == text.train


def test_the_validation_file_is_not_trained_on(tmp_path):
    """A glob that matches it too leaves it out."""
    for index in range(3):
        write(tmp_path / f"{index}.txt", prose(index))
    text = load(train_file=str(tmp_path / "*.txt"), validation_file=str(tmp_path / "1.txt"))
    assert names(text.train) == ["0.txt", "2.txt"] and text.removed == 0
    with pytest.raises(ValueError, match=r"train_file='.*' names no file that validation_file='.*' does not name"):
        load(train_file=str(tmp_path / "1.txt"), validation_file=str(tmp_path / "1.txt"))


@every_table
def test_a_row_is_a_document(tmp_path, name):
    """Forty rows of every kind of table, zipped or not; a column beside has numbers and words in it."""
    text = load(train_file=table(tmp_path, name, ROWS), validation_split_percentage=25)
    assert sorted(texts(text.train + text.validation)) == sorted(TEXTS)
    assert all(document.name == f"{name} {document.text.split()[1]}" for document in text.train)
    assert len(text.validation) == pytest.approx(10, abs=1)


def test_cells_are_text_as_they_stand(tmp_path):
    """What pandas takes for missing, for numbers or for truth values stays a word; blank rows are left out."""
    cells = ["NA", "null", "007", "1.50", "True", "", "  "]
    file = write(tmp_path / "a.csv", csv([{"text": cell, "n": 1} for cell in cells]))
    held_out = write(tmp_path / "b.csv", csv([{"text": "else", "n": 1}]))
    assert texts(load(train_file=file, validation_file=held_out).train) == cells[:5]


def test_a_mixed_column_beside_the_text_does_not_matter(tmp_path):
    """40,000 rows, numbers first and words later, which pandas reads in parts of two types."""
    rows = [{"id": row if row < 35000 else f"A{row}", "text": f"row {row}"} for row in range(40000)]
    file = write(tmp_path / "a.csv", csv(rows))
    source = Files("train_file", (tmp_path / "a.csv",))
    found = [document.text for _, document in numbered(source, "text")]
    assert found == [row["text"] for row in rows] and file


def test_a_path_may_look_like_a_pattern(tmp_path):
    """Brackets and spaces in the names of folder and file."""
    text = load(train_file=table(tmp_path / "set [1]", "a [b].csv", ROWS))
    assert characters(text.train + text.validation) == len("".join(TEXTS))


def test_a_byte_order_mark_is_no_character(tmp_path):
    """Files as some editors save them, in each kind that holds text."""
    rows = [{"id": "0", "text": "first"}]
    held_out = write(tmp_path / "held out.txt", "else")
    for name, content in {"a.txt": "first", "a.csv": csv(rows), "a.jsonl": json_lines(rows)}.items():
        file = write(tmp_path / name, "\ufeff" + content)
        assert texts(load(train_file=file, validation_file=held_out).train) == ["first"]


def test_nothing_is_cached_and_nothing_asked_of_the_network(tmp_path, monkeypatch):
    """With a cache folder that cannot be used, and a network that raises."""

    def refuse(*arguments, **options):
        raise AssertionError(f"network: {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "blocked" / "cache")
    write(tmp_path / "blocked", "a file")
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        load(train_file=table(tmp_path, name, ROWS))
    parquet(tmp_path / "set" / "train.parquet", ROWS)
    load(dataset_name=str(tmp_path / "set"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.jsonl", "a.parquet", "blocked", "set"]


# ---------------------------------------------------------------------------------------------------------------------
# Splits and limits


def test_a_folder_with_splits(tmp_path):
    """Its own validation split is used, before a test split; without either a share is split off."""
    parquet(tmp_path / "set" / "train.parquet", ROWS)
    parquet(tmp_path / "set" / "test.parquet", [{"text": "of the test", "id": "x"}])
    assert texts(load(dataset_name=str(tmp_path / "set")).validation) == ["of the test"]
    parquet(tmp_path / "set" / "validation.parquet", [{"text": "held out", "id": "x"}])
    text = load(dataset_name=str(tmp_path / "set"))
    assert texts(text.train) == TEXTS and texts(text.validation) == ["held out"]
    assert names(text.train)[:2] == ["train 0", "train 1"]
    parquet(tmp_path / "alone" / "train.parquet", ROWS)
    text = load(dataset_name=str(tmp_path / "alone"), validation_split_percentage=50)
    assert len(text.validation) == pytest.approx(20, abs=1)


def test_passages_on_both_sides_are_removed_or_only_measured(tmp_path):
    """A held-out paragraph planted in the training text, with and without removal."""
    held_out = prose(1)
    stolen = passages(held_out)[2]
    files = {
        "train_file": write(tmp_path / "a.txt", prose(2) + "\n\n" + stolen),
        "validation_file": write(tmp_path / "b.txt", held_out),
    }
    cleaned, measured = load(**files), load(**files, remove_shared_passages=False)
    assert stolen not in cleaned.train[0].text and cleaned.overlap.share == 0 and cleaned.removed > len(stolen)
    assert stolen in measured.train[0].text and measured.removed == 0
    assert measured.overlap.share == pytest.approx(1 / 10)


def test_limits_take_the_first_documents(tmp_path):
    """Against the same text without limits."""
    file = table(tmp_path, "a.jsonl", ROWS)
    whole = load(train_file=file, validation_split_percentage=25)
    few = load(train_file=file, validation_split_percentage=25, max_train_samples=3, max_eval_samples=2)
    assert (few.train, few.validation) == (whole.train[:3], whole.validation[:2])


@pytest.fixture
def small_pydocs(monkeypatch):
    """Stands in for the bundled text, which takes seconds to gather."""
    sides = [
        [
            *(Document(f"topic {side}{index}", prose(side + index, 3)) for index in range(4)),
            *(Document(f"module {side}{index}", prose(side + 50 + index, 6)) for index in range(4)),
        ]
        for side in (100, 200)
    ]
    text = text_data(*sides, "pydocs", headline=sides[1][:4])
    for module in (text_sources, labelled_texts):
        monkeypatch.setattr(module, "pydocs", lambda: text)
    return text


def test_the_bundled_text(small_pydocs):
    """As it comes; with limits, the headline is what is left of it."""
    assert load(dataset_name="pydocs") is small_pydocs
    few = load(dataset_name="pydocs", max_train_samples=2, max_eval_samples=5)
    assert (few.train, few.validation) == (small_pydocs.train[:2], small_pydocs.validation[:5])
    assert few.headline == small_pydocs.headline
    streamed = stream_text(DataArguments(dataset_name="pydocs"))
    assert tuple(streamed.documents()) == small_pydocs.train and streamed.headline == small_pydocs.headline
    assert tuple(streamed.documents(3)) == small_pydocs.train[3:]


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


MISTAKES = [
        ({}, r"no text to train on is named: give --train_file .*--dataset_name pydocs"),
        ({"train_dir": "x"}, r"no text to train on is named: .*train_dir='x' holds images"),
        ({"dataset_name": "pydocs", "train_file": "a.txt"}, r"dataset_name='pydocs' and train_file='a.txt' both"),
        ({"dataset_name": "digits"}, r"dataset_name='digits' is a set of images, not of text"),
        ({"dataset_name": "pydoc"}, r"dataset_name='pydoc' cannot be loaded: .*; did you mean 'pydocs'\?"),
        ({"dataset_name": "a.txt"}, r"dataset_name='a.txt' is a file: give it as --train_file"),
        ({"dataset_name": "pydocs", "validation_file": "a.txt"}, r"validation_file='a.txt' does not go with"),
        ({"dataset_name": "pydocs", "remove_shared_passages": False}, r"remove_shared_passages=False does not go"),
        ({"train_file": "aa.txt"}, r"train_file='aa.txt': there is no such file; did you mean 'a.txt'\?"),
        ({"train_file": "no/a.txt"}, r"train_file='no/a.txt': there is no folder 'no'"),
        ({"train_file": "*.tex"}, r"train_file='\*.tex' matches no file"),
        ({"train_file": "."}, r"train_file='.' is a folder: '\*.txt' takes"),
        ({"train_file": "a.txt", "validation_file": "b.txt"}, r"validation_file='b.txt': there is no such file"),
        ({"train_file": "a.txt"}, r"train_file='a.txt' is too short to split off a share: 5 characters"),
        ({"train_file": "a.csv", "max_eval_samples": 0}, r"max_eval_samples=0 must be at least 1"),
        ({"train_file": "a.csv", "validation_split_percentage": 0}, r"validation_split_percentage=0 must lie between"),
        ({"train_file": "a.csv", "text_column": "txt"}, r"text_column='txt' is not a column of a.csv, which has 'id', "
            r"'text', 'label'; did you mean 'text'\?"),
        ({"train_file": "a.jsonl", "text_column": "label"}, r"text_column='label' does not hold text: in a.jsonl 0"),
        ({"train_file": "a.txt", "validation_file": "copy.txt"}, r"all of it shares passages .*_passages false keeps"),
        ({"train_file": "blank.txt"}, r"train_file='blank.txt' holds only blank documents"),
        ({"train_file": "empty.txt"}, r"train_file='empty.txt' is empty"),
        ({"train_file": "empty.csv"}, r"train_file='empty.csv' is empty"),
        ({"train_file": "empty.jsonl"}, r"train_file='empty.jsonl' is empty"),
        ({"train_file": "head.csv"}, r"train_file='head.csv' is empty"),
        ({"train_file": "latin.txt"}, r"latin.txt is not UTF-8: byte 3 is 0xe9"),
        ({"train_file": "latin.csv"}, r"latin.csv is not UTF-8: byte 8 is 0xe9"),
        ({"train_file": "latin.jsonl"}, r"latin.jsonl is not UTF-8: byte 13 is 0xe9"),
        ({"train_file": "broken.jsonl"}, r"broken.jsonl cannot be read: JSON parse error"),
        ({"train_file": "broken.parquet"}, r"broken.parquet cannot be read: "),
        ({"train_file": "broken.txt.gz"}, r"broken.txt.gz cannot be read: Not a gzipped file"),
]  # fmt: skip
SEEN_AT_THE_END = ("too short", "all of it")  # what a stream cannot know when it is opened


@pytest.mark.parametrize(
    ("flags", "message", "streaming"),
    [(*mistake, False) for mistake in MISTAKES]
    + [(*mistake, True) for mistake in MISTAKES if not any(words in mistake[1] for words in SEEN_AT_THE_END)],
)
def test_mistakes_get_a_sentence(tmp_path, monkeypatch, caplog, flags, message, streaming):
    """Each names the flag or the file and what is allowed; nothing else is logged."""
    monkeypatch.chdir(tmp_path)
    contents = {
        **{"a.txt": "short", "copy.txt": "short", "blank.txt": "\n \n", "empty.txt": "", "empty.csv": ""},
        **{"empty.jsonl": "", "head.csv": "text,label\n", "broken.jsonl": '{"text": "a"}\n{"text": \n'},
        **{"broken.parquet": "text", "a.csv": csv(ROWS), "a.jsonl": json_lines(ROWS)},
    }
    for name, content in contents.items():
        write(tmp_path / name, content)
    latin = {"latin.txt": "caf\xe9", "latin.csv": "text\ncaf\xe9\n", "latin.jsonl": '{"text": "caf\xe9"}\n'}
    for name, content in latin.items():
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    (tmp_path / "broken.txt.gz").write_bytes(b"text")
    with pytest.raises(ValueError, match=message):
        list((stream_text if streaming else load_text)(DataArguments(**flags, streaming=streaming)).train)
    assert caplog.text == ""


# ---------------------------------------------------------------------------------------------------------------------
# Streams


def stream(**flags):
    return stream_text(DataArguments(streaming=True, **flags))


@every_table
def test_a_stream_is_the_rest_of_the_file(tmp_path, name):
    """Held out are the first documents, streamed the others, in their order, and again the same."""
    text = stream(train_file=table(tmp_path, name, ROWS), max_eval_samples=4)
    assert (texts(text.validation), texts(text.documents())) == (TEXTS[:4], TEXTS[4:])
    assert texts(text.documents()) == TEXTS[4:]
    assert "held out 52 characters in 4 documents" in text.describe() and text.headline == text.validation


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_a_stream_goes_on_anywhere(tmp_path, monkeypatch, rows):
    """From the position after each document, against the tail of a whole pass: over two tables, a text and blank rows,
    read in blocks of any size."""
    monkeypatch.setattr(tables, "ROWS", rows)
    table(
        tmp_path, "a.jsonl", [{**row, "text": "" if row["text"].startswith("row 1") else row["text"]} for row in ROWS]
    )
    write(tmp_path / "b.txt", prose(0, 60))
    table(tmp_path, "c.parquet", ROWS)
    text = stream(train_file=str(tmp_path / "*"), max_eval_samples=3)
    passed = list(text.numbered())
    # of the rows of a.jsonl 11 are blank and 3 held out, which stand in c.parquet again
    assert len(passed) == 26 + len(sections(prose(0, 60), 4000)) + 37
    positions = [position for position, _ in passed]
    assert positions == sorted(set(positions)) and positions[-1] > len(positions)
    for place in (0, 5, 26, 30, len(passed) - 1):
        assert list(text.numbered(positions[place])) == passed[place:]
        assert list(text.numbered(positions[place] + 1)) == passed[place + 1 :]
        assert list(text.documents(positions[place])) == [document for _, document in passed[place:]]


def test_what_stands_in_validation_leaves_the_stream(tmp_path):
    """A held-out paragraph in a later document, and a later copy of a whole one; nothing goes without removal."""
    first, second = prose(1), prose(2)
    rows = [first, second, f"{prose(3)}\n\n{passages(first)[4]}", first]
    flags = {
        "train_file": write(tmp_path / "a.jsonl", json_lines({"text": row} for row in rows)),
        "max_eval_samples": 1,
    }
    assert texts(stream(**flags).documents()) == [second, prose(3)]
    assert texts(stream(**flags, remove_shared_passages=False).documents()) == rows[1:]


def test_a_stream_with_validation_of_its_own(tmp_path):
    """A file is held out whole, and the stream begins at its beginning; of a split so many documents as asked for."""
    table(tmp_path, "set/train.csv", ROWS)
    held_out = write(tmp_path / "held out.jsonl", json_lines([{"text": f"held out {row}"} for row in range(150)]))
    for text in (
        stream(train_file=str(tmp_path / "set" / "train.csv"), validation_file=held_out),
        stream(dataset_name=str(tmp_path / "set"), validation_file=held_out),
    ):
        assert len(text.validation) == 150 and texts(text.documents()) == TEXTS
    write(tmp_path / "set" / "validation.csv", csv([{"text": f"held out {row}", "id": 0} for row in range(150)]))
    assert len(stream(dataset_name=str(tmp_path / "set")).validation) == 100
    assert len(stream(dataset_name=str(tmp_path / "set"), max_eval_samples=7).validation) == 7


def test_a_stream_is_limited_and_must_not_be_used_up(tmp_path):
    """Some training documents, and none: the validation documents were all there are."""
    file = table(tmp_path, "a.csv", ROWS)
    assert texts(stream(train_file=file, max_eval_samples=4, max_train_samples=5).documents()) == TEXTS[4:9]
    with pytest.raises(ValueError, match=r"train_file='.*' ends after the 40 documents that are held out"):
        stream(train_file=file)


def test_the_fingerprint_of_a_stream_is_of_its_beginning(tmp_path):
    """Another size, another beginning, another validation: another fingerprint; the same data has the same."""

    def of(rows, **flags):
        return stream(train_file=table(tmp_path, "a.csv", rows), max_eval_samples=4, **flags).fingerprint

    changed = [ROWS[:6] + [{**ROWS[6], "text": "row X of many"}] + ROWS[7:], ROWS[1:] + ROWS[:1], ROWS[:-1]]
    assert of(ROWS) == of(ROWS)
    assert len({of(ROWS), *map(of, changed)}) == 4


def test_a_large_text_streams_in_sections(tmp_path):
    """Three megabytes, of which a document at a time is in memory; joined they are the file."""
    content = prose(0, 200) + "\n\n"
    file = write(tmp_path / "a.txt", content * 70)
    text = stream(train_file=file, remove_shared_passages=False)
    assert len(text.validation) == 100 and max(map(len, texts(text.documents()))) <= 8000
    assert "".join(texts(text.validation) + texts(text.documents())) == content * 70


def test_a_stream_goes_to_a_worker(tmp_path):
    """Pickled and read there, against here."""
    for flags in ({"train_file": table(tmp_path, "set/train.csv", ROWS)}, {"dataset_name": str(tmp_path / "set")}):
        text = stream(**flags, max_eval_samples=4)
        assert list(pickle.loads(pickle.dumps(text)).documents()) == list(text.documents())


def test_a_split_of_datasets_is_read_in_memory_or_streamed():
    """What `load_dataset` gives for a name of the Hub, both ways: rows, positions, classes."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"]), "other": Value("int64")})
    rows = [{"text": f"text {row}", "label": row % 2, "other": row} for row in range(2500)]
    whole = Dataset.from_list(rows, features=features)
    for data in (whole, whole.to_iterable_dataset(num_shards=3)):
        split = Split("dataset_name='x'", "train", data)
        assert [document.text for _, document in numbered(split, "text", 2100)] == [
            f"text {n}" for n in range(2100, 2500)
        ]
        texts, labels = read_labelled(split, DataArguments(dataset_name="x"))
        assert texts[2] == "text 2" and labels[:3] == ["no", "yes", "no"]
        with pytest.raises(ValueError, match=r"text_column='txt' is not a column of dataset_name='x', split 'train'"):
            next(entries(split, {"text_column": "txt"}))


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def labelled(**flags):
    return load_labelled_text(DataArguments(**flags))


@every_table
def test_labels_by_name(tmp_path, name):
    """Whole numbers in each kind of table: in order of their size, each text with its own."""
    rows = [{**row, "label": [10, 9, -1][row["label"]]} for row in ROWS]
    data = labelled(train_file=table(tmp_path, name, rows), validation_split_percentage=20)
    assert data.names == ("-1", "9", "10")
    expected = {row["text"]: str(row["label"]) for row in rows}
    pairs = zip(data.train_texts + data.validation_texts, torch.cat([data.train_labels, data.validation_labels]))
    assert {text: data.names[label] for text, label in pairs} == expected


def test_words_are_classes_in_order_of_the_alphabet(tmp_path):
    """Words that pandas would take for missing, too."""
    rows = [{"text": f"text {row}", "label": ["yes", "no", "None", "NA"][row % 4]} for row in range(40)]
    assert labelled(train_file=write(tmp_path / "a.csv", csv(rows))).names == ("NA", "None", "no", "yes")


def test_a_split_of_labelled_text_is_stratified(tmp_path):
    """A tenth of each class, even to one text; a class of one text is trained on; again the same."""
    counts = {"a": 100, "b": 31, "c": 1}
    rows = [{"text": f"{name} {row}", "label": name} for name, count in counts.items() for row in range(count)]
    flags = {"train_file": write(tmp_path / "a.csv", csv(rows)), "validation_split_percentage": 10}
    data = labelled(**flags)
    found = Counter(data.names[label] for label in data.validation_labels)
    assert found["c"] == 0 and abs(found["a"] - 10) <= 1 and abs(found["b"] - 3) <= 1
    assert len(data.train_texts) + len(data.validation_texts) == 132
    assert load_labelled_text(DataArguments(**flags)).fingerprint == data.fingerprint


def test_no_text_is_on_both_sides(tmp_path):
    """Every text twice, in other letters and spaces: those that are held out are removed, and counted."""
    rows = [
        {"text": f"Text  {row // 2}" if row % 2 else f"text {row // 2} ", "label": row // 2 % 2} for row in range(80)
    ]
    flags = {"train_file": write(tmp_path / "a.csv", csv(rows)), "validation_split_percentage": 20}
    data = labelled(**flags)
    sides = [set(map(normalised, side)) for side in (data.train_texts, data.validation_texts)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 40
    assert data.removed == 80 - len(data.train_texts) - len(data.validation_texts) > 0
    assert f"removed from train {data.removed} that stand in both" in data.describe()
    assert labelled(**flags, remove_shared_passages=False).removed == 0


def test_limits_of_labelled_text_draw_from_all(tmp_path):
    """A file sorted by class: the first hundred would be one class."""
    rows = [{"text": f"text {row}", "label": row // 500} for row in range(1000)]
    data = labelled(train_file=write(tmp_path / "a.csv", csv(rows)), max_train_samples=100, max_eval_samples=20)
    assert (len(data.train_texts), len(data.validation_texts)) == (100, 20)
    assert 30 < int(data.train_labels.sum()) < 70


def test_a_labelled_fingerprint_depends_on_everything(tmp_path):
    """A letter, a label, a class name."""

    def of(change):
        rows = [{"text": f"text {row}", "label": "ab"[row % 2]} for row in range(40)]
        change(rows)
        return labelled(train_file=write(tmp_path / "a.csv", csv(rows))).fingerprint

    changes = [
        lambda rows: None,
        lambda rows: rows[3].update(text="text X"),
        lambda rows: (rows[3].update(label="a"), rows[4].update(label="b")),
        lambda rows: [row.update(label=row["label"].upper()) for row in rows],
    ]
    assert len(set(map(of, changes))) == 4 and of(changes[0]) == of(changes[0])


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([("x", "a"), ("y", "a")], {}, r"label_column='label' of train_file='a.jsonl' has only the class 'a'"),
        ([("x", 0.5), ("y", 1.5)], {}, r"the label of a.jsonl 0 is 0.5; a class is a word or a whole number"),
        ([("x", "a"), ("y", None)], {}, r"label_column='label': a.jsonl 1 has no label"),
        ([("x", "a"), ("y", "b")], {}, r"2 texts are too few to hold some out: give --validation_file"),
        ([("x", "a"), ("y", "b")], {"label_column": "lable"}, r"label_column='lable' is not a column .* mean 'label'"),
        ([("x", "a"), ("y", "b")], {"streaming": True}, r"streaming=True: texts with labels are read at once"),
        ([("x", "bad"), ("y", "good")], {"validation_file": "b.jsonl"}, r"validation_file='b.jsonl' has the class "
            r"'god', which the training text has not; did you mean 'good'\?"),
        ([("z", "god"), ("Z", "good")], {"validation_file": "b.jsonl"}, r"every training text stands in validation"),
        ([(" ", "a")], {}, r"train_file='a.jsonl' has no text in its column 'text'"),
    ],
)  # fmt: skip
def test_mistakes_with_labels(tmp_path, monkeypatch, rows, flags, message):
    """Each names the flag, the file or the row, and what is allowed."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", json_lines({"text": text, "label": label} for text, label in rows))
    write(tmp_path / "b.jsonl", json_lines([{"text": "z", "label": "god"}]))
    with pytest.raises(ValueError, match=message):
        labelled(train_file="a.jsonl", **flags)


def test_text_files_have_no_labels(tmp_path):
    """The message says what has."""
    with pytest.raises(ValueError, match=r"a.txt has no columns: texts with labels come from CSV, JSON"):
        labelled(train_file=write(tmp_path / "a.txt", "text"))


def test_the_bundled_passages(small_pydocs):
    """As many of the reference as of the library on each side, each from a document of its side and kind, of 40 to 400
    characters."""
    data = labelled(dataset_name="pydocs")
    assert data.names == ("reference", "library") and data.source == "passages of pydocs"
    sides = [
        (data.train_texts, data.train_labels, small_pydocs.train),
        (data.validation_texts, data.validation_labels, small_pydocs.validation),
    ]
    for texts_, labels, documents in sides:
        assert labels.bincount().tolist() == [12, 12] and len(set(texts_)) == 24
        for text, label in zip(texts_, labels.tolist()):
            kind = ("topic ", "module ")[label]
            assert 40 <= len(text) <= 400
            assert any(text in document.text for document in documents if document.name.startswith(kind))


def test_the_split_is_that_of_whole_documents(tmp_path):
    """Whole documents held out by `split_documents` with the fixed seed."""
    rows = [{"id": "0", "text": text} for text in TEXTS]
    file = write(tmp_path / "a.csv", csv(rows))
    documents = [Document(f"a.csv {row}", text) for row, text in enumerate(TEXTS)]
    expected = split_documents(documents, 0.05, SPLIT_SEED)[1]
    assert list(load_text(DataArguments(train_file=file)).validation) == expected
