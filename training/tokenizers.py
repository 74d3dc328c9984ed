"""Tokenizers trained on the data: WordPiece as BERT has it, byte-level BPE as GPT-2 has it, or single characters.

Each is a fast tokenizer of transformers, saved with the model, with the same special tokens at the same ids. BPE and
characters give the text back when decoded; WordPiece keeps the words and their case, not the spaces between them.
"""

import itertools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from triune.configuration.configuration_triune import nearest
from triune.training.arguments import ModelArguments


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(len(SPECIAL))


def wordpiece(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """The trainer numbers symbols as its hash tables fall and breaks ties by number: its alphabet is given to it in
    order, the continuing forms (##x) too, so that the same text gives the same tokenizer everywhere."""
    normalizer, splitter = normalizers.NFC(), pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    letters: Counter[str] = Counter()
    for word, count in words.items():
        letters.update(dict.fromkeys(word, count))
    alphabet = sorted(sorted(letters), key=letters.get, reverse=True)[: vocab_size // 3]
    inside = {"##" + letter for word in words for letter in word[1:] if letter in set(alphabet)}
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL, *sorted(alphabet), *sorted(inside)],
        limit_alphabet=len(alphabet),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    draft = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    draft.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    draft.train_from_iterator((f"{word} " * count for word, count in sorted(words.items())), trainer)
    found = sorted(set(draft.get_vocab()) - set(SPECIAL))
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *found])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=200))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def byte_level_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def characters(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """One token for each of the most frequent characters; the others are [UNK]."""
    counts = Counter(character for text in texts for character in text)
    frequent = sorted(counts, key=lambda character: (-counts[character], character))[: vocab_size - len(SPECIAL)]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *sorted(frequent)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


TOKENIZERS = {"wordpiece": wordpiece, "bpe": byte_level_bpe, "characters": characters}
SMALLEST = {"wordpiece": 64, "bpe": 256 + len(SPECIAL), "characters": len(SPECIAL) + 1}


def train_tokenizer(
    kind: str, texts: Iterable[str], vocab_size: int, max_length: int, closes: bool = True
) -> PreTrainedTokenizerFast:
    """A tokenizer of the named kind, which frames a text as [CLS] text [SEP] unless told not to add special tokens; as
    [CLS] text unless it `closes`: a causal model that is to go on must not read that the text is over."""
    if kind not in TOKENIZERS:
        raise ValueError(f"tokenizer_type={kind!r} is not one of {', '.join(TOKENIZERS)}{nearest(kind, TOKENIZERS)}")
    if vocab_size < SMALLEST[kind]:
        raise ValueError(f"vocab_size={vocab_size} is too small for a {kind} tokenizer: at least {SMALLEST[kind]}")
    tokenizer = TOKENIZERS[kind](texts, vocab_size)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]" if closes else "[CLS] $A",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **names,
        mask_token="[MASK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Sentinels

SENTINELS = 100  # as many as T5 has


def sentinel_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Those of <extra_id_0>, <extra_id_1>, ..., each of which stands for a hidden span."""
    known = tokenizer.get_added_vocab()
    names = itertools.takewhile(known.__contains__, map("<extra_id_{}>".format, itertools.count()))
    return [known[name] for name in names]


def add_sentinels(tokenizer: PreTrainedTokenizerFast) -> None:
    """As T5 has them, the first with the highest id, where there are none. A space in front of one belongs to it: the
    words that it stands for begin with theirs."""
    if not sentinel_ids(tokenizer):
        names = [f"<extra_id_{number}>" for number in reversed(range(SENTINELS))]
        tokens = [AddedToken(name, lstrip=True, special=True) for name in names]
        tokenizer.add_special_tokens({"additional_special_tokens": tokens})


# ---------------------------------------------------------------------------------------------------------------------
# Loaded or trained


def load_or_train_tokenizer(
    model: ModelArguments, texts: Iterable[str], max_length: int, kind: str = "wordpiece", closes: bool = True
) -> PreTrainedTokenizerFast:
    """The tokenizer that a run names; else that of the model it goes on from; else one trained on the texts, of the
    given kind unless the run names another."""
    for flag in ("tokenizer_name", "model_name_or_path"):
        name = getattr(model, flag)
        if name is not None:
            return load_tokenizer(flag, name, max_length)
    return train_tokenizer(model.tokenizer_type or kind, texts, model.vocab_size, max_length, closes)


def load_tokenizer(flag: str, name: str, max_length: int) -> PreTrainedTokenizerFast:
    """From a folder or the Hub, with what training needs of it. It is saved with the model, and for its length."""
    refuse_large(Path(name) / "tokenizer.json", flag)
    try:
        # without asking on stdin whether to run code: no tokenizer of ours has any
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # of the network, the Hub, of files that are missing or broken
        raise ValueError(f"{flag}={name!r}: no tokenizer can be loaded from there: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"{flag}={name!r} is a {type(tokenizer).__name__}, which has no tokenizer.json: it must be fast"
        )
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = (
            tokenizer.eos_token
        )  # GPT-2's has none; what is padded is masked out, whatever stands there
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"{flag}={name!r} has no pad token: load it, set tokenizer.pad_token (to its eos_token, say), and save it"
        )
    tokenizer.model_max_length = max_length
    return tokenizer


LARGEST = 10**8  # bytes; the largest that are published have a third of it


def refuse_large(file: Path, flag: str) -> None:
    if file.is_file() and file.stat().st_size > LARGEST:
        size = file.stat().st_size
        raise ValueError(f"{flag}={str(file.parent)!r}: tokenizer.json has {size:,} bytes; {LARGEST:,} are allowed")


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
