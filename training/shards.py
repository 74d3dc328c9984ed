"""Tensors that are cut over processes (FSDP2), and whole ones."""

import torch
from torch.distributed.tensor import DTensor, Replicate


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of it, on every process: they have to ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(tensor: torch.Tensor, sharded: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor that all processes hold."""
    if not isinstance(sharded, DTensor):
        return tensor
    mesh = sharded.device_mesh
    replicated = DTensor.from_local(tensor.to(sharded.device), mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(placements=sharded.placements)
