"""Gradients of a routed Flux in every mode against one process, and what diffusers' own templates get wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

import entropy_attn as ea
from entropy_attn.integrations.diffusers.context_parallel.private import templated_attention
from entropy_attn.ops.reference import attention_reference
from tests.spread.worker import Kept, Make, Report, flux, spread, start

SCALE = 0.5


def weighted(t: Tensor) -> Tensor:
    return (t * torch.randn(t.shape, dtype=t.dtype, generator=torch.Generator().manual_seed(t.numel()))).sum()


def gradients(
    make: Make, config: dict[str, Any] | None, statistics: bool, checkpointing: bool = False
) -> dict[str, Tensor]:
    """Of latents, parameters and a scale per head, summed over the processes as of data-parallel training."""
    model, call = make()
    if checkpointing:
        model.enable_gradient_checkpointing()
        model.train()
    latents = call["hidden_states"].requires_grad_()
    scales = torch.linspace(0.2, 0.5, model.config.num_attention_heads, dtype=latents.dtype, requires_grad=True)
    if config:
        spread(model, **config)
    recorders = [Kept("entropy"), Kept((1, 4))] if statistics else None
    with ea.apply(model, scale=(lambda info: scales), record=recorders):
        loss = weighted(model(**call)[0])
        for recorder in recorders or ():
            loss = loss + sum(map(weighted, recorder.kept))
        loss.backward()
    found = {"latents": latents.grad, "scales": scales.grad}
    found |= {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    if config:
        for each in found.values():
            dist.all_reduce(each)
    return found


def relative(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    assert set(found) == set(expected)
    errors = {}
    for name, wanted in expected.items():
        errors[name] = float((found[name] - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
    parameters = max(error for name, error in errors.items() if name not in ("latents", "scales"))
    return {"latents": errors["latents"], "scales": errors["scales"], "parameters": parameters}


# -- diffusers' templates with exact operators of float64, none of which is ours ---------------------------------------


def exact_forward(
    ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, dropout: float, causal: bool, scale: Any, gqa: bool,
    return_lse: bool, _save_ctx: bool = True, _parallel_config: Any = None,
) -> Any:  # fmt: skip
    out, lse = exact(query, key, value, mask)
    if _save_ctx:
        ctx.save_for_backward(query, key, value, out, lse)
    return (out, lse) if return_lse else out


def exact(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    heads_first = (t.transpose(1, 2) for t in (query, key, value))
    out, lse, _, _ = attention_reference(*heads_first, attn_mask=mask, scale=SCALE)
    return out.transpose(1, 2), lse.transpose(1, 2)


def exact_backward(ctx: Any, grad: Tensor, **given: Tensor) -> Any:
    """given: by a ring, the tensors of its chunk and the results of the whole row."""
    tensors = given.values() if given else ctx.saved_tensors
    q, k, v, out, lse, grad = (t.transpose(1, 2) for t in (*tensors, grad))
    p = (SCALE * q @ k.mT - lse[..., None]).exp()
    ds = p * (grad @ v.mT - (out * grad).sum(-1, keepdim=True))
    return tuple(t.transpose(1, 2) for t in (SCALE * ds @ k, SCALE * ds.mT @ q, p.mT @ grad))


def canaries(report: Report, rank: int, world: int) -> None:
    generator = torch.Generator().manual_seed(2)
    tokens, own = 12 * world, slice(12 * rank, 12 * (rank + 1))
    q, k, v, w = (torch.randn(1, tokens, 4, 8, dtype=torch.float64, generator=generator) for _ in range(4))

    def run(ring: int, inputs: list[Tensor], mask: Any = None, return_lse: bool = False, scale: Any = SCALE) -> Any:
        mesh = init_device_mesh("cpu", (ring, world // ring), mesh_dim_names=("ring", "ulysses"))
        config = ContextParallelConfig(ring_degree=ring, ulysses_degree=world // ring, mesh=mesh, convert_to_fp32=False)
        config.setup(rank, world, torch.device("cpu"), mesh)
        return templated_attention(
            *inputs, mask, 0.0, False, scale, False, return_lse, forward_op=exact_forward,
            backward_op=exact_backward, _parallel_config=SimpleNamespace(context_parallel_config=config),
        )  # fmt: skip

    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    expected = torch.autograd.grad((exact(*leaves)[0] * w).sum(), leaves)
    mine = [t[:, own].clone().requires_grad_() for t in (q, k, v)]
    (run(world, mine) * w[:, own]).sum().backward()
    errors = [float((m.grad - e[:, own]).abs().max() / e.abs().max()) for m, e in zip(mine, expected, strict=True)]
    report.add("gradients of a ring", **dict(zip(("query", "key", "value"), errors, strict=True)))

    mask = torch.zeros(1, 1, 1, tokens, dtype=torch.float64)
    mask[..., 4:9] = -torch.inf  # keys of the first process alone
    parts = [t[:, own] for t in (q, k, v)]
    masked = exact(q, k, v, mask)[0][:, own]
    for name, ring in (("ring", world), ("ulysses", 1)):
        found = run(ring, parts, mask[..., own])
        report.add(f"a mask of keys, {name}", out=float((found - masked).abs().max()))
        mine = [t[:, own].clone().requires_grad_() for t in (q, k, v)]
        scale = torch.tensor(SCALE, dtype=torch.float64, requires_grad=True)
        lse = run(ring, mine, return_lse=True, scale=scale)[1]
        lse.sum().backward()
        report.add(
            f"lost gradients, {name}",
            of_lse=float(mine[0].grad.abs().max()),
            of_scale=0.0 if scale.grad is None else float(scale.grad.abs()),
        )


def main() -> None:
    rank, world = start()
    report = Report()
    for options, make, modes in (
        (
            "",
            flux(),
            {
                "ulysses": {"ulysses_degree": world},
                "ring": {"ring_degree": world},
                "ring and ulysses": {"ring_degree": 2, "ulysses_degree": 2},
            },
        ),
        (
            ", 81 + 7 tokens",
            flux(81, 7),
            {
                "ulysses anything": {"ulysses_degree": world, "ulysses_anything": True},
                "ring anything": {"ring_degree": world, "ring_anything": True},
            },
        ),
    ):
        for statistics in (False, True):
            expected = gradients(make, None, statistics)
            for name, config in modes.items():
                case = f"{name}{options}{', statistics' if statistics else ''}"
                report.add(case, **relative(gradients(make, config, statistics), expected))
    recomputed = gradients(flux(), {"ring_degree": world}, False, checkpointing=True)
    report.add("gradient checkpointing", **relative(recomputed, gradients(flux(), None, False)))
    canaries(report, rank, world)
    report.finish()


if __name__ == "__main__":
    main()
