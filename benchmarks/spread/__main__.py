"""Attention on several devices by diffusers' context parallelism: is it exact here, what does it take, what is sent?

For every mode, one attention layer whose tokens are spread over the processes: its output alone, with entropy and map,
and its gradients.

- error: the largest difference of output, entropy and map (or gradients) from one device, in float64 and few tokens;
- ms: the median time of a call with --tokens tokens, of the slowest process;
- MB (bytes in the file): what each process receives in a call.

    torchrun --nproc-per-node 8 -m benchmarks.spread --tokens 65536 --csv spread.csv
    python -m benchmarks.spread          # starts two processes, or one for each GPU
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

import entropy_attn as ea
from benchmarks.common import add_csv, new_parser, positive, write_rows
from entropy_attn.integrations.diffusers.context_parallel.shards import ContextParallel
from entropy_attn.routing.calls import AttentionArguments

EXACT = (56, 8)  # image and text tokens of a process in the comparison
ARMS = ("output", "entropy", "entropy, map", "gradients")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Inputs(NamedTuple):
    """Query, key and value, (B, H, tokens, D), of the text and of the image."""

    text: tuple[Tensor, ...]
    image: tuple[Tensor, ...]

    def joined(self) -> tuple[Tensor, ...]:
        return tuple(torch.cat(each, 2) for each in zip(self.text, self.image, strict=True))

    def of_process(self, rank: int, world: int) -> Inputs:
        return Inputs(*(tuple(t.chunk(world, 2)[rank] for t in tensors) for tensors in self))


class Received(TorchDispatchMode):
    """Counts the bytes that collectives bring to this process."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().partition("::")
        if name[0] == "_c10d_functional" and isinstance(result, Tensor):
            size = result.numel() * result.element_size()
            if name[2].startswith("all_gather_into_tensor"):
                self.bytes += size * (1 - 1 / args[1])
            elif name[2].startswith("all_to_all_single"):
                self.bytes += size * (1 - 1 / dist.distributed_c10d._resolve_process_group(args[3]).size())
            elif name[2].startswith("reduce_scatter_tensor"):
                self.bytes += size * (args[2] - 1)
        return result


def modes(world: int, heads: int) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    if heads % world == 0:
        found["ulysses"] = {"ulysses_degree": world}
    found["ulysses anything"] = {"ulysses_degree": world, "ulysses_anything": True}
    found["ring"] = {"ring_degree": world}
    found["ring anything"] = {"ring_degree": world, "ring_anything": True}
    if world % 2 == 0 and world > 2 and heads % (world // 2) == 0:
        found["ring and ulysses"] = {"ring_degree": 2, "ulysses_degree": world // 2}
    return found


def spread_over(device: torch.device, options: dict[str, Any]) -> ContextParallel:
    config = ContextParallelConfig(**options, convert_to_fp32=False)
    mesh = init_device_mesh(device.type, config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
    config.setup(dist.get_rank(), dist.get_world_size(), device, mesh)
    return ContextParallel(SimpleNamespace(context_parallel_config=config))


def make(image: int, text: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> Inputs:
    """The same on every process."""
    generator = torch.Generator().manual_seed(0)

    def draw(tokens: int) -> tuple[Tensor, ...]:
        wide = [torch.randn(1, heads, tokens, head_dim, generator=generator, dtype=torch.float64) for _ in range(3)]
        return tuple(t.to(device, dtype) for t in wide)

    return Inputs(draw(text), draw(image))


def layer(shards: ContextParallel, own: Inputs, arm: str) -> list[Tensor]:
    """What an arm computes of this process' queries: text first, then the image."""
    tensors = own.joined()
    if arm == "gradients":
        tensors = tuple(t.detach().requires_grad_() for t in tensors)
    text = slice(0, own.text[0].shape[2])
    whole_text = text.stop * dist.get_world_size()
    result = shards.attention(
        AttentionArguments(*tensors),
        return_entropy=arm != "output",
        text=text if "map" in arm else None,
        text_range=(0, whole_text) if "map" in arm else None,
    )
    if arm == "gradients":
        assert result.entropy is not None
        return list(torch.autograd.grad(result.out.sum() + result.entropy.sum(), tensors))
    return [t for t in (result.out, result.entropy, result.map) if t is not None]


def on_one_device(inputs: Inputs, rank: int, world: int, arm: str) -> list[Tensor]:
    """The same rows of attention over all tokens without any process but this one."""
    text, image = inputs.text[0].shape[2], inputs.image[0].shape[2]
    parts = torch.arange(text).chunk(world)[rank], torch.arange(text, text + image).chunk(world)[rank]
    own = torch.cat(parts).to(inputs.text[0].device)
    tensors = tuple(t.detach().requires_grad_(arm == "gradients") for t in inputs.joined())
    result = ea.attention(*tensors, return_entropy=arm != "output", map_keys=(0, text) if "map" in arm else None)
    if arm == "gradients":
        assert result.entropy is not None
        found = torch.autograd.grad(result.out.sum() + result.entropy.sum(), tensors)
        return [t[:, :, own] for t in found]
    wanted = [(result.out, 2), (result.entropy, 2), (result.map, 1)]
    return [t.index_select(dim, own) for t, dim in wanted if t is not None]


def error(shards: ContextParallel, heads: int, head_dim: int, arm: str, device: torch.device) -> float:
    rank, world = dist.get_rank(), dist.get_world_size()
    inputs = make(EXACT[0] * world, EXACT[1] * world, heads, head_dim, torch.float64, device)
    found = layer(shards, inputs.of_process(rank, world), arm)
    expected = on_one_device(inputs, rank, world, arm)
    differences = [(a - b).abs().max() for a, b in zip(found, expected, strict=True)]
    return largest(float(torch.stack(differences).max()), device)


def largest(number: float, device: torch.device) -> float:
    """Of all processes."""
    found = torch.tensor(number, dtype=torch.float64, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return float(found)


def milliseconds(run: Callable[[], object], rounds: int, device: torch.device) -> float:
    times = []
    for _ in range(rounds + 1):
        dist.barrier()
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return largest(statistics.median(times[1:]), device)  # the first one compiles


def measure(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    rank, world = dist.get_rank(), dist.get_world_size()
    inputs = make(args.tokens, args.text, args.heads, args.head_dim, DTYPES[args.dtype], device)
    own = inputs.of_process(rank, world)
    rows = []
    for mode, options in modes(world, args.heads).items():
        shards = spread_over(device, options)
        for arm in ARMS:
            with torch.set_grad_enabled(arm == "gradients"):
                wrong = error(shards, args.heads, args.head_dim, arm, device)
                with Received() as received:
                    layer(shards, own, arm)
                ms = milliseconds(lambda s=shards, a=arm: layer(s, own, a), args.rounds, device)  # type: ignore[misc]
            row = {"mode": mode, "processes": world, "device": device.type, "dtype": args.dtype, "tokens": args.tokens}
            row |= {"text": args.text, "heads": args.heads, "head_dim": args.head_dim, "computed": arm}
            rows.append(row | {"error": f"{wrong:.1e}", "ms": f"{ms:.2f}", "bytes": round(received.bytes)})
            if rank == 0:
                print(f"{mode:18}{arm:15}{wrong:>10.1e}{ms:>12.2f}{received.bytes / 1e6:>12.2f}", flush=True)
    return rows


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--tokens", type=positive, default=4096, help="of the image (default: %(default)s)")
    parser.add_argument("--text", type=positive, default=512, help="tokens of the text (default: %(default)s)")
    parser.add_argument("--heads", type=positive, default=24, help="(default: %(default)s)")
    parser.add_argument("--head-dim", type=positive, default=128, help="(default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of what is timed (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=5, help="timed calls (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    add_csv(parser)
    return parser.parse_args(arguments)


def main() -> None:
    args = parse(None)
    gpus = 0 if args.device == "cpu" else torch.cuda.device_count()
    if "WORLD_SIZE" not in os.environ:
        from torch.distributed.run import main as torchrun

        torchrun(["--standalone", "--nproc-per-node", str(max(gpus, 2)), "-m", "benchmarks.spread", *sys.argv[1:]])
        return
    if args.device == "cuda" and not gpus:
        sys.exit("--device cuda: torch sees no GPU here")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    world = dist.get_world_size()
    for name, count in (("tokens", args.tokens), ("text", args.text)):
        if count % world:
            sys.exit(f"--{name}: expected a multiple of the {world} processes, got {count}")
    if dist.get_rank() == 0:
        print(f"{world} processes, {device.type}, {args.dtype}, {args.tokens} + {args.text} tokens")
        print(f"{'mode':18}{'computed':15}{'error':>10}{'ms':>12}{'MB':>12}")
    rows = measure(args, device)
    if args.csv and dist.get_rank() == 0:
        write_rows(args.csv, rows)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
