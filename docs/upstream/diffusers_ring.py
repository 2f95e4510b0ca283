"""Reproduces two errors of diffusers' ring attention, with attention in plain float64 in place of a kernel.

torchrun --nproc-per-node 3 docs/upstream/diffusers_ring.py

Every process prints nothing but rank 0, which prints the largest relative errors over the processes. Works on a CPU.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.models import attention_dispatch
from torch.distributed.device_mesh import init_device_mesh

TOKENS, SCALE = 8, 0.5  # tokens of one process


def attention(query, key, value, mask=None):
    """Output and log-sum-exp; tensors (batch, tokens, heads, head dim), as in the dispatcher."""
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    scores = SCALE * query @ key.mT
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(-1, keepdim=True)
    return ((scores - lse).exp() @ value).transpose(1, 2), lse.squeeze(-1).transpose(1, 2)


def forward_op(ctx, query, key, value, mask, *args, _save_ctx=True, _parallel_config=None):
    if _save_ctx:
        ctx.save_for_backward(query, key, value)
    return attention(query, key, value, mask)


def backward_op(ctx, grad_out, *, query, key, value, out, lse):
    """Gradients of one chunk of keys from the row's whole output and log-sum-exp."""
    q, k, v, o, g = (each.transpose(1, 2) for each in (query, key, value, out, grad_out))
    p = (SCALE * q @ k.mT - lse.transpose(1, 2).unsqueeze(-1)).exp()
    ds = p * (g @ v.mT - (o * g).sum(-1, keepdim=True))
    return tuple(each.transpose(1, 2) for each in (SCALE * ds @ k, SCALE * ds.mT @ q, p.mT @ g))


def ring(config, query, key, value, mask=None):
    parallel = SimpleNamespace(context_parallel_config=config)
    return attention_dispatch._templated_context_parallel_attention(
        query, key, value, mask, 0.0, False, SCALE, False, False,
        forward_op=forward_op, backward_op=backward_op, _parallel_config=parallel,
    )  # fmt: skip


def largest(values) -> list[float]:
    """Over all processes."""
    errors = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(errors, op=dist.ReduceOp.MAX)
    return errors.tolist()


def main() -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world, 1), mesh_dim_names=("ring", "ulysses"))
    config = ContextParallelConfig(ring_degree=world, mesh=mesh, convert_to_fp32=False)
    config.setup(rank, world, torch.device("cpu"), mesh)
    torch.manual_seed(0)
    whole = [torch.randn(1, world * TOKENS, 2, 4, dtype=torch.float64) for _ in range(3)]
    weights = torch.randn_like(whole[0])
    own = slice(rank * TOKENS, (rank + 1) * TOKENS)

    leaves = [each.clone().requires_grad_() for each in whole]
    (attention(*leaves)[0] * weights).sum().backward()
    parts = [each[:, own].clone().requires_grad_() for each in whole]
    out = ring(config, *parts)
    (out * weights[:, own]).sum().backward()
    wanted = [attention(*whole)[0], *(leaf.grad for leaf in leaves)]
    found = [out.detach(), *(part.grad for part in parts)]
    errors = largest([float((f - w[:, own]).abs().max() / w.abs().max()) for f, w in zip(found, wanted, strict=True)])

    mask = torch.zeros(1, 1, 1, world * TOKENS, dtype=torch.float64)
    mask[..., 1:4] = -torch.inf  # keys of rank 0
    masked = ring(config, *(each[:, own] for each in whole), mask[..., own])
    exact = attention(*whole, mask)[0]
    (of_mask,) = largest([float((masked - exact[:, own]).abs().max() / exact.abs().max())])
    if rank == 0:
        for name, error in zip(("out", "dq", "dk", "dv"), errors, strict=True):
            print(f"ring of {world}, relative error of {name}: {error:.0e}")
        print(f"ring of {world}, relative error of out with a mask of keys: {of_mask:.0e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
