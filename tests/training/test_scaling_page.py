"""The page on scaling: its formulas against the model itself, its tables and sentences against its formulas.

The formulas are the Python blocks of the page; this file runs them. `python tests/training/test_scaling_page.py`
writes the tables of the page anew.
"""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from triune.configuration import preset
from triune.modeling import TriuneForCausalLM
from triune.training.arguments import known_flags
from triune.training.schedules import SCHEDULES


PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"
GPUS = (8, 64)
TABLE = re.compile(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", flags=re.DOTALL)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def read_page() -> SimpleNamespace:
    """The assumptions and formulas of the page, its recipe, and the configuration that the recipe makes."""
    space = {}
    exec("\n".join(blocks("python")), space)  # the page is ours
    (recipe,) = map(yaml.safe_load, blocks("yaml"))
    config = preset(recipe["preset"], vocab_size=recipe["vocab_size"], **recipe["config"])
    return SimpleNamespace(**space, recipe=recipe, config=config, length=recipe["max_seq_length"])


# ---------------------------------------------------------------------------------------------------------------------
# What the page shows


def table(*rows) -> str:
    head, *body = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body]) + "\n"


def gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def model_table(p) -> str:
    batch = p.batch_tokens(p.recipe, 8)
    return table(
        ("", ""),
        ("parameters", f"{p.parameters(p.config):,}"),
        ("of them in a layer", f"{p.layer_parameters(p.config):,}"),
        ("tokens in a batch", f"{batch:,}"),
        ("short run", f"{20 * p.parameters(p.config) / 1e9:.1f}B tokens, {steps(p):,} steps"),
        ("long run", f"{p.TOKENS / 1e9:.0f}B tokens, {p.TOKENS / batch:,.0f} steps"),
    )


def steps(p) -> int:
    return round(20 * p.parameters(p.config) / p.batch_tokens(p.recipe, 8))


def time_table(p) -> str:
    head = ("GPUs", "FLOPs for a token", "tokens per second", "short run", "long run")
    rows = []
    for gpus in GPUS:
        duration = [p.days(p.config, p.length, gpus, n) for n in (20 * p.parameters(p.config), p.TOKENS)]
        rate = p.tokens_per_second(p.config, p.length, gpus)
        flops = p.flops_per_token(p.config, p.length)
        rows.append((gpus, f"{flops / 1e9:.2f}e9", f"{rate:,.0f}", *(f"{24 * day:.1f} hours" for day in duration)))
    return table(head, *rows)


LAYOUTS = {"DDP, any number": None, "FSDP2 on 8": 8, "FSDP2 on 64": 64}


def memory_table(p) -> str:
    tokens = p.recipe["per_device_train_batch_size"] * p.length
    head = ("on each GPU", "weights", "gradients", "optimiser", "else", f"activations of {tokens:,} tokens")
    rows = []
    for name, gpus in LAYOUTS.items():
        each, count = p.ddp_bytes(p.config) if gpus is None else p.fsdp2_bytes(p.config, gpus)
        parts = [each[part] * count for part in ("weights", "gradients", "optimiser")]
        states, kept = (
            p.state_memory(p.config, gpus),
            [p.activations(p.config, flag) * tokens for flag in (False, True)],
        )
        rows.append((name, *map(gb, parts), gb(states - sum(parts)), f"{gb(kept[0])}, checkpointed {gb(kept[1])}"))
        rows[-1] += (f"{gb(states + kept[0])}, checkpointed {gb(states + kept[1])}",)
    return table((*head, "sum"), *rows)


def rows_table(p) -> str:
    head = ("", *(f"{gpu}{kind}" for gpu in p.MEMORY for kind in ("", ", checkpointed")))
    rows = []
    for name, gpus in LAYOUTS.items():
        fits = [p.most_rows(p.config, p.length, gpu, gpus, flag) for gpu in p.MEMORY for flag in (False, True)]
        rows.append((name, *fits))
    return table(head, *rows)


def communication_table(p) -> str:
    rows = []
    for link, gpus in zip(p.LINKS, (8, 64, 64)):
        count = p.recipe["per_device_train_batch_size"]
        for name, volume in (("DDP, once a step", p.ddp_volume), ("FSDP2, every forward pass", p.fsdp2_volume)):
            size, sharded = volume(p.config, gpus), name.startswith("FSDP2")
            time = p.compute(p.config, p.length, count) * (1 if sharded else 2 / 3)
            beside = f"{1e3 * time:.0f} ms"
            hides = "yes" if p.hidden(p.config, p.length, count, gpus, link, sharded) else "no"
            rows.append((link, gpus, name, gb(size), f"{1e3 * p.seconds(size, link):.0f} ms", beside, hides))
    return table(("network", "GPUs", "", "sent by each", "takes", "beside", "hidden"), *rows)


def checkpoints_table(p) -> str:
    size = p.checkpoint_bytes(p.config)
    rates = [f"{p.text_rate(p.config, p.length, gpus) / 1e6:.1f} MB/s on {gpus}" for gpus in GPUS]
    return table(
        ("", ""),
        ("a checkpoint", gb(size)),
        ("written in", f"{size / p.DISK:.1f} s"),
        ("model folder, float32", gb(4 * p.parameters(p.config))),
        ("text read", ", ".join(rates)),
    )


TABLES = {
    "model": model_table,
    "time": time_table,
    "memory": memory_table,
    "rows": rows_table,
    "communication": communication_table,
    "checkpoints": checkpoints_table,
}


def waiting(p, gpus: int) -> str:
    """The share of the time that goes into a checkpoint every 1,000 steps."""
    save = p.checkpoint_bytes(p.config) / p.DISK
    train = 1000 * p.batch_tokens(p.recipe, 8) / p.tokens_per_second(p.config, p.length, gpus)
    return f"{100 * save / (save + train):.1f} %"


def sentences(p) -> list[str]:
    """Every passage of the prose that holds a number, with the number computed."""
    ethernet, rows = list(p.LINKS)[2], p.recipe["per_device_train_batch_size"]
    passes = p.passes_worth_a_sum(p.config, p.length, rows, 64, ethernet)
    changed = p.batch_tokens(p.recipe | {"gradient_accumulation_steps": passes}, 64)
    largest = {gpu: f"{p.largest_ddp(p.config, gpu) / 1e9:.1f}B" for gpu in p.MEMORY}
    return [
        "# What a 1B-parameter run takes, on 8 and on 64 GPUs",
        "On 64 GPUs the one change",
        # arXiv 2005.14165, 2304.01373 and 2401.02385
        "used 2e-4 with batches of 1M tokens (GPT-3), 3e-4 with 2M (Pythia) and 4e-4 with 2M (TinyLlama, warm-up of "
        "2,000 steps)",
        "the choice on 8 and on 64.",
        f"DDP fills an H100 at {largest['H100']} parameters and an H200 at {largest['H200']}, and",
        "with 64 GPUs it costs FSDP2 more",
        f"the gradients of one step take {p.seconds(p.ddp_volume(p.config, 64), ethernet):.2f} s, so that 64 GPUs "
        f"want {passes:.0f} forward passes of {rows} sequences for each step: a batch of {changed / 1e6:.1f}M tokens",
        f"every 1,000 steps costs {waiting(p, 8)} of the time on 8 GPUs and {waiting(p, 64)} on 64, if",
        f"whether {p.recipe['learning_rate']:.0e} is a good".replace("e-04", "e-4"),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Tests


@pytest.fixture(scope="module")
def page():
    return read_page()


def test_parameters_are_those_of_the_model(page):
    """The formula against the model, built on the meta device; about a billion."""
    with torch.device("meta"):
        model = TriuneForCausalLM(page.config)
    assert page.parameters(page.config) == model.num_parameters() and 1.0e9 < model.num_parameters() < 1.1e9
    assert page.layer_parameters(page.config) == sum(p.numel() for p in model.model.layers[0].parameters())


def test_recipe(page):
    """The recipe's keys are flags, its schedule exists, its steps are those of the short run; 64 GPUs, same batch."""
    assert set(page.recipe) <= set(known_flags())
    assert page.recipe["lr_scheduler_type"] in SCHEDULES
    assert page.recipe["max_steps"] == steps(page)
    one = page.recipe | {"gradient_accumulation_steps": 1}
    assert page.batch_tokens(one, 64) == page.batch_tokens(page.recipe, 8)


def test_flops_are_those_that_torch_counts(page):
    """The formula against torch's counter on the whole model (meta device); it counts the half that is skipped too."""
    config = preset("llama-mini", vocab_size=page.config.vocab_size, **page.recipe["config"])
    with torch.device("meta"):
        model, ids = TriuneForCausalLM(config), torch.zeros(1, page.length, dtype=torch.long)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    skipped = 6 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * page.length
    counted = counter.get_total_flops() / page.length
    assert counted == pytest.approx(page.flops_per_token(config, page.length) + skipped, rel=1e-9)


def small(layers: int):
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4, "num_key_value_heads": 2}
    return preset("llama-mini", vocab_size=64, num_hidden_layers=layers, **sizes)


def kept_bytes(layers: int, tokens: int, checkpointing: bool) -> int:
    """Bytes of all tensors that autograd keeps in a forward pass in bf16 autocast, weights left out."""
    model = TriuneForCausalLM(small(layers)).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids, labels=ids, use_cache=False)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    return sum(storage.nbytes() for address, storage in kept.items() if address not in weights)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_those_that_autograd_keeps(page, checkpointing):
    """Bytes of one more layer for one more token, by formula and counted; and what of a layer does not grow with the
    tokens: the bf16 copies of its weights."""
    count = {(n, tokens): kept_bytes(n, tokens, checkpointing) for n in (2, 3) for tokens in (128, 256)}
    more = {tokens: count[3, tokens] - count[2, tokens] for tokens in (128, 256)}
    for_a_token = (more[256] - more[128]) / 128
    formula = 4 * small(2).hidden_size if checkpointing else page.layer_activations(small(2))
    assert for_a_token == formula
    norms = 2 * small(2).hidden_size
    copies = 0 if checkpointing else page.ddp_bytes(small(2))[0]["bf16 copies"]
    assert more[128] - 128 * for_a_token == copies * (page.layer_parameters(small(2)) - norms)


def test_bytes_of_a_parameter(page):
    """Weights, gradients and AdamW's state of a model after a step against the formula's 4, 4 and 8 bytes."""
    model = TriuneForCausalLM(small(1))
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.zeros(1, 8, dtype=torch.long)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    each, parameters = page.ddp_bytes(small(1))
    held = {
        "weights": sum(p.nbytes for p in model.parameters()),
        "gradients": sum(p.grad.nbytes for p in model.parameters()),
        "optimiser": sum(v.nbytes for s in optimizer.state.values() for v in s.values() if v.dim()),
    }
    assert held == {name: each[name] * parameters for name in held}
    assert page.checkpoint_bytes(small(1)) == held["weights"] + held["optimiser"]


@pytest.mark.parametrize("gpus", [2, 3, 8])
def test_ring(page, gpus):
    """The volume against a ring played with numbers: every GPU ends with the sum, counting what each has sent."""
    parts = [[float(gpu + 10 * part) for part in range(gpus)] for gpu in range(gpus)]
    expected = [sum(column) for column in zip(*parts)]
    sent = 0
    for step in range(2 * (gpus - 1)):
        messages = []
        for gpu in range(gpus):
            part = (gpu - step) % gpus
            messages.append(((gpu + 1) % gpus, part, parts[gpu][part]))
        for receiver, part, value in messages:
            adding = step < gpus - 1
            parts[receiver][part] = parts[receiver][part] + value if adding else value
        sent += 1
    assert parts == [expected] * gpus
    assert page.ring(gpus, gpus, 2) == pytest.approx(sent)  # parts of size 1


def test_what_fits_fits(page):
    """Sequences said to fit stay below the usable memory, and one more does not."""
    for gpu, memory in page.MEMORY.items():
        for gpus in LAYOUTS.values():
            rows = page.most_rows(page.config, page.length, gpu, gpus)
            size = page.activations(page.config) * page.length
            assert rows * size <= page.USABLE * memory - page.state_memory(page.config, gpus) < (rows + 1) * size
    assert page.most_rows(page.config, page.length, "H100") >= page.recipe["per_device_train_batch_size"]


def test_tables(page):
    """The tables of the page against what its formulas give now."""
    shown = dict(TABLE.findall(PAGE.read_text(encoding="utf-8")))
    assert shown == {name: make(page) for name, make in TABLES.items()}


def test_sentences(page):
    """Every number in the prose is one of those computed here: without these passages no digit is left."""
    text = TABLE.sub("", PAGE.read_text(encoding="utf-8"))
    text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    text = " ".join(text.split())
    for sentence in sentences(page):
        assert sentence in text, sentence
        text = text.replace(sentence, "")
    text = re.sub(r"\b(FSDP2|bf16|float32|H100|H200|GPT-3)\b", "", text)
    assert re.findall(r".{0,20}\d.{0,20}", text) == []


if __name__ == "__main__":
    found = read_page()
    written = TABLE.sub(
        lambda match: f"<!-- table: {match[1]} -->\n{TABLES[match[1]](found)}<!-- end -->",
        PAGE.read_text(encoding="utf-8"),
    )
    PAGE.write_text(written, encoding="utf-8")
