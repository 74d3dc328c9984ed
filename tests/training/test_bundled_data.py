"""The bundled data: nothing held out stands in train, the same arguments give the same data, images are what they are
called. Overlap is checked against a plain implementation with sets of tuples."""

import string
import sys

import numpy as np
import pytest
import torch

from triune.training.data import bundled, letters
from triune.training.data.images import Images, image_data, stratified_folds
from triune.training.data.python_docs import documented, reference_topics
from triune.training.data.text import (
    RUN,
    WORD,
    Document,
    characters,
    fingerprint,
    normalised,
    overlap,
    passages,
    remove_shared_passages,
    run_codes,
    split_documents,
    text_data,
    word_codes,
)


def random_documents(count, seed=0, words=200, vocabulary=5000):
    """Documents of random words, in passages of twenty."""
    random = np.random.default_rng(seed)
    documents = []
    for index in range(count):
        drawn = [f"w{number}" for number in random.integers(0, vocabulary, words)]
        lines = [" ".join(drawn[start : start + 20]) for start in range(0, words, 20)]
        documents.append(Document(f"document {index}", "\n\n".join(lines)))
    return documents


def plain_runs(text, length):
    words = WORD.findall(text.casefold())
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]


def plain_overlap(train, validation):
    """The definition, word for word: share of held-out words in runs of RUN, and the longest run in common."""
    known = {run for document in train for run in plain_runs(document.text, RUN)}
    inside = total = 0
    for document in validation:
        covered = set()
        for start, run in enumerate(plain_runs(document.text, RUN)):
            covered |= set(range(start, start + RUN)) if run in known else set()
        inside, total = inside + len(covered), total + len(WORD.findall(document.text))
    longest = 0
    while {run for document in train for run in plain_runs(document.text, longest + 1)} & {
        run for document in validation for run in plain_runs(document.text, longest + 1)
    }:
        longest += 1
    return inside / total, longest


def names(documents):
    return {document.name for document in documents}


# ---------------------------------------------------------------------------------------------------------------------
# Splitting text


def test_a_split_keeps_documents_whole():
    """Both sides together are the documents, in their order; about a tenth of the text is held out."""
    documents = random_documents(40)
    train, validation = split_documents(documents, 0.1, seed=0)
    assert sorted(train + validation, key=documents.index) == documents
    assert not names(train) & names(validation)
    assert [document for document in documents if document in train] == train
    assert characters(validation) / characters(documents) == pytest.approx(0.1, abs=0.02)


def test_a_split_belongs_to_seed_and_names():
    """The position of a document and the text of others do not matter; the seed does."""
    documents = random_documents(40)
    held_out = names(split_documents(documents, 0.1, seed=0)[1])
    assert names(split_documents(documents[::-1], 0.1, seed=0)[1]) == held_out
    other_texts = [Document(document.name, "x" * len(document.text)) for document in documents]
    assert names(split_documents(other_texts, 0.1, seed=0)[1]) == held_out
    assert names(split_documents(documents, 0.1, seed=1)[1]) != held_out


def test_every_document_is_held_out_by_some_seed():
    """Forty equal documents, a tenth held out: over 400 seeds each about forty times."""
    documents = [Document(str(index), "text") for index in range(40)]
    counts = dict.fromkeys(names(documents), 0)
    for seed in range(400):
        for document in split_documents(documents, 0.1, seed)[1]:
            counts[document.name] += 1
    assert 15 < min(counts.values()) <= max(counts.values()) < 70


def test_a_large_document_does_not_overshoot():
    """One document is half of the text: it is never held out when a tenth is asked for."""
    documents = [*random_documents(20), Document("large", "word " * 5000)]
    for seed in range(30):
        held_out = split_documents(documents, 0.1, seed)[1]
        assert "large" not in names(held_out)
        assert characters(held_out) <= 0.2 * characters(documents)


def test_neither_side_is_ever_empty():
    """Two documents, any share: one on each side."""
    for fraction in (0.01, 0.5, 0.99):
        train, validation = split_documents(random_documents(2), fraction, seed=0)
        assert len(train) == len(validation) == 1


def test_documents_of_one_name_stay_together():
    """Parts of a file are not split."""
    documents = [Document(f"file {index % 5}", "text " * 20) for index in range(50)]
    for seed in range(10):
        train, validation = split_documents(documents, 0.2, seed)
        assert not names(train) & names(validation)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 5])
def test_a_fraction_is_a_share(fraction):
    """Percentages and borders are refused."""
    with pytest.raises(ValueError, match=rf"fraction={fraction} must lie between 0 and 1"):
        split_documents(random_documents(4), fraction, seed=0)


def test_one_document_cannot_be_split():
    """The message says what is there and what is needed."""
    with pytest.raises(ValueError, match=r"documents=\['only'\].*at least two"):
        split_documents([Document("only", "text"), Document("only", "more")], 0.5, seed=0)


# ---------------------------------------------------------------------------------------------------------------------
# Leaks


def test_passages_are_paragraphs():
    """Blank lines separate, spaces on them do not count, indentation stays."""
    assert passages("one\ntwo\n\n\n    three\n \t\n  four\r\n\r\nfive\n\n") == [
        *("one\ntwo", "    three", "  four\r", "five"),
    ]
    assert normalised("  One\n    TWO\tthree ") == "one two three"


def test_a_planted_leak_is_found_and_removed():
    """A held-out passage, indented and capitalised anew, and eight words of another inside a longer passage: both go;
    their neighbours and the other documents stay as they are."""
    train, validation = random_documents(10, seed=1), random_documents(2, seed=2)
    whole = "    " + passages(validation[0].text)[3].upper().replace(" ", "\n    ", 4)
    words = passages(validation[1].text)[5].split()[2 : 2 + RUN]
    inside = f"before it {', '.join(words)} and after it"
    before, *after = passages(train[4].text)
    leaking = [*train[:4], Document("leak", "\n\n".join([before, whole, inside, *after])), *train[5:]]

    found = overlap(leaking, validation)
    assert found == plain_overlap(leaking, validation)
    assert (found.share, found.longest) == ((20 + RUN) / 400, 20)
    cleaned = remove_shared_passages(leaking, validation)
    assert cleaned == [*train[:4], Document("leak", train[4].text), *train[5:]]
    assert all(new is old for new, old in zip(cleaned, leaking) if old.name != "leak")
    assert overlap(cleaned, validation).share == 0


def test_a_run_across_passages_is_removed():
    """Eight held-out words that the training text spreads over two passages; seven are left alone."""
    validation = [Document("held out", "a b c d e f g h i j")]
    assert remove_shared_passages([Document("t", "x a b c\n\nd e f g h y\n\nz")], validation) == [Document("t", "z")]
    seven = [Document("t", "x a b c\n\nd e f g y\n\nz")]
    assert remove_shared_passages(seven, validation) == seven


def test_a_run_that_removal_joins_is_removed():
    """Between the two halves of a held-out run stands a held-out passage: it goes, and then they do."""
    validation = [Document("held out", "a b c d e f g h\n\nnote")]
    train = [Document("t", "x a b c d\n\nNote\n\ne f g h y\n\nz")]
    assert remove_shared_passages(train, validation) == [Document("t", "z")]


def test_short_passages_and_whole_documents_go_too():
    """A held-out passage without a single word, and a document of which nothing remains."""
    validation = [Document("held out", "***\n\nsome words")]
    train = [Document("a", "***\n\nkept"), Document("b", "Some\nwords")]
    assert remove_shared_passages(train, validation) == [Document("a", "kept")]


@pytest.mark.parametrize("vocabulary", [2, 3, 5, 50])
def test_overlap_against_the_definition(vocabulary):
    """Random texts of few words, which have much in common, against sets of tuples; texts shorter than a run too."""
    train = random_documents(4, seed=vocabulary, words=60, vocabulary=vocabulary)
    validation = random_documents(3, seed=vocabulary + 1, words=40, vocabulary=vocabulary) + [Document("short", "w1")]
    assert overlap(train, validation) == pytest.approx(plain_overlap(train, validation))


def test_equal_runs_have_equal_codes():
    """Wherever they stand and however long they are; one other word changes every run that holds it."""
    words = word_codes(" ".join(f"w{number % 97}" for number in range(3000)))
    for length in (1, 8, 97, 1000):
        codes = run_codes(words, length)
        assert len(codes) == 3000 - length + 1
        assert np.array_equal(codes[97:], codes[:-97])
    changed = words.copy()
    changed[100] += np.uint64(1)
    differ = np.flatnonzero(run_codes(words, 8) != run_codes(changed, 8))
    assert differ.tolist() == list(range(93, 101))


def test_nothing_in_common():
    """Empty sides and unlike words."""
    assert overlap([], [Document("a", "one two")]) == (0, 0)
    assert overlap([Document("a", "one two")], []) == (0, 0)
    assert overlap([Document("a", "one")], [Document("b", "two")]) == (0, 0)


def test_a_fingerprint_depends_on_every_character():
    """Each character of a name or text, the order, where a text ends, and which side it stands on."""
    documents = [Document("ab", "one two"), Document("c", "three")]
    seen = {fingerprint(documents), fingerprint(documents[::-1]), fingerprint(documents[:1], documents[1:])}
    seen |= {fingerprint([Document("abo", "ne two"), documents[1]])}
    seen |= {fingerprint([Document("ab", "one twoc"), Document("", "three")])}
    variants = [Document("a" * place + "X", "one two") for place in range(2)]
    variants += [Document("ab", "one two"[:place] + "X" + "one two"[place + 1 :]) for place in range(7)]
    seen |= {fingerprint([variant, documents[1]]) for variant in variants}
    assert len(seen) == 5 + len(variants)
    assert fingerprint(list(documents)) == fingerprint(tuple(documents))


def test_describe_says_what_was_done():
    """One line with the numbers of a small set."""
    train = [Document("a", "one two three\n\nfour"), Document("b", "five")]
    data = text_data(train, [Document("c", "FOUR")], source="a file")
    assert "\n" not in data.describe()
    assert data.describe() == (
        "a file: 17 characters in 2 documents; held out 4 in 1; removed from train 6 (26.1%), "
        f"overlap left 0.00% of the words in runs of 8 or more, longest run 0; sha256 {data.fingerprint[:12]}"
    )
    assert data.headline == data.validation


# ---------------------------------------------------------------------------------------------------------------------
# pydocs


@pytest.fixture(scope="module")
def pydocs():
    return bundled.pydocs()


def test_pydocs_is_large_and_split_by_topics_and_modules(pydocs):
    """The sizes that were measured, with room for other versions of Python; the headline are the held-out topics."""
    assert 1_500_000 < characters(pydocs.train) < 2_500_000
    assert 0.08 < characters(pydocs.validation) / characters(pydocs.train + pydocs.validation) < 0.13
    assert not names(pydocs.train) & names(pydocs.validation)
    assert {name.split()[0] for name in names(pydocs.train + pydocs.validation)} == {"topic", "module"}
    assert pydocs.headline == tuple(item for item in pydocs.validation if item.name.startswith("topic "))
    assert 30_000 < characters(pydocs.headline) < 70_000


def test_pydocs_holds_nothing_out_that_stands_in_train(pydocs):
    """No passage, and no run of eight words: by plain sets, and as the data set says of itself."""
    held_out = {normalised(passage) for document in pydocs.validation for passage in passages(document.text)}
    trained = {normalised(passage) for document in pydocs.train for passage in passages(document.text)}
    assert len(held_out) > 500
    assert not held_out & trained
    known = {run for document in pydocs.train for run in plain_runs(document.text, RUN)}
    assert not known & {run for document in pydocs.validation for run in plain_runs(document.text, RUN)}
    assert pydocs.overlap.share == 0
    assert pydocs.overlap.longest < RUN


def test_topics_leak_without_removal():
    """Four random splits of the topics: as they are, on average more than 15 % of the held-out words stand in train in
    runs of eight or more (measured: 28 %); after removal none."""
    topics = reference_topics()
    splits = [split_documents(topics, 0.1, seed) for seed in range(4)]
    assert np.mean([overlap(*split).share for split in splits]) > 0.15
    assert max(overlap(remove_shared_passages(*split), split[1]).share for split in splits) == 0


def test_pydocs_removes_little(pydocs):
    """Less than 5 % of the training text goes, and the line for the console says how much."""
    assert 0 < pydocs.removed < 0.05 * characters(pydocs.train)
    assert f"removed from train {pydocs.removed:,} (" in pydocs.describe()
    assert "\n" not in pydocs.describe()


def test_pydocs_is_kept_and_reproducible(pydocs):
    """The second call is the same object; of the topics alone, two calls give the same fingerprint."""
    assert bundled.pydocs() is pydocs
    assert fingerprint(pydocs.train, pydocs.validation) == pydocs.fingerprint
    again = [text_data(*split_documents(reference_topics(), 0.1, seed=0), "topics").fingerprint for _ in range(2)]
    assert again[0] == again[1] != pydocs.fingerprint


def test_pydocs_reads_modules_and_leaves_tests_out(pydocs):
    """Packages go by their name, and no folder of tests or of installed packages is read."""
    modules = {name.removeprefix("module ") for name in names(pydocs.train + pydocs.validation)}
    assert {"argparse", "json.decoder", "email"} <= modules
    assert not [name for name in modules if {"test", "tests", "idlelib", "site-packages"} & set(name.split("."))]


def test_docstrings_are_read_and_not_run():
    """Module, classes and functions in the order of the file, by name and cleaned; the source would fail if it were
    imported."""
    source = b'''"""Module."""
raise RuntimeError
class A:
    """A class.

    Example:
        indented
    """
    async def b(self):
        "inner"
    def c(self): pass
def d():
    """Last. \\d"""
'''
    names, texts = zip(*documented(source))
    assert names == ("", "A", "b()", "d()")
    assert texts == ("Module.", "A class.\n\nExample:\n    indented", "inner", "Last. \\d")


def test_pydocs_without_topics(monkeypatch):
    """A Python without pydoc_data."""
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ModuleNotFoundError, match=r"pydocs needs pydoc_data\.topics"):
        reference_topics()


# ---------------------------------------------------------------------------------------------------------------------
# Folds and digits


def test_folds_are_stratified():
    """Uneven classes in five folds: every sample once, each class and the whole even to one sample."""
    labels = torch.tensor([0] * 7 + [1] * 23 + [2] * 11)[torch.randperm(41)]
    dealt = stratified_folds(labels, 5, seed=0)
    assert torch.equal(dealt, stratified_folds(labels, 5, seed=0))
    assert not torch.equal(dealt, stratified_folds(labels, 5, seed=1))
    for group in (labels >= 0, *(labels == label for label in range(3))):
        sizes = torch.bincount(dealt[group], minlength=5)
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("folds", [0, 1, 42])
def test_folds_must_be_possible(folds):
    """At least two, at most one for each sample."""
    with pytest.raises(ValueError, match=f"folds={folds} must lie between 2 and the number of samples, 41"):
        stratified_folds(torch.zeros(41, dtype=torch.long), folds, seed=0)


def test_digits_are_scikit_learns():
    """The five held-out folds together are its images, each once, its grey values scaled to 255."""
    datasets = pytest.importorskip("sklearn.datasets")
    original = datasets.load_digits()
    folds = [bundled.digits(fold) for fold in range(5)]

    def rows(images):
        return sorted(zip(map(bytes, images.pixels.flatten(1).numpy()), images.labels.tolist()))

    expected = [bytes(np.rint(image * 255 / 16).astype(np.uint8)) for image in original.images.reshape(1797, 64)]
    everything = sorted(zip(expected, original.target.tolist()))
    assert sorted(row for data in folds for row in rows(data.validation)) == everything
    for data in folds:
        assert sorted(rows(data.train) + rows(data.validation)) == everything
        assert data.train.pixels.dtype == torch.uint8 and data.train.pixels.shape[1:] == (1, 8, 8)
        assert data.train.labels.dtype == torch.long and data.names == tuple("0123456789")
        counts = torch.bincount(data.validation.labels) * 5 - torch.bincount(torch.from_numpy(original.target))
        assert counts.abs().max() <= 5
    assert len({data.fingerprint for data in folds}) == 5
    assert bundled.digits(0).fingerprint == folds[0].fingerprint != bundled.digits(0, seed=1).fingerprint
    assert folds[0].describe().startswith("digits, fold 1 of 5: 1,437 images of 1 x 8 x 8 in 10 classes; held out 360")


def test_digits_without_scikit_learn(monkeypatch):
    """The message names the extra; a wrong fold is a ValueError."""
    pytest.importorskip("sklearn.datasets")
    with pytest.raises(ValueError, match="fold=5 must lie between 0 and folds - 1 = 4"):
        bundled.digits(5)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "triune\[test\]"'):
        bundled.digits()


def test_an_image_fingerprint_depends_on_every_byte():
    """A pixel, a label, a class name, the side."""
    images = Images(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]))
    brighter, other = images.pixels.clone(), images.labels.flip(0)
    brighter[1, 0, 1, 1] = 1
    sets = [
        image_data(images, images, "ab", "source"),
        image_data(Images(brighter, images.labels), images, "ab", "source"),
        image_data(images, Images(brighter, images.labels), "ab", "source"),
        image_data(Images(images.pixels, other), images, "ab", "source"),
        image_data(images, images, "ac", "source"),
    ]
    assert len({data.fingerprint for data in sets}) == len(sets)


# ---------------------------------------------------------------------------------------------------------------------
# Letters


@pytest.fixture
def fonts():
    pytest.importorskip("matplotlib")
    return letters.font_folder()


def glyphs(file, alphabet):
    """Each letter cut out and brought to one size, with mean 0 and length 1; None where a font draws nothing."""
    from PIL import Image, ImageDraw, ImageFont

    typeface, rows = ImageFont.truetype(file, 40), []
    for letter in alphabet:
        image = Image.new("L", (160, 160))
        ImageDraw.Draw(image).text((60, 100), letter, font=typeface, fill=255, anchor="ls")
        if image.getbbox() is None:
            return None
        row = np.asarray(image.crop(image.getbbox()).resize((16, 16)), dtype=np.float64).ravel()
        rows.append((row - row.mean()) / max(1e-9, np.linalg.norm(row - row.mean())))
    return np.array(rows)


def test_the_listed_fonts_are_the_legible_ones(fonts):
    """Every listed font draws the letters as some other listed font does (mean correlation over 0.7), and no other
    file of matplotlib does (below 0.5, or nothing at all)."""
    listed = [font for family in letters.FAMILIES.values() for font in family]
    drawn = {file.stem: glyphs(file, string.ascii_letters) for file in fonts.glob("*.ttf")}
    assert set(listed) <= set(drawn) and len(set(listed)) == len(listed) == 22
    for font, rows in drawn.items():
        alike = (
            max((drawn[other] * rows).sum(axis=1).mean() for other in listed if other != font)
            if rows is not None
            else 0
        )
        assert alike > 0.7 if font in listed else alike < 0.5, (font, alike)


def test_held_out_families_are_never_drawn_for_training(fonts, monkeypatch):
    """What is asked to be drawn: whole families, no font twice, every font once, and nothing of the other side."""
    calls = []

    def recording(names, alphabet, per_font, seed):
        calls.append(list(names))
        return Images(torch.zeros(1, 1, 32, 32, dtype=torch.uint8), torch.zeros(1, dtype=torch.long))

    monkeypatch.setattr(bundled, "draw", recording)
    for held_out in ("STIX", ["STIX"], ("STIX", "Computer Modern"), ("Computer Modern", "STIX", "STIX")):
        calls.clear()
        bundled.letters(held_out=held_out)
        train, validation = calls
        chosen = {held_out} if isinstance(held_out, str) else set(held_out)
        assert sorted(validation) == sorted(font for family in chosen for font in letters.FAMILIES[family])
        assert sorted(train + validation) == sorted(font for family in letters.FAMILIES.values() for font in family)


def test_letters_are_balanced_and_deterministic(fonts):
    """Every letter equally often on both sides; the same pixels again, others for another seed."""
    data = bundled.letters(per_font=3, held_out_per_font=2)
    assert torch.equal(torch.bincount(data.train.labels), torch.full((26,), 12 * 3))
    assert torch.equal(torch.bincount(data.validation.labels), torch.full((26,), 10 * 2))
    assert data.train.pixels.shape == (26 * 36, 1, 32, 32) and data.train.pixels.dtype == torch.uint8
    assert data.names == tuple(string.ascii_uppercase)
    assert bundled.letters(per_font=3, held_out_per_font=2).fingerprint == data.fingerprint
    assert bundled.letters(per_font=3, held_out_per_font=2, seed=1).fingerprint != data.fingerprint
    assert data.describe().startswith(
        "letters in 12 fonts, held out STIX and Computer Modern (10 fonts): 936 images of 1 x 32 x 32 in 26 classes"
    )


def test_a_letter_belongs_to_seed_font_letter_and_index(fonts):
    """The same image whatever else is drawn with it, and no two images alike."""
    alone = letters.draw(["cmr10"], "B", 2, seed=3).pixels
    among = letters.draw(["DejaVuSans", "cmr10"], "AB", 4, seed=3)
    assert torch.equal(among.pixels[12:14], alone)
    assert len(set(map(bytes, among.pixels.flatten(1).numpy()))) == 16
    assert among.labels.tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4


def test_letters_are_whole_and_bright(fonts):
    """In every font: no image is blank or full, hardly one touches the border, and what moves is the letter."""
    everything = [font for family in letters.FAMILIES.values() for font in family]
    pixels = letters.draw(everything, string.ascii_letters + string.digits, 2, seed=0).pixels[:, 0]
    inked = (pixels > 128).float().mean(dim=(1, 2))
    assert 0.005 < inked.min() and inked.max() < 0.5
    assert pixels.amax(dim=(1, 2)).min() > 128
    border = torch.cat([pixels[:, [0, -1]].flatten(1), pixels[:, :, [0, -1]].flatten(1)], dim=1)
    assert (border.amax(dim=1) > 64).float().mean() < 0.002


def test_distinct_letters_are_distinct(fonts):
    """Within a font no two letters are drawn alike, and a varied letter is nearest to its own plain one."""
    alphabet = string.ascii_uppercase
    for font in ("DejaVuSans", "STIXGeneralItalic", "cmtt10"):
        plain = np.stack([np.asarray(letters.plain_letter(font, letter).reduce(2)) for letter in alphabet])
        assert len(set(map(bytes, plain))) == 26
        drawn = letters.draw([font], alphabet, 8, seed=0)
        shifted = np.stack([np.roll(plain, (y, x), (1, 2)) for y in range(-2, 3) for x in range(-2, 3)])
        distance = torch.cdist(
            drawn.pixels.flatten(1).double(), torch.from_numpy(shifted).reshape(25 * 26, -1).double()
        )
        nearest = distance.view(-1, 25, 26).amin(dim=1).argmin(dim=1)
        assert (nearest == drawn.labels).double().mean() > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alphabet": "AAB"}, "alphabet='AAB' must be two or more different characters"),
        ({"alphabet": "A"}, "alphabet='A'"),
        ({"alphabet": "AÄ"}, "alphabet='AÄ'"),
        ({"held_out": "STYX"}, "held_out='STYX': choose from DejaVu Sans.*; did you mean 'STIX'"),
        ({"held_out": ()}, "must leave families to train on and to test on"),
        ({"held_out": tuple(letters.FAMILIES)}, "must leave families to train on and to test on"),
        ({"per_font": 0}, "per_font=0 must be at least 1"),
        ({"held_out_per_font": -1}, "held_out_per_font=-1 must be at least 1"),
    ],
)
def test_letters_refuse(arguments, message):
    """Each wrong argument by name, with what is allowed."""
    with pytest.raises(ValueError, match=message):
        bundled.letters(**arguments)


def test_letters_without_matplotlib(monkeypatch):
    """The message names the extra."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "triune\[plots\]"'):
        bundled.letters()
