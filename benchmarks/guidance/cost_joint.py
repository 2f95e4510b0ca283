"""What do time and peak memory of a guided step cost in a transformer, compared with eager maps?

    python -m benchmarks.guidance.cost_joint --csv guidance_joint_cost.csv     # an SD3 transformer of 6 layers, CPU

Every way updates the same latents of one image by the same loss (T-SAM's) on the maps of the same layers, the middle
ones, in an `SD3Transformer2DModel` with random weights: 1,024 image tokens, and two texts of 77.

- `ours`: the maps of these layers come from the attention call; the pass stops after the last of them.
- `eager`: every layer's attention is softmax(QK^T)V with the probabilities in memory, computed like those of diffusers'
  Attend-and-Excite; the whole forward pass.
- `chosen`: torch's fused attention, and the probabilities of these layers alone beside it; the whole forward pass.

The weights are frozen in all three, so that no graph keeps anything for them; `--weights-in-graph` leaves them in the
graph of the other two, as a pipeline that was just loaded has them. Maps and gradients must agree in float32 before
anything is timed. Times are processor time, in runs that alternate: medians, and of the ratios also least and largest.
Memory is what a step adds to the peak resident set of a new process.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from torch import Tensor
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from benchmarks.common import ROOT, add_commit, add_csv, module_command, new_parser, positive, replace_rows
from benchmarks.guidance.cost import CAPTION, STEP_SIZE, cpu_ms
from entropy_attn.bench.machine import machine, version
from entropy_attn.bench.timing import clock_of
from entropy_attn.guidance import TSAM, Prompt
from entropy_attn.guidance.descent import Descent
from entropy_attn.integrations.diffusers.apply import plain_routing
from entropy_attn.integrations.guidance.forward import map_layers, middle, text_maps
from entropy_attn.prompts import JoinedText, TextPart
from entropy_attn.shapes import load_pipeline

LENGTH, TEXTS, HEAD_DIM, TEXT_WIDTH = 77, 2, 64, 512
Step = Callable[[Tensor], tuple[Tensor, Tensor]]  # latents -> (latents after the step, maps (h, w, text))


def transformer_of(layers: int, heads: int) -> SD3Transformer2DModel:
    """The architecture of Stable Diffusion 3 with random weights, narrower and with fewer layers."""
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=64,
        num_layers=layers,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=heads,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=HEAD_DIM * heads,
        pooled_projection_dim=256,
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():  # those that are initialized to zero would hide the attention
            if not weight.any():
                weight.normal_(std=0.02)
    return model


def prompt() -> Prompt:
    """A caption, tokenized twice for the shapes model, with random causal attention in each text."""
    tokenizer = load_pipeline().tokenizer
    text = JoinedText(CAPTION, [TextPart(tokenizer, LENGTH), TextPart(tokenizer, None)], TEXTS * LENGTH)
    scores = torch.randn(TEXTS * LENGTH, TEXTS * LENGTH, generator=torch.Generator().manual_seed(1))
    seen = torch.block_diag(*[torch.ones(LENGTH, LENGTH).tril()] * TEXTS).bool()
    return Prompt(text, text.real, scores.masked_fill(~seen, -torch.inf).softmax(-1), parts=text.ranges)


class EagerMaps(TorchFunctionMode):
    """Keeps maps from materialized probabilities: of every call, or of the layers with these numbers alone."""

    def __init__(self, image: int, only: Sequence[int] | None):
        super().__init__()
        self.image, self.only, self.maps = image, only, []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args[:3]
        number = len(self.maps)
        if self.only is not None and number not in self.only:
            self.maps.append(None)
            return func(*args, **kwargs)
        probabilities = scores_of(query, key).softmax(-1)
        self.maps.append(probabilities.mean(1)[:, : self.image, self.image :])
        return probabilities @ value if self.only is None else func(*args, **kwargs)


def scores_of(query: Tensor, key: Tensor) -> Tensor:
    """QK^T / sqrt(d) in one product, as `Attention.get_attention_scores` of diffusers has it."""
    flat, other = query.flatten(0, 1), key.flatten(0, 1)
    empty = query.new_empty(len(flat), query.shape[-2], key.shape[-2])
    return torch.baddbmm(empty, flat, other.mT, beta=0, alpha=query.shape[-1] ** -0.5).unflatten(0, query.shape[:2])


def our_step(model: SD3Transformer2DModel, text: dict[str, Tensor], of: Prompt) -> Step:
    routing = plain_routing(model)

    def step(latents: Tensor) -> tuple[Tensor, Tensor]:
        descent = Descent(TSAM(), [of])
        size, layers = map_layers(routing, (latents.shape[-2], latents.shape[-1]), None)

        def maps_of(wide: Tensor) -> Tensor:
            return text_maps(routing, layers, size, 0, TEXTS * LENGTH, ((), {"hidden_states": wide, **text}))

        return descent.step(latents, 0, STEP_SIZE, maps_of), descent.maps[0]

    return step


def eager_step(model: SD3Transformer2DModel, text: dict[str, Tensor], of: Prompt, chosen: bool = False) -> Step:
    numbers = [int(number) for number in middle([str(layer) for layer in range(len(model.transformer_blocks))])]

    def step(latents: Tensor) -> tuple[Tensor, Tensor]:
        size = (latents.shape[-2] // 2, latents.shape[-1] // 2)
        with torch.enable_grad(), EagerMaps(size[0] * size[1], numbers if chosen else None) as eager:
            latents = latents.clone().detach().requires_grad_()
            _ = model(hidden_states=latents, **text).sample
            maps = torch.stack([eager.maps[number] for number in numbers]).mean(0)[0].unflatten(0, size)
            (gradient,) = torch.autograd.grad(TSAM().loss(maps, of), latents)
        return latents.detach() - STEP_SIZE * gradient, maps.detach()

    return step


def chosen_step(model: SD3Transformer2DModel, text: dict[str, Tensor], of: Prompt) -> Step:
    return eager_step(model, text, of, chosen=True)


STEPS = {"ours": our_step, "eager": eager_step, "chosen": chosen_step}
OTHERS = ("eager", "chosen")


def prepared(args: argparse.Namespace) -> tuple[SD3Transformer2DModel, Tensor, dict[str, Tensor]]:
    """The transformer, latents of one image, and the other arguments of its call."""
    model = transformer_of(args.layers, args.heads)
    model.requires_grad_(args.weights_in_graph)
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, args.size // 8, args.size // 8, generator=g)
    text = {
        "encoder_hidden_states": torch.randn(1, TEXTS * LENGTH, TEXT_WIDTH, generator=g),
        "pooled_projections": torch.randn(1, 256, generator=g),
        "timestep": torch.full((1,), 501.0),
    }
    return model, latents, text


def check(steps: dict[str, Step], latents: Tensor) -> dict[str, float]:
    """How much maps and gradients of ours and the others differ.

    Raises:
        SystemExit: by more than rounding.
    """
    ours, our_maps = steps["ours"](latents)
    worst = {"maps_apart": 0.0, "gradient_apart": 0.0}
    for name in OTHERS:
        theirs, maps = steps[name](latents)
        moved = (theirs - latents).norm()
        apart = ((our_maps - maps).norm() / maps.norm()).item(), ((ours - theirs).norm() / moved).item()
        if not (apart[0] < 1e-4 and apart[1] < 1e-3 and moved > 0):
            raise SystemExit(f"wrong result, nothing is measured: {name}: maps and gradients differ by {apart}")
        worst = {key: max(old, new) for (key, old), new in zip(worst.items(), apart, strict=True)}
    return worst


def measure(args: argparse.Namespace) -> dict[str, object]:
    model, latents, text = prepared(args)
    of = prompt()
    steps = {name: make(model, text, of) for name, make in STEPS.items()}
    gate = check(steps, latents)  # which is the warm-up
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in tqdm(range(args.repeats), desc="turns"):
        for name in list(steps) if turn % 2 == 0 else list(reversed(steps)):
            times[name].append(cpu_ms(steps[name], latents))
    del steps, model
    memory = {name: in_fresh_process(args, name) for name in STEPS}
    row: dict[str, object] = {name: getattr(args, name) for name in ("size", "layers", "heads", "weights_in_graph")}
    row |= {"image_tokens": (args.size // 16) ** 2, "text_tokens": TEXTS * LENGTH, "repeats": args.repeats}
    row |= {f"{name}_ms": f"{statistics.median(times[name]):.1f}" for name in STEPS}
    row |= {f"{name}_extra_mib": f"{memory[name]:.0f}" for name in STEPS}
    for name in OTHERS:
        ratios = [theirs / ours for ours, theirs in zip(times["ours"], times[name], strict=True)]
        row |= {f"times_faster_than_{name}": f"{statistics.median(ratios):.2f}"}
        row |= {f"times_faster_than_{name}_min": f"{min(ratios):.2f}"}
        row |= {f"times_faster_than_{name}_max": f"{max(ratios):.2f}"}
        row |= {f"memory_of_{name}": f"{memory['ours'] / memory[name]:.2f}"}
    return row | {name: f"{value:.3g}" for name, value in gate.items()}


def in_fresh_process(args: argparse.Namespace, name: str) -> float:
    """MiB that one step adds to the peak resident set."""
    options: list[object] = ["--size", args.size, "--layers", args.layers, "--heads", args.heads]
    if args.weights_in_graph:
        options.append("--weights-in-graph")
    command = module_command("benchmarks.guidance.cost_joint", "--worker", name, *options)
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return float(done.stdout.split()[-1])


def worker(args: argparse.Namespace) -> None:
    model, latents, text = prepared(args)
    step = STEPS[args.worker](model, text, prompt())
    step(latents[..., :8, :8])  # loads libraries before the measurement
    mib = clock_of(torch.device("cpu")).peak_mib(step, latents)
    if mib is None:
        raise SystemExit("this benchmark reads peak memory from /proc, which this system does not have: use Linux")
    print(mib)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, from the command line or from `given`."""
    parser = new_parser(__doc__)
    parser.add_argument("--size", type=int, default=512, help="pixels, a multiple of 64 (default %(default)s)")
    parser.add_argument("--layers", type=positive, default=6, help="(default %(default)s)")
    parser.add_argument("--heads", type=positive, default=6, help=f"of {HEAD_DIM} channels (default %(default)s)")
    parser.add_argument("--repeats", type=positive, default=5, help="timed steps of each (default %(default)s)")
    parser.add_argument("--weights-in-graph", action="store_true", help="do not freeze the weights")
    add_csv(parser, help="write the row to this file; its rows of other cases stay")
    add_commit(parser)
    parser.add_argument("--worker", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args(given)
    if args.size < 64 or args.size % 64:
        parser.error(f"--size: expected a positive multiple of 64, got {args.size}")
    return args


def main() -> int:
    args = arguments()
    if args.worker:
        worker(args)
        return 0
    row = measure(args) | {"diffusers": version("diffusers")} | machine(torch.device("cpu"), args.commit)
    print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if args.csv:
        keep(args.csv, row)
    return 0


def keep(path: Path, row: dict[str, object]) -> None:
    """Write a row to the file in place of the row of the same case; the other rows stay."""
    case = ("device", "size", "layers", "heads", "weights_in_graph")
    replace_rows(path, [row], list(row), case)


if __name__ == "__main__":
    sys.exit(main())
