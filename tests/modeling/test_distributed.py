"""Two processes (gloo, on the CPU, loopback only) compute what one does: tensor parallelism, FSDP2, DDP and pipelines.

transformers cuts the model itself, by the plans of the configuration: `from_pretrained(distributed_config=...)`. Each
test asserts both that the numbers are those of the whole model and that no process holds all of it: a model that was
not cut would give the right numbers too.
"""

import multiprocessing
import os
import time
import traceback

import pytest
import torch
import torch.distributed as dist
import transformers
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.distributed import DistributedConfig

from triune.configuration import TriuneConfig
from triune.modeling import (
    TriuneForCausalLM,
    TriuneForImageClassification,
    TriuneForMaskedLM,
    TriuneForSequenceClassification,
)


WORLD, LAYERS, LENGTH, VOCAB = 2, 4, 8, 98
CLOSE = {"atol": 3e-5, "rtol": 1e-4}
LLAMA = {
    "attention": {"type": "causal", "qkv_bias": False, "out_bias": False},
    "position": "rotary",
    "norm": "rmsnorm",
    "feed_forward": {"type": "gated", "bias": False},
    "num_key_value_heads": 2,
}
MODELS = {
    "gpt": (TriuneForCausalLM, {"attention": "causal"}),
    "llama": (TriuneForCausalLM, {**LLAMA, "tie_word_embeddings": False}),
    "llama-tied": (TriuneForCausalLM, LLAMA),
    "qk-norm": (TriuneForCausalLM, {"attention": {"type": "causal", "qk_norm": True}, "position": "rotary"}),
    "capped": (TriuneForCausalLM, {**LLAMA, "hidden_act": "prelu", "lm_head": {"type": "plain", "softcap": 2.0}}),
    "window": (TriuneForCausalLM, {**LLAMA, "sliding_window": 3}),
    "sinusoidal": (TriuneForCausalLM, {"attention": "causal", "position": "sinusoidal"}),
    "relative": (TriuneForCausalLM, {"attention": "causal", "position": "relative"}),
    "scaled": (TriuneForCausalLM, {"attention": "causal", "embedding": {"type": "tokens", "scale": True}}),
    "embedding-norm": (
        TriuneForCausalLM,
        {**LLAMA, "embedding": {"type": "tokens", "norm": "after"}, "tie_word_embeddings": False},
    ),
    "bert": (
        TriuneForMaskedLM,
        {
            "embedding": {"type": "tokens", "type_vocab_size": 2, "norm": "after"},
            "norm_placement": "post",
            "lm_head": "transform",
        },
    ),
    "classifier": (TriuneForSequenceClassification, {"pooling": {"type": "cls", "dense": True}, "num_labels": 2}),
    "vit": (
        TriuneForImageClassification,
        {"embedding": {"type": "patches", "image_size": 8, "patch_size": 4}, "num_labels": 2},
    ),
}


# ---------------------------------------------------------------------------------------------------------------------
# Both sides


def make(name: str):
    torch.manual_seed(0)
    head, changes = MODELS[name]
    text = {} if name == "vit" else {"vocab_size": VOCAB, "max_position_embeddings": 32}
    sizes = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64}
    return head(TriuneConfig(**{**sizes, **text, "initializer_range": 0.2, **changes})).eval()


def batch_of(name: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    classes = torch.tensor([0, 1, 1, 0])
    if name == "vit":
        return {"pixel_values": torch.randn(4, 3, 8, 8, generator=generator), "labels": classes}
    ids = torch.randint(3, VOCAB, (4, LENGTH), generator=generator)
    return {"input_ids": ids, "labels": classes if name == "classifier" else ids}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def close(one, other, **tolerance) -> None:
    torch.testing.assert_close(one, other, **{**CLOSE, **tolerance})


def logits(model, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


def make_optimizer(model) -> torch.optim.Optimizer:
    """Plain descent: Adam's first step depends on the signs of gradients only. To be made before the first forward,
    which leaves some of FSDP2's parameters whole."""
    return torch.optim.SGD(model.parameters(), lr=0.5)


def step(model, optimizer, batch: dict) -> None:
    model.train()
    model(**batch).loss.backward()
    optimizer.step()


# ---------------------------------------------------------------------------------------------------------------------
# Two processes

WORKERS = multiprocessing.get_context("forkserver")  # imports once, then forks: a new interpreter takes seconds
WORKERS.set_forkserver_preload(["transformers.modeling_utils", "triune.modeling", __name__])


def enter(task, rank: int, folder: str, arguments: tuple, failures) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD), GLOO_SOCKET_IFNAME="lo", CUDA_VISIBLE_DEVICES=""
    )
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
        task(folder, *arguments)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        failures.put(f"rank {rank}:\n{traceback.format_exc()}")


def run(task, folder, *arguments, seconds: float = 100.0) -> None:
    """Run a function in two processes that know each other; the first failure ends both."""
    failures = WORKERS.SimpleQueue()
    workers = [
        WORKERS.Process(target=enter, args=(task, rank, str(folder), arguments, failures), daemon=True)
        for rank in range(WORLD)
    ]
    for worker in workers:
        worker.start()
    end = time.monotonic() + seconds
    while any(worker.exitcode is None for worker in workers) and time.monotonic() < end and failures.empty():
        time.sleep(0.02)
    for worker in workers:
        worker.join(timeout=0 if not failures.empty() else 5)
        if worker.exitcode is None:
            worker.kill()
            worker.join()
    if not failures.empty():
        pytest.fail(failures.get(), pytrace=False)
    assert [worker.exitcode for worker in workers] == [0, 0], "a process was stopped: it took too long"


@pytest.fixture
def saved(tmp_path, request):
    """A folder with the model in it, and the model's name."""
    name = request.node.callspec.params["name"]
    make(name).save_pretrained(tmp_path / "model")
    return tmp_path, name


# ---------------------------------------------------------------------------------------------------------------------
# Tensor parallelism


def tensor_parallel(folder: str, name: str) -> None:
    reference, batch = make(name), batch_of(name)
    settings = DistributedConfig(tp_size=WORLD, tp_plan="auto")
    model = type(reference).from_pretrained(f"{folder}/model", distributed_config=settings).eval()
    close(logits(model, batch), logits(reference, batch))
    expected = sharded_dimensions(reference)
    for path, parameter in model.named_parameters():
        sizes = list(reference.get_parameter(path).shape)
        if path in expected:
            sizes[expected[path]] //= WORLD
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        assert list(local.shape) == sizes, f"{path}: {list(local.shape)} here, expected {sizes}"
    for one in (model, reference):
        one.train()(**batch).loss.backward()
    for path, parameter in model.named_parameters():
        close(whole(parameter.grad), reference.get_parameter(path).grad, atol=1e-4, msg=lambda m, path=path: path + m)
    model.save_pretrained(f"{folder}/again")
    dist.barrier()
    again = type(reference).from_pretrained(f"{folder}/again")
    for path, parameter in again.named_parameters():
        close(parameter, reference.get_parameter(path), atol=0, rtol=0)


def sharded_dimensions(model) -> dict[str, int]:
    """Which dimension of which parameter has to be cut: heads and channels where they are made (rows of q, k, v, gate
    and up) and where they are summed (columns of o and down), and the rows of the vocabulary. With relative positions
    attention stays whole, because their bias has a column per head."""
    heads = model.config.position["type"] != "relative"
    rows = ("mlp.gate_proj", "mlp.up_proj") + heads * ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    columns = ("mlp.down_proj",) + heads * ("self_attn.o_proj",)
    vocabulary = () if model.get_output_embeddings() is None else ("embed_tokens", "lm_head")
    dimensions = {}
    for path, _ in model.named_parameters():
        module, _, kind = path.rpartition(".")
        if module.endswith(rows + vocabulary):
            dimensions[path] = 0
        elif module.endswith(columns) and kind == "weight":
            dimensions[path] = 1
    return dimensions


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name",
    [
        *("gpt", "llama", "bert", "vit"),
        *(pytest.param(name, marks=SLOW) for name in ("llama-tied", "qk-norm", "capped", "window", "relative")),
        pytest.param("scaled", marks=SLOW),
    ],
)
def test_tensor_parallelism(saved, name):
    """Logits, gradients and a saved model of two shards against the whole model; every matrix of a layer and the
    vocabulary is cut in two."""
    run(tensor_parallel, *saved)


# ---------------------------------------------------------------------------------------------------------------------
# Data parallelism


def half_of(batch: dict) -> dict:
    """The rows of this process: it sees two of the four."""
    return {name: value.chunk(WORLD)[dist.get_rank()] for name, value in batch.items()}


def check_step(model, optimizer, reference, batch: dict, prefix: str = "") -> None:
    """One step on each process's half of the batch against one step on all of it."""
    step(model, optimizer, half_of(batch))
    step(reference, make_optimizer(reference), batch)
    for path, parameter in model.named_parameters():
        name = path.removeprefix(prefix)
        close(whole(parameter), reference.get_parameter(name), atol=1e-4, msg=lambda m, path=path: path + m)


def fully_sharded(folder: str, name: str) -> None:
    reference, batch = make(name), batch_of(name)
    settings = DistributedConfig(fsdp_size=WORLD)
    model = type(reference).from_pretrained(f"{folder}/model", distributed_config=settings).eval()
    optimizer = make_optimizer(model)
    for path, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), f"{path} is not sharded"
        rows = reference.get_parameter(path).shape[0]
        share = rows // WORLD + (dist.get_rank() < rows % WORLD)
        assert parameter.to_local().shape[0] == share, f"{path}: {tuple(parameter.to_local().shape)}"
    close(logits(model, batch), logits(reference, batch))
    check_step(model, optimizer, reference, batch)


@pytest.mark.parametrize(
    "name",
    [
        *("gpt", "bert", "vit"),
        *(pytest.param(name, marks=SLOW) for name in ("llama", "llama-tied", "capped", "relative", "classifier")),
    ],
)
def test_fully_sharded_data_parallelism(saved, name):
    """FSDP2: logits, and weights after a step on half of the batch each, against one process; every parameter is
    cut, the first dimension shared out."""
    run(fully_sharded, *saved)


def replicated(folder: str, name: str) -> None:
    reference, batch = make(name), batch_of(name)
    model = DistributedDataParallel(make(name))
    check_step(model, make_optimizer(model), reference, batch, prefix="module.")


@pytest.mark.parametrize("name", ["bert", pytest.param("relative", marks=SLOW), pytest.param("vit", marks=SLOW)])
def test_data_parallelism(tmp_path, name):
    """DDP: weights after a step on half of the batch each against one process; DDP itself refuses parameters that
    get no gradient."""
    run(replicated, tmp_path, name)


# ---------------------------------------------------------------------------------------------------------------------
# Pipelines


def pipelined(folder: str, name: str) -> None:
    reference, batch = make(name), batch_of(name)
    settings = DistributedConfig(pp_size=WORLD)
    model = type(reference).from_pretrained(f"{folder}/model", distributed_config=settings).eval()
    owned = [index for index, layer in enumerate(model.model.layers) if any(True for _ in layer.parameters())]
    assert owned == list(range(LAYERS)[: LAYERS // 2] if dist.get_rank() == 0 else range(LAYERS)[LAYERS // 2 :])
    close(logits(model, batch), logits(reference, batch))
    padded = {"input_ids": batch["input_ids"], "attention_mask": torch.ones_like(batch["input_ids"])}
    padded["attention_mask"][:2, :3] = 0
    padded["position_ids"] = (padded["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    real = padded["attention_mask"].bool()
    close(logits(model, padded)[real], logits(reference, padded)[real])
    if name != "relative":  # a later stage asks the cache for the length of layer 0, which it does not own
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        found = model.generate(batch["input_ids"], **options)
        assert found.tolist() == reference.generate(batch["input_ids"], **options).tolist()


@pytest.mark.parametrize(
    "name",
    [
        *("llama", "gpt", "embedding-norm"),
        *(pytest.param(name, marks=SLOW) for name in ("llama-tied", "capped", "sinusoidal", "relative", "scaled")),
    ],
)
def test_pipeline_parallelism(saved, name):
    """Logits and greedy tokens of two stages of transformers' pipeline, which feeds the second one hidden states as
    inputs_embeds, against the whole model; each process owns half of the layers."""
    run(pipelined, *saved)


def test_failures_are_reported(tmp_path):
    """The runner itself: an error in one process fails the test with its traceback, and at once."""
    start = time.monotonic()
    with pytest.raises(pytest.fail.Exception, match=r"(?s)rank 1:.*on purpose"):
        run(fail_on_purpose, tmp_path)
    assert time.monotonic() - start < 60


def fail_on_purpose(folder: str) -> None:
    if dist.get_rank() == 1:
        raise RuntimeError("on purpose")
    dist.barrier()
