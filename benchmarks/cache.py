"""How much faster a cache of keys and values makes generation: the same greedy tokens, with and without one.

    python benchmarks/cache.py      # half a minute on one idle core; writes benchmarks/results/cache.json

Both ways take turns and the fastest of three runs counts, by the clock of the processor: what else runs on the machine
matters little.
"""

import json
import time
from pathlib import Path

import torch

from triune.configuration import preset
from triune.modeling import TriuneForCausalLM
from triune.training.environment import versions
from triune.training.report import replace


RESULTS = Path(__file__).resolve().parent / "results" / "cache.json"
PRESET, BATCH, PROMPT, NEW, TIMES = "gpt2-mini", 2, 32, 224, 3


def generated(model, prompt: torch.Tensor, use_cache: bool) -> tuple[float, torch.Tensor]:
    """Seconds, and the tokens."""
    start = time.process_time()
    how = {"use_cache": use_cache, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    tokens = model.generate(prompt, max_new_tokens=NEW, **how)
    return time.process_time() - start, tokens


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = TriuneForCausalLM(preset(PRESET, vocab_size=2048, bos_token_id=0, eos_token_id=0)).eval()
    prompt = torch.randint(2048, (BATCH, PROMPT))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(TIMES):
        runs = {use_cache: generated(model, prompt, use_cache) for use_cache in seconds}
        if not torch.equal(runs[True][1], runs[False][1]):
            raise ValueError("the cache has changed a token")
        for use_cache, (took, _) in runs.items():
            seconds[use_cache].append(took)
    found = {
        "preset": PRESET,
        **{"batch": BATCH, "prompt": PROMPT, "new_tokens": NEW},
        **{"seconds_with_cache": min(seconds[True]), "seconds_without": min(seconds[False])},
        "times_as_fast": min(seconds[False]) / min(seconds[True]),
        "versions": versions(),
    }
    replace(RESULTS, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
