"""What do time and peak memory of a guided step cost, compared with diffusers' Attend-and-Excite pipeline?

    python -m benchmarks.guidance.cost --csv tsam_cost.csv      # Stable Diffusion 1.5 at 512 and 768 px
    python -m benchmarks.guidance.cost --sizes 768 --layers-per-block 1 --width-divisor 2    # reduced, for a CPU

Both update the same latents of one image by the same loss (T-SAM's) on the maps of the same layers, in a UNet with
random weights. Theirs uses the processor and store of diffusers: the probabilities of all layers in memory, a forward
pass of the whole UNet with a graph that includes the weights, and the gradient of the latents. Ours stops after the
last layer whose maps are used. The denoising step that follows is the same in both, and is not measured.

Maps and gradients of both must agree in float32 before anything is timed. Times are medians of runs that alternate; on
a CPU they are processor time. Memory is what a step adds to the allocated memory of a GPU, or on a CPU to the peak
resident set of a new process.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import StableDiffusionAttendAndExcitePipeline, UNet2DConditionModel
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import ROOT, add_commit, add_csv, module_command, new_parser, positive, replace_rows
from entropy_attn.bench.machine import machine, version
from entropy_attn.bench.timing import clock_of
from entropy_attn.guidance import TSAM, Prompt
from entropy_attn.guidance.descent import Descent
from entropy_attn.integrations.diffusers.apply import plain_routing
from entropy_attn.integrations.guidance.forward import map_layers, text_maps
from entropy_attn.prompts import Text
from entropy_attn.shapes import load_pipeline

CAPTION = "a red circle, a blue square and a green triangle"
TEXT, STEP_SIZE = 77, 40.0
TIMESTEP = 501
Step = Callable[[Tensor], tuple[Tensor, Tensor]]  # latents -> (latents after the step, maps (h, w, text))


def unet_of(layers_per_block: int, width_divisor: int) -> UNet2DConditionModel:
    """The UNet of Stable Diffusion 1.5 with random weights; `width_divisor` divides its channels and heads."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=64,
        layers_per_block=layers_per_block,
        block_out_channels=tuple(width // width_divisor for width in (320, 640, 1280, 1280)),
        attention_head_dim=8 // width_divisor,  # the number of heads, as diffusers reads it for this model
        norm_num_groups=32 // width_divisor,
        cross_attention_dim=768,
    ).eval()


def prompt() -> Prompt:
    """A caption, tokenized for the shapes model, with random causal attention to its words."""
    text = Text(CAPTION, load_pipeline().tokenizer)
    scores = torch.randn(TEXT, TEXT, generator=torch.Generator().manual_seed(1))
    hidden = torch.ones(TEXT, TEXT).triu(1).bool()
    return Prompt(text, text.real, scores.masked_fill(hidden, -torch.inf).softmax(-1))


def our_step(unet: UNet2DConditionModel, embedding: Tensor, of: Prompt, guidance: TSAM) -> Step:
    routing = plain_routing(unet)

    def step(latents: Tensor) -> tuple[Tensor, Tensor]:
        descent = Descent(guidance, [of])
        quarter = (latents.shape[-2] // 4, latents.shape[-1] // 4)  # the maps of theirs
        size, layers = map_layers(routing, (latents.shape[-2], latents.shape[-1]), quarter)

        def maps_of(wide: Tensor) -> Tensor:
            call = ((wide.to(latents.dtype), TIMESTEP), {"encoder_hidden_states": embedding})
            return text_maps(routing, layers, size, 0, TEXT, call)

        return descent.step(latents, 0, STEP_SIZE, maps_of), descent.maps[0]

    return step


def their_step(unet: UNet2DConditionModel, embedding: Tensor, of: Prompt, guidance: TSAM) -> Step:
    theirs = StableDiffusionAttendAndExcitePipeline
    store_of = import_module(theirs.__module__).AttentionStore

    def step(latents: Tensor) -> tuple[Tensor, Tensor]:
        resolution = (latents.shape[-2] // 4, latents.shape[-1] // 4)
        pipe = SimpleNamespace(unet=unet, attention_store=store_of(resolution))
        before = unet.attn_processors
        theirs.register_attention_control(pipe)
        try:
            with torch.enable_grad():
                latents = latents.clone().detach().requires_grad_(True)
                _ = unet(latents, TIMESTEP, encoder_hidden_states=embedding).sample
                unet.zero_grad()
                maps = pipe.attention_store.aggregate_attention(from_where=("up", "down", "mid"))
                updated = theirs._update_latent(latents, guidance.loss(maps, of), STEP_SIZE)
        finally:
            unet.set_attn_processor(before)
        return updated.detach(), maps.detach()

    return step


STEPS = {"ours": our_step, "diffusers": their_step}
FIELDS = (
    "size", "layers_per_block", "width_divisor", "dtype", "repeats", "ours_ms", "diffusers_ms", "times_faster",
    "times_faster_min", "times_faster_max", "ours_extra_mib", "diffusers_extra_mib", "memory_ratio", "maps_apart",
    "gradient_cosine",
)  # fmt: skip


def check(steps: dict[str, Step], latents: Tensor) -> dict[str, float]:
    """How much maps and gradients of the two differ, in float32.

    Raises:
        SystemExit: by more than rounding.
    """
    (ours, our_maps), (theirs, their_maps) = (steps[name](latents) for name in STEPS)
    maps = ((our_maps - their_maps).norm() / their_maps.norm()).item()
    first, second = ((after - latents).flatten().double() for after in (ours, theirs))
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=0).item()
    if not (maps < 1e-3 and cosine > 0.999 and second.norm() > 0):
        raise SystemExit(
            f"wrong result, nothing is measured: maps differ by {maps:.3g}, cosine of the gradients {cosine:.6f}"
        )
    return {"maps_apart": maps, "gradient_cosine": cosine}


def prepared(args: argparse.Namespace, size: int, device: torch.device):
    """The UNet and its inputs, in float32."""
    unet = unet_of(args.layers_per_block, args.width_divisor).to(device)
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, size // 8, size // 8, generator=g).to(device)
    return unet, latents, torch.randn(1, TEXT, 768, generator=g).to(device)


def measure(args: argparse.Namespace, size: int, device: torch.device, of: Prompt, bar: tqdm) -> dict[str, object]:
    unet, latents, embedding = prepared(args, size, device)
    guidance, clock = TSAM(), clock_of(device)
    gate = check({name: make(unet, embedding, of, guidance) for name, make in STEPS.items()}, latents)
    bar.update()
    dtype = getattr(torch, args.dtype)
    if dtype != torch.float32:
        unet, latents, embedding = unet.to(dtype), latents.to(dtype), embedding.to(dtype)
    steps = {name: make(unet, embedding, of, guidance) for name, make in STEPS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(args.repeats + (device.type == "cuda")):
        for name in list(steps) if turn % 2 == 0 else list(reversed(steps)):
            if device.type == "cuda":
                once = clock.runs(steps[name], [latents], 1)
                times[name] += once if turn else []  # on a CPU the check was the warm-up
            else:
                times[name].append(cpu_ms(steps[name], latents))
        bar.update()
    if device.type == "cuda":
        memory = {name: clock.peak_mib(step, latents) for name, step in steps.items()}
    else:
        del steps, unet
        memory = {name: in_fresh_process(args, size, name) for name in STEPS}
    bar.update()
    row: dict[str, object] = {"size": size, "layers_per_block": args.layers_per_block}
    row |= {"width_divisor": args.width_divisor, "dtype": args.dtype, "repeats": args.repeats}
    row |= {f"{name}_ms": f"{statistics.median(times[name]):.1f}" for name in STEPS}
    ratios = [theirs / ours for ours, theirs in zip(times["ours"], times["diffusers"], strict=True)]
    row |= {"times_faster": f"{statistics.median(ratios):.2f}", "times_faster_min": f"{min(ratios):.2f}"}
    row |= {"times_faster_max": f"{max(ratios):.2f}"}
    row |= {f"{name}_extra_mib": f"{memory[name]:.0f}" for name in STEPS}
    row["memory_ratio"] = f"{memory['ours'] / memory['diffusers']:.2f}"
    return row | {name: f"{value:.8g}" for name, value in gate.items()}


def cpu_ms(step: Step, latents: Tensor) -> float:
    """Milliseconds of processor time of all threads; other processes do not count."""
    start = time.process_time()
    step(latents)
    return 1e3 * (time.process_time() - start)


def in_fresh_process(args: argparse.Namespace, size: int, name: str) -> float:
    """MiB that one step adds to the peak resident set."""
    command = module_command(
        "benchmarks.guidance.cost", "--worker", name, "--sizes", size,
        "--layers-per-block", args.layers_per_block, "--width-divisor", args.width_divisor,
    )  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return float(done.stdout.split()[-1])


def worker(args: argparse.Namespace) -> None:
    device = torch.device("cpu")
    unet, latents, embedding = prepared(args, args.sizes[0], device)
    step = STEPS[args.worker](unet, embedding, prompt(), TSAM())
    step(latents[..., :16, :16])  # loads libraries before the measurement
    mib = clock_of(device).peak_mib(step, latents)
    if mib is None:
        raise SystemExit("this benchmark reads peak memory from /proc, which this system does not have: use Linux")
    print(mib)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, from the command line or from `given`."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[512, 768], help="pixels, multiples of 64 (default 512 768)"
    )
    parser.add_argument("--layers-per-block", type=int, default=2, help="2 (default) is that of Stable Diffusion 1.5")
    parser.add_argument("--width-divisor", type=int, choices=(1, 2, 4), default=1, help="1 (default) is the full width")
    parser.add_argument("--repeats", type=positive, default=5, help="timed steps of each (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="default: float16 on a GPU, float32 on a CPU"
    )
    add_csv(parser, help="write the rows to this file; its rows of other cases stay")
    add_commit(parser)
    parser.add_argument("--worker", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args(given)
    if any(size < 64 or size % 64 for size in args.sizes):
        parser.error(f"--sizes: expected positive multiples of 64, got {args.sizes}")
    device = torch.device(args.device)
    args.dtype = args.dtype or ("float16" if device.type == "cuda" else "float32")
    if device.type == "cpu" and args.dtype != "float32":
        parser.error(f"--dtype: expected float32 on a CPU, got {args.dtype}")
    return args


def main() -> int:
    args = arguments()
    if args.worker:
        worker(args)
        return 0
    device = torch.device(args.device)
    torch.backends.cudnn.allow_tf32 = False  # for the check; it has no effect in half precision
    of, about = prompt(), {"diffusers": version("diffusers")} | machine(device, args.commit)
    turns = args.repeats + 2 + (device.type == "cuda")
    full = 0
    with tqdm(total=turns * len(args.sizes), desc="turns") as bar:
        for size in args.sizes:
            try:
                row = measure(args, size, device, of, bar) | about
            except torch.OutOfMemoryError:
                full = 1
                print(
                    f"size {size}: out of memory, not measured; try --layers-per-block 1 --width-divisor 2", flush=True
                )
                continue
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            if args.csv:
                keep(args.csv, row)
    return full


def keep(path: Path, row: dict[str, object]) -> None:
    """Write a row to the file in place of the row of the same case; the other rows stay."""
    case = ("device", "size", "layers_per_block", "width_divisor", "dtype")
    replace_rows(path, [row], list(row), case)


if __name__ == "__main__":
    sys.exit(main())
