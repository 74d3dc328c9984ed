"""Run a function in two gloo processes on loopback, as torchrun would, and fail with the traceback of either."""

import multiprocessing
import os
import traceback

import pytest
import torch
import torch.distributed as dist


WORLD = 2


def enter(work, rank: int, folder: str, failures) -> None:
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    # accelerate asks for an address, though the two have met in a file
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo"}
    os.environ.update(ranks, **address, CUDA_VISIBLE_DEVICES="")
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
        work(rank)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        failures.put(f"rank {rank}:\n{traceback.format_exc()}")


def run_in_two(work, folder, timeout: int = 150) -> None:
    """`work(rank)`, a function of a module, in both."""
    context = multiprocessing.get_context("spawn")
    failures = context.SimpleQueue()
    workers = [
        context.Process(target=enter, args=(work, rank, str(folder), failures), daemon=True) for rank in range(WORLD)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=timeout)
        if worker.exitcode is None:
            worker.kill()
    if not failures.empty():
        pytest.fail(failures.get(), pytrace=False)
    assert [worker.exitcode for worker in workers] == [0] * WORLD
