"""Several documents in one row: position ids that restart keep them apart, in both kinds of attention."""

import pytest
import torch

from triune.configuration import TriuneConfig
from triune.modeling import TriuneForCausalLM, TriuneForImageClassification, TriuneForMaskedLM


VOCAB, LENGTH, HIDDEN = 50, 12, 32
# Boundaries of their own in every row: documents of length 1 at both ends and in the middle, and a row in one piece.
ROWS = [[5, 7], [1, 6, 1, 4], [12], [11, 1]]
HEADS = {"bidirectional": TriuneForMaskedLM, "causal": TriuneForCausalLM}
POSITIONS = ["none", "learned", "sinusoidal", "rotary", "relative"]
WINDOWS = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 2}


def make(attention, kernel="sdpa", **fields):
    sizes = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = TriuneConfig(**{**sizes, "max_position_embeddings": 64, "attention": attention, **fields})
    model = HEADS[attention](config).eval()
    model.set_attn_implementation(kernel)
    for weight in model.parameters():  # large enough that attention prefers some tokens to others
        torch.nn.init.normal_(weight, std=0.2)
    return model


def tokens():
    return torch.randint(0, VOCAB, (len(ROWS), LENGTH), generator=torch.Generator().manual_seed(1))


def places(rows=ROWS):
    return torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])


def spans(rows=ROWS):
    """(row, first, end) of every document."""
    for row, lengths in enumerate(rows):
        ends = torch.tensor(lengths).cumsum(0).tolist()
        yield from ((row, end - length, end) for end, length in zip(ends, lengths))


def logits(model, **inputs):
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits


def assert_rows_equal_documents(model, position_ids, rows=ROWS):
    """Of every document, the logits in its packed row against those of the document alone at the same places."""
    ids = tokens()
    packed = logits(model, input_ids=ids, position_ids=position_ids)
    for row, first, end in spans(rows):
        own = {"input_ids": ids[row : row + 1, first:end], "position_ids": position_ids[row : row + 1, first:end]}
        torch.testing.assert_close(packed[row : row + 1, first:end], logits(model, **own), atol=5e-6, rtol=1e-5)


def influence(model, position_ids, **inputs):
    """(query token, key token) of every row: whether the embedding of the second moves the logits of the first."""
    ids = tokens()
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    outputs = model(inputs_embeds=embeddings, position_ids=position_ids, use_cache=False, **inputs).logits
    weights = torch.randn(VOCAB, generator=torch.Generator().manual_seed(2))  # a plain sum could cancel
    scores = outputs @ weights  # (rows, queries)
    gradients = [
        torch.autograd.grad(scores[:, query].sum(), embeddings, retain_graph=True)[0] for query in range(LENGTH)
    ]
    return torch.stack(gradients, 1).abs().sum(-1) != 0


def blocks(rows=ROWS, causal=False):
    """(query, key) of every row: whether both stand in the same document, and the key not later if `causal`."""
    same = torch.zeros(len(rows), LENGTH, LENGTH, dtype=torch.bool)
    for row, first, end in spans(rows):
        same[row, first:end, first:end] = True
    return same.tril() if causal else same


# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def uncompiled():
    """Flex attention without its compiler, which takes many seconds for each shape."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kernel", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("attention", HEADS)
def test_packed_rows_equal_documents_alone(attention, kernel, position, uncompiled):
    """Logits of packed rows against those of each document alone, boundaries differing from row to row."""
    assert_rows_equal_documents(make(attention, kernel, position=position), places())


@pytest.mark.parametrize("kernel", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("attention", HEADS)
def test_packed_windows(attention, kernel, uncompiled):
    """A full layer and one of windows, packed against alone: neither kind of layer looks across a boundary."""
    assert_rows_equal_documents(make(attention, kernel, position="rotary", **WINDOWS), places())


@pytest.mark.parametrize("fields", [{}, {"position": "relative"}, {"position": "rotary", **WINDOWS}], ids=str)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("attention", HEADS)
def test_nothing_passes_a_boundary(attention, kernel, fields):
    """Which embeddings the logits depend on, by gradients, against the block matrix of the documents: exactly zero."""
    found = influence(make(attention, kernel, **fields), places())
    assert torch.equal(found, blocks(causal=attention == "causal"))


@pytest.mark.parametrize("attention", HEADS)
def test_packed_equals_a_finished_mask(attention):
    """Restarting position ids alone against the block matrix given as a mask of four dimensions."""
    model, ids = make(attention, position="rotary"), tokens()
    mask = blocks(causal=attention == "causal")[:, None]
    given = logits(model, input_ids=ids, position_ids=places(), attention_mask=mask)
    torch.testing.assert_close(logits(model, input_ids=ids, position_ids=places()), given, atol=0, rtol=0)


@pytest.mark.parametrize("attention", HEADS)
def test_a_given_mask_wins(attention):
    """With a mask of ones, restarting position ids are only positions: without any, the row is as if not packed."""
    model, ids, ones = make(attention, position="none"), tokens(), torch.ones(len(ROWS), LENGTH)
    whole = logits(model, input_ids=ids)
    given = logits(model, input_ids=ids, position_ids=places(), attention_mask=ones)
    torch.testing.assert_close(given, whole, atol=5e-6, rtol=1e-5)
    seen = influence(make(attention), places(), attention_mask=ones)
    assert torch.equal(seen, blocks([[LENGTH]] * len(ROWS), causal=attention == "causal"))


@pytest.mark.parametrize("attention", HEADS)
def test_one_line_of_positions_for_all_rows(attention):
    """Position ids of shape (1, length) against the same line repeated for every row."""
    model, line = make(attention), places([[4, 8]])
    assert_rows_equal_documents(model, line.expand(len(ROWS), -1), [[4, 8]] * len(ROWS))
    repeated = logits(model, input_ids=tokens(), position_ids=line.expand(len(ROWS), -1))
    assert torch.equal(logits(model, input_ids=tokens(), position_ids=line), repeated)


def test_documents_that_do_not_begin_at_zero():
    """Rows that open in the middle of a document, and positions counted from 2, against each document alone."""
    rows = [[5, 7], [3, 4, 5], [5, 7], [5, 7]]
    line = places(rows)
    line[0, :5] += 40
    line[1] += 2
    assert_rows_equal_documents(make("bidirectional"), line, rows)


@pytest.mark.parametrize("line", [[*range(11, -1, -1)], [7, 3, 40, 0, 1, 9, 8, 2, 22, 21, 30, 31], [*range(0, 36, 3)]])
def test_other_orders_are_one_document(line):
    """Positions backwards, mixed or with gaps (patches kept by MAE) hide nothing from a bidirectional model; a packed
    row in the same batch stays packed."""
    batch = torch.stack([torch.tensor(line), *places()[1:]])
    assert torch.equal(influence(make("bidirectional"), batch), blocks([[LENGTH], *ROWS[1:]]))


def test_no_mask_where_nothing_is_packed():
    """Text in one piece and images get no mask at all, as before: sdpa can then take its fastest kernel."""
    images = TriuneConfig(
        embedding={"type": "patches", "image_size": 8, "patch_size": 4},
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    seen = []
    for model in (make("bidirectional"), make("causal"), TriuneForImageClassification(images)):
        for layer in model.model.layers:
            layer.self_attn.register_forward_pre_hook(
                lambda _, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
            )
        if model.main_input_name == "pixel_values":
            model(pixel_values=torch.zeros(1, 3, 8, 8))
        else:
            for position_ids in (None, torch.arange(LENGTH)[None]):
                logits(model, input_ids=tokens(), position_ids=position_ids)
    assert seen == [None] * 10


def test_packed_compiles_without_graph_breaks():
    """torch.compile(fullgraph=True) of a packed batch against the same model not compiled."""
    torch.compiler.reset()
    model = make("bidirectional", num_hidden_layers=1)
    inputs = {"input_ids": tokens(), "position_ids": places()}
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(logits(compiled, **inputs), logits(model, **inputs), atol=5e-6, rtol=1e-5)
