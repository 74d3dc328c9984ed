"""The loop for plain requests, against transformers' own: the same tokens, whatever is asked."""

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.generation.streamers import BaseStreamer

from triune.configuration import preset
from triune.modeling import TriuneForCausalLM, decoding, modeling_triune, single_rows
from triune.modeling.decoding import RoomyLayer
from triune.modeling.single_rows import Columns


SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 61}
SIZES |= {"max_position_embeddings": 160, "eos_token_id": 7, "pad_token_id": 0, "bos_token_id": 1}
MODELS = {
    "gpt2": preset("gpt2", **SIZES),
    "llama": preset("llama-mini", **SIZES, num_key_value_heads=2, intermediate_size=64),
    "today's": preset("modern-mini", **SIZES, num_key_value_heads=1),
    "windows": preset(
        "llama-mini",
        **SIZES,
        num_key_value_heads=2,
        intermediate_size=64,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "relative": preset("gpt2", **SIZES, position="relative"),
}
REQUESTS = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
    "penalised": {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 30},
    "until the end": {"do_sample": True, "eos_token_id": list(range(5, 20)), "pad_token_id": 0},
}


def model_of(name):
    torch.manual_seed(0)
    model = TriuneForCausalLM(MODELS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def written(model, ids, **request):
    torch.manual_seed(1)
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=100, **request)


@pytest.fixture
def calls(monkeypatch):
    """How often our loop ran; weights are turned for every text."""
    made = []
    monkeypatch.setattr(single_rows, "faster", lambda alike, tokens: [Columns(maps) for maps in alike])
    monkeypatch.setattr(modeling_triune, "decode", lambda *given: made.append(1) or decoding.decode(*given))
    return made


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("name", MODELS)
def test_the_same_tokens(name, request_, batch, calls, monkeypatch):
    model, ids = model_of(name), torch.randint(8, 60, (batch, 6), generator=torch.Generator().manual_seed(2))
    found = written(model, ids, **REQUESTS[request_])
    assert len(calls) == 1
    monkeypatch.setattr(modeling_triune, "can_decode", lambda *given: False)
    assert torch.equal(found, written(model, ids, **REQUESTS[request_]))
    assert len(calls) == 1 and found.shape[1] > 6


@pytest.mark.parametrize(
    "other",
    [
        {"num_beams": 2},
        {"return_dict_in_generate": True},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]])},
        {"position_ids": torch.tensor([[3, 4, 5, 6, 7, 8]])},
        {"prefill_chunk_size": 3},
    ],
    ids=["beams", "more than tokens", "no cache", "another cache", "padding", "other positions", "parts of a prompt"],
)
def test_what_is_left_to_transformers(other, calls):
    model, ids = model_of("gpt2"), torch.randint(8, 60, (1, 6))
    model.generate(ids, **{"attention_mask": torch.ones_like(ids), "max_new_tokens": 4, **other})
    assert not calls


def test_a_cache_that_keeps_what_a_window_hides(calls, monkeypatch):
    """Made without the configuration it has no windows: the mask is needed."""
    model, ids = model_of("windows"), torch.randint(8, 60, (1, 6))
    found = written(model, ids, do_sample=False, past_key_values=DynamicCache())
    assert not calls
    assert torch.equal(found, written(model, ids, do_sample=False)) and calls


def test_where_someone_listens(calls):
    """A hook around the stack hears every token, and a stage of a pipeline has not all layers."""
    model, ids, heard = model_of("gpt2"), torch.randint(8, 60, (1, 6)), []
    hook = model.model.register_forward_hook(lambda *given: heard.append(1))
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, min_new_tokens=5)
    assert len(heard) == 5 and not calls
    hook.remove()
    assert decoding.whole(model)
    model.model.layers[0] = torch.nn.Identity()
    assert not decoding.whole(model)


def test_a_streamer_sees_each_token(calls):
    class Heard(BaseStreamer):
        def __init__(self):
            self.tokens, self.ended = [], 0

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.ended += 1

    model, ids, heard = model_of("llama"), torch.randint(8, 60, (1, 6)), Heard()
    found = written(model, ids, do_sample=False, streamer=heard)
    assert heard.tokens == found[0].tolist() and heard.ended == 1 and calls


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name", MODELS)
def test_single_rows(name, threads, monkeypatch):
    """Columns, in parts, of maps of one input together: what the maps compute."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    model = model_of(name)
    groups = single_rows.maps_of(model)
    maps = [one for one in model.modules() if type(one) is torch.nn.Linear]
    assert sorted(map(id, maps)) == sorted(id(one) for group in groups for one in group)
    assert max(map(len, groups)) == 3
    for group in groups:
        columns, x = Columns(group), torch.randn(1, 1, group[0].in_features)
        for one, found in zip(group, columns(x), strict=True):
            torch.testing.assert_close(found, one(x), atol=1e-5, rtol=1e-5)
        found = columns(x)
        assert columns(x) is found and columns(x.clone()) is not found


def test_weights_are_as_they_were(calls):
    """The same objects, tied as before; also where a text ends with an error."""
    model, ids = model_of("gpt2"), torch.randint(8, 60, (1, 6))
    x = torch.randn(1, 1, 32)
    before = {name: (id(one), one.stride()) for name, one in model.named_parameters()}
    written(model, ids, do_sample=False)
    with pytest.raises(KeyboardInterrupt), single_rows.one_row_at_a_time(model, 100):
        assert "forward" in vars(model.lm_head)
        torch.testing.assert_close(model.lm_head(x), torch.nn.functional.linear(x, model.lm_head.weight))
        raise KeyboardInterrupt
    assert not any("forward" in vars(one) for one in model.modules())
    assert {name: (id(one), one.stride()) for name, one in model.named_parameters()} == before
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("own", "copies", "tokens", "wanted"), [(2, 1, 10**6, True), (2, 1, 0, False), (1, 2, 10**6, False)]
)
def test_copies_must_pay(own, copies, tokens, wanted, monkeypatch):
    """By being faster, and for enough tokens."""
    times = iter([own, copies])
    monkeypatch.setattr(single_rows, "seconds", lambda work, count: next(times))
    assert bool(single_rows.faster([[torch.nn.Linear(400, 3000)]], tokens)) == wanted


def test_a_cache_that_is_handed_in(calls):
    """It holds what was written, and can be gone on from."""
    model, ids, cache = model_of("llama"), torch.randint(8, 60, (1, 6)), DynamicCache()
    found = written(model, ids, do_sample=False, past_key_values=cache)
    seen = cache.get_seq_length()
    assert calls and seen == found.shape[1] - 1
    wanted = model(found).logits[:, -1]
    torch.testing.assert_close(model(found[:, -1:], past_key_values=cache).logits[:, -1], wanted, atol=1e-5, rtol=1e-5)


def test_a_layer_with_room():
    """Against one that is copied to grow, through everything that is done to caches."""
    torch.manual_seed(0)
    layers = (RoomyLayer(), DynamicLayer())

    def both(work):
        for layer in layers:
            work(layer)
        for name in ("keys", "values"):
            assert torch.equal(getattr(layers[0], name), getattr(layers[1], name))
        assert layers[0].get_seq_length() == layers[1].get_seq_length()

    for count in (1, 5, 200, 1):
        new = torch.randn(2, 3, count, 4), torch.randn(2, 3, count, 4)
        both(lambda layer, new=new: layer.update(*new))
    both(lambda layer: layer.crop(-3))
    both(lambda layer: layer.update(*new))
    both(lambda layer: layer.reorder_cache(torch.tensor([1, 1])))
    both(lambda layer: layer.update(*new))
    both(lambda layer: layer.batch_repeat_interleave(2))
    wider = torch.randn(4, 3, 2, 4)
    both(lambda layer: layer.update(wider, wider))
    both(lambda layer: layer.batch_select_indices(torch.tensor([2])))
    both(lambda layer: layer.update(wider[:1], wider[:1]))


def test_growing_copies_seldom():
    """One token after the other moves the memory a few times, not each time."""
    layer, places = RoomyLayer(), set()
    for _ in range(1000):
        layer.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4))
        places.add(layer.keys.data_ptr())
    assert len(places) <= 5 and layer.get_seq_length() == 1000
