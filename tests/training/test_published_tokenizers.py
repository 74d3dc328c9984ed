"""Tokenizers in the files of the published ones: GPT-2's vocab.json and merges.txt, CLIP's with </w> and lower case.

The published vocabularies cannot be reached from here. These are of the same form, trained on the text below, and held
against the algorithm as it was published (https://arxiv.org/abs/1508.07909), written out for single words.
"""

import json
from itertools import pairwise

import pytest
import regex
import torch
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizerFast, pipeline
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from triune.configuration.configuration_triune_clip import clip_preset
from triune.modeling import TriuneCLIPModel
from triune.training.tokenizers import load_tokenizer, train_tokenizer


TEXTS = [
    "The quick brown fox isn't lazy: it's 42 years old.\n\n  def f(x): return x",
    "naïve café, Grüße, 日本語",
] * 30
ASKED = [*TEXTS[:2], "Unseen: Ωμέγα 🙂👩‍🚀 \t tabs\r\n and   spaces ", "don't we'll they've I'd 123abc", " "]
GPT2_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
CLIP_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 77


def letters_of_bytes():
    """GPT-2's visible letter for each byte: those that can be seen stand for themselves, the others follow 255."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


def merged(pieces, ranks):
    """Pieces of a word, the pair that was learnt first joined everywhere, until none is known."""
    while len(pieces) > 1:
        first = min(pairwise(pieces), key=lambda pair: ranks.get(pair, len(ranks)))
        if first not in ranks:
            break
        joined, place = [], 0
        while place < len(pieces):
            both = tuple(pieces[place : place + 2]) == first
            joined.append("".join(first) if both else pieces[place])
            place += 1 + both
        pieces = joined
    return pieces


def by_the_book(folder, words, end=""):
    """Ids of words, from the two files alone."""
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(lines) if not line.startswith("#version")}
    letters, ids = letters_of_bytes(), []
    for word in words:
        pieces = [letters[byte] for byte in word.encode("utf-8")]
        pieces[-1] += end
        ids += [vocabulary[piece] for piece in merged(pieces, ranks)]
    return ids


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """The files of GPT-2's own repository, of a tokenizer that the training script would train."""
    folder = tmp_path_factory.mktemp("gpt2")
    ours = train_tokenizer("bpe", TEXTS, 400, 64)
    ours.backend_tokenizer.model.save(str(folder))
    vocabulary = ours.get_vocab() | {END: len(ours)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    page = {"tokenizer_class": "GPT2Tokenizer", "bos_token": END, "eos_token": END, "unk_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(page), encoding="utf-8")
    return folder, ours


@pytest.mark.parametrize("text", ASKED)
def test_files_of_gpt2(text, gpt2):
    """Read as `--tokenizer_name` reads them: ids by the book, and of the tokenizer that the files came from; decoded,
    any Unicode is as it was."""
    folder, ours = gpt2
    tokenizer = load_tokenizer("tokenizer_name", str(folder), 64)
    wanted = by_the_book(folder, GPT2_WORDS.findall(text))
    assert tokenizer(text)["input_ids"] == wanted
    assert ours(text, add_special_tokens=False)["input_ids"] == wanted
    assert tokenizer.decode(wanted) == text
    assert len(wanted) <= len(text.encode("utf-8"))


def clip_bpe(texts, vocab_size):
    """CLIP's kind: lower case, spaces do not count, a word's last piece ends in </w>; the two marks come last."""
    made = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(CLIP_WORDS.pattern), behavior="removed", invert=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        initial_alphabet=alphabet,
        special_tokens=[AddedToken(letter + "</w>", normalized=False) for letter in sorted(alphabet)],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made.model


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """CLIP's two files; the two marks have the last ids, as its 49,406 and 49,407."""
    folder = tmp_path_factory.mktemp("clip")
    clip_bpe(TEXTS, 700).save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    vocabulary |= {START: len(vocabulary), END: len(vocabulary) + 1}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    page = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(page), encoding="utf-8")
    return folder


@pytest.mark.parametrize("text", ASKED)
def test_files_of_clip(text, clip):
    """Read by transformers' class, and by ours for training: both marks around ids by the book, in lower case; never
    more than 77."""
    theirs = CLIPTokenizerFast.from_pretrained(clip)
    ours = load_tokenizer("tokenizer_name", str(clip), CONTEXT)
    inside = by_the_book(clip, CLIP_WORDS.findall(" ".join(text.lower().split())), "</w>")
    start, end = len(theirs) - 2, len(theirs) - 1
    for tokenizer in (theirs, ours):
        assert tokenizer(text)["input_ids"] == [start, *inside, end]
        assert tokenizer(text.upper().replace("SS", "ß"))["input_ids"] == tokenizer(text)["input_ids"]
        long = tokenizer(text + " word" * 100, truncation=True)["input_ids"]
        assert (len(long), long[0], long[-1]) == (CONTEXT, start, end)


@pytest.fixture
def model(clip):
    """A small CLIP for these ids: its weights are large, so that answers differ."""
    size = len(CLIPTokenizerFast.from_pretrained(clip))
    ends = {"bos_token_id": size - 2, "eos_token_id": size - 1}
    text = {"vocab_size": size, "max_position_embeddings": CONTEXT, "initializer_range": 0.3, **ends}
    return TriuneCLIPModel(clip_preset("clip-mini", text=text, vision={"initializer_range": 0.3})).eval()


def test_texts_end_where_clips_do(clip, model):
    """CLIP fills a row with its end token: features of padded texts, without a mask, against each text alone."""
    tokenizer = CLIPTokenizerFast.from_pretrained(clip)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    padded = tokenizer(ASKED, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    assert padded.shape == (len(ASKED), CONTEXT)
    with torch.no_grad():
        together = model.get_text_features(input_ids=padded).pooler_output
        alone = [
            model.get_text_features(**tokenizer(text, return_tensors="pt", truncation=True)).pooler_output
            for text in ASKED
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert together.std(0).min() > 1e-3  # they are not all the same


def test_clips_preprocessing(clip, model, tmp_path):
    """The shorter side by Pillow's bicubic filter, the middle, CLIP's own mean and deviation: pixels of transformers'
    processor against Pillow and the formula; the zero-shot pipeline of the folder answers by those pixels."""
    side = model.config.vision.embedding["image_size"]
    images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    pixels = torch.randint(0, 256, (40, 60, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = Image.fromarray(pixels.numpy())
    small = picture.resize((60 * side // 40, side), Image.BICUBIC)
    left = (small.width - side) // 2
    middle = torch.frombuffer(bytearray(small.crop((left, 0, left + side, side)).tobytes()), dtype=torch.uint8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    wanted = ((middle.view(side, side, 3) / 255 - mean) / deviation).permute(2, 0, 1)
    found = images(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-5)

    tokenizer = CLIPTokenizerFast.from_pretrained(clip)
    for part in (model, tokenizer, images):
        part.save_pretrained(tmp_path)
    names = ["fox", "café", "42"]
    texts = tokenizer([f"This is a photo of {name}." for name in names], padding=True, return_tensors="pt")
    with torch.no_grad():
        chances = model(**texts, pixel_values=wanted[None]).logits_per_image.softmax(-1)[0].tolist()
    ask = pipeline("zero-shot-image-classification", str(tmp_path), device="cpu")
    answer = {one["label"]: one["score"] for one in ask(picture, candidate_labels=names)}
    assert [answer[name] for name in names] == pytest.approx(chances, abs=1e-4)
    assert max(chances) - min(chances) > 0.01
