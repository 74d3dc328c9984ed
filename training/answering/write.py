"""A text is written from another: by the likeliest token, by beams, or drawn.

Marks that the text may hold, such as the sentinels for gaps of T5 (`<extra_id_0>`), are read and written as any word.
"""

from collections.abc import Iterator

from transformers import LogitsProcessor

from triune.training.answering.go_on import Drawn, choices, harmless
from triune.training.answering.way import Answer, Saved, Way, check_length, encoded, pad_id, text_batch
from triune.training.sampling import generator


WRITTEN = {"num_beams": 1, "max_new_tokens": 100, "temperature": 0.0, "top_k": 200, "top_p": 1.0, "seed": 0}


def write(
    saved: Saved,
    texts: list[str],
    first: int,
    num_beams: int,
    max_new_tokens: int,
    **drawing: float,
) -> Iterator[Answer]:
    """Until the model ends it or there are `max_new_tokens`, but never more than the decoder has places for."""
    drawn = drawing_of(num_beams, first, len(texts), **drawing)
    rows = encoded(saved, texts, truncate=False)
    for text, ids in zip(texts, rows):
        check_length(text, ids, saved)
    tokens = saved.model.generate(
        **text_batch(saved, rows),
        max_new_tokens=min(max_new_tokens, saved.model.config.decoder.max_position_embeddings),
        num_beams=num_beams,
        do_sample=False,
        logits_processor=drawn,
        pad_token_id=pad_id(saved),
    )
    for text, own in zip(texts, tokens.tolist()):
        yield {"text": text, "written": said(saved.tokenizer, own)}


def drawing_of(
    num_beams: int, first: int, count: int, temperature: float, top_k: int, top_p: float, seed: int
) -> list[LogitsProcessor]:
    """What is drawn depends on the seed and on the place of the text among the inputs."""
    if not temperature:
        given = {"top_k": top_k, "top_p": top_p, "seed": seed}
        for name, value in given.items():
            if value != WRITTEN[name]:
                raise ValueError(f"{name}={value!r} is about drawing tokens: give --temperature above 0 with it")
        return []
    if num_beams > 1:
        raise ValueError(f"num_beams={num_beams} and temperature={temperature}: beams are not drawn; give one of them")
    return [*choices(temperature, top_k, top_p), Drawn([generator(seed, first + place) for place in range(count)])]


def said(tokenizer, tokens: list[int]) -> str:
    """Without what frames a text and pads it; marks that the text holds stay."""
    frame = {getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep")}
    return tokenizer.decode([token for token in tokens if token not in frame])


def show_written(answer: Answer, mask: str | None) -> str:
    return harmless(answer["written"])


WRITE = Way(write, show_written, WRITTEN, '"A text to start from"')
