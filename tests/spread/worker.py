"""What the modules that torchrun starts have in common: the processes, tiny models, one device to compare with."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.hooks import context_parallel as hooks
from torch import Tensor, nn

from entropy_attn.recorders.base import Recorder, Request
from entropy_attn.scale import CallInfo
from tests.support.tiny_denoisers import CASES

Make = Callable[[], tuple[nn.Module, dict[str, Any]]]


def start() -> tuple[int, int]:
    """Join the other processes; rank and their number."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    dist.init_process_group("gloo")
    torch.accelerator.device_count = lambda: 1  # diffusers takes the rank modulo this, which is 0 without a GPU
    hooks._all_gather_anything = _padded_gather  # gloo has no all_gather of different lengths
    return dist.get_rank(), dist.get_world_size()


def _padded_gather(part: Tensor, dim: int, group: Any) -> Tensor:
    lengths = hooks.gather_size_by_comm(part.shape[dim], group)
    part = part.movedim(dim, 0)
    part = torch.cat([part, part.new_zeros(max(lengths) - len(part), *part.shape[1:])]).contiguous()
    parts = [torch.empty_like(part) for _ in lengths]
    dist.all_gather(parts, part, group=group)
    return torch.cat([each[:length] for each, length in zip(parts, lengths, strict=True)]).movedim(0, dim)


class Kept(Recorder):
    """Keeps what it requested as it was measured, with the graph that leads to it."""

    def __init__(self, request: Request):
        super().__init__(("all",))
        self.request, self.kept = request, []

    def wants(self, info: CallInfo, latent_size: tuple[int, int]) -> Request:
        return self.request

    def record(self, info: CallInfo, scale: Any, measured: Tensor, branches: Any, latent_size: Any) -> None:
        self.kept.append(measured)


class Report:
    """Numbers by case, the largest of all processes, in the JSON file that is the first argument."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def add(self, case: str, **numbers: float) -> None:
        largest = torch.tensor([float(each) for each in numbers.values()], dtype=torch.float64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        self.found[case] = dict(zip(numbers, largest.tolist(), strict=True))

    def say(self, case: str, text: str) -> None:
        """One text, the same in every process."""
        texts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(texts, text)
        self.found[case] = texts[0] if len(set(texts)) == 1 else f"different: {texts}"

    def finish(self) -> None:
        if dist.get_rank() == 0:
            Path(sys.argv[1]).write_text(json.dumps(self.found, indent=1))
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        os._exit(0)  # gloo's threads need seconds to notice that all is over


def difference(one: Any, other: Any) -> float:
    one, other = (torch.as_tensor(each, dtype=torch.float64) for each in (one, other))
    return float((one - other).abs().max()) if one.shape == other.shape else float("inf")


def flux(tokens: int = 64, text: int = 8, heads: int = 4, dtype: torch.dtype = torch.float64) -> Make:
    """A tiny Flux and its arguments."""

    def make() -> tuple[nn.Module, dict[str, Any]]:
        torch.manual_seed(0)
        config = CASES["flux"].config | {"num_attention_heads": heads, "num_single_layers": 1}
        model = diffusers.FluxTransformer2DModel(**config).eval()
        noise = torch.Generator().manual_seed(1)
        ids, side = torch.zeros(tokens, 3), int(tokens**0.5)
        ids[:, 1], ids[:, 2] = torch.arange(tokens) // side, torch.arange(tokens) % side
        call = {
            "hidden_states": torch.randn(2, tokens, 8, generator=noise),
            "encoder_hidden_states": torch.randn(2, text, 20, generator=noise),
            "pooled_projections": torch.randn(2, 12, generator=noise),
            "timestep": torch.full((2,), 0.5),
            "img_ids": ids,
            "txt_ids": torch.zeros(text, 3),
        }
        return _sharpened(model).to(dtype), _of(dtype, call)

    return make


def case(name: str, dtype: torch.dtype = torch.float64) -> Make:
    """A tiny denoiser of the tests, with as many heads and tokens as two processes can share."""

    def make() -> tuple[nn.Module, dict[str, Any]]:
        found = CASES[name]
        return found.make().to(dtype), _of(dtype, found.call(*found.sizes[0]))

    return make


def spread(model: nn.Module, **config: Any) -> nn.Module:
    model.enable_parallelism(config=ContextParallelConfig(**config))
    return model


def _of(dtype: torch.dtype, call: dict[str, Any]) -> dict[str, Any]:
    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return {name: cast(value) for name, value in call.items()} | {"return_dict": False}


def _sharpened(model: nn.Module) -> nn.Module:
    """So that the scale matters, and no weight hides the attention."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight")):
                weight.mul_(4.0)
            elif not weight.any():
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return model
