"""Tokenizers trained on a text: sizes, special tokens, round trips, saving; against the text itself."""

import pydoc_data.topics

import pytest
from transformers import AutoTokenizer

from triune.training.tokenizers import CLS, MASK, PAD, SEP, SPECIAL, UNK, train_tokenizer


TEXTS = ["def f(x):\n    return x  # naïve ☃\n\n", "The quick brown fox jumps over the lazy dog, twice."] * 40
SIZES = {"wordpiece": 90, "bpe": 300, "characters": 45}
every_kind = pytest.mark.parametrize("kind", SIZES)


@every_kind
def test_size_and_special_tokens(kind):
    """At most the size asked for; the special tokens at their ids, by name and by role."""
    tokenizer = train_tokenizer(kind, TEXTS, SIZES[kind], 64)
    assert len(tokenizer) <= SIZES[kind]
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [PAD, UNK, CLS, SEP, MASK]
    roles = [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id]
    assert roles == [PAD, CLS, SEP, MASK]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.model_max_length) == (CLS, SEP, 64)


@every_kind
def test_frames_and_segments(kind):
    """One text is framed, two are framed with segments 0 and 1, and neither where no special tokens are wanted."""
    tokenizer = train_tokenizer(kind, TEXTS, SIZES[kind], 64)
    plain = tokenizer("the fox", add_special_tokens=False)["input_ids"]
    assert tokenizer("the fox")["input_ids"] == [CLS, *plain, SEP]
    pair = tokenizer("the fox", "the fox", return_token_type_ids=True)
    assert pair["input_ids"] == [CLS, *plain, SEP, *plain, SEP]
    assert pair["token_type_ids"] == [0] * (len(plain) + 2) + [1] * (len(plain) + 1)


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_nothing_is_lost(kind):
    """Decoding an encoding gives the text back, line breaks, accents and snowmen included."""
    tokenizer = train_tokenizer(kind, TEXTS, SIZES[kind], 64)
    for text in TEXTS[:2]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_bytes_of_unseen_characters_survive():
    """Byte-level BPE knows every byte: text from outside the training data comes back too."""
    tokenizer = train_tokenizer("bpe", TEXTS, 300, 64)
    assert tokenizer.decode(tokenizer("日本 🙂")["input_ids"], skip_special_tokens=True) == "日本 🙂"
    assert UNK not in tokenizer("日本 🙂")["input_ids"]


def test_the_most_frequent_characters_are_kept():
    """With room for ten characters, the ten most frequent have tokens and the rest are unknown."""
    tokenizer = train_tokenizer("characters", ["aaaabbbccd"], len(SPECIAL) + 2, 64)
    assert tokenizer("abcd", add_special_tokens=False)["input_ids"] == [5, 6, UNK, UNK]


@every_kind
def test_saved_and_loaded(kind, tmp_path):
    """`AutoTokenizer` gives the same ids from the saved files."""
    tokenizer = train_tokenizer(kind, TEXTS, SIZES[kind], 64)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(TEXTS[0])["input_ids"] == tokenizer(TEXTS[0])["input_ids"]
    assert loaded.mask_token_id == MASK


@pytest.mark.parametrize("size", [300, 1000])
@every_kind
def test_training_is_deterministic(kind, size):
    """Two tokenizers from the same text have the same vocabulary, ids included."""
    texts = list(pydoc_data.topics.topics.values())[:20]
    first, second = (train_tokenizer(kind, texts, size, 64) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()


def test_refusals():
    """An unknown kind with the nearest one; a size that cannot be."""
    with pytest.raises(ValueError, match=r"tokenizer_type='wordpeace'.*did you mean 'wordpiece'"):
        train_tokenizer("wordpeace", TEXTS, 90, 64)
    with pytest.raises(ValueError, match="vocab_size=100 is too small for a bpe tokenizer: at least 261"):
        train_tokenizer("bpe", TEXTS, 100, 64)
