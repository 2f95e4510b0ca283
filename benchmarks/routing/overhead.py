"""What routing costs the host for each attention call, scale only, over plain diffusers: the CPU, tiny models.

    python -m benchmarks.routing.overhead --rounds 300

One attention layer of each kind is called in turn plain and routed, so that both see the same machine; its tensors are
so small that the time is Python's. The median of the differences goes to benchmarks/results/overhead.csv.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch

from entropy_attn.bench.machine import machine
from entropy_attn.integrations.diffusers import apply
from entropy_attn.routing.calls import DenoiserCall
from entropy_attn.scale import Fixed, LogN

RESULTS = Path(__file__).parents[1] / "results" / "overhead.csv"
WIDTH, TOKENS, TEXT = 32, 16, 4
POLICIES = {"none": None, "Fixed": Fixed(), "LogN": LogN()}


def unet(**options: object) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(WIDTH,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
        attention_head_dim=2,
        **options,
    )


def sd3() -> diffusers.SD3Transformer2DModel:
    return diffusers.SD3Transformer2DModel(
        sample_size=8, num_layers=2, attention_head_dim=16, num_attention_heads=2, caption_projection_dim=WIDTH
    )


def flux() -> diffusers.FluxTransformer2DModel:
    return diffusers.FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, axes_dims_rope=(4, 4, 8)
    )


# name -> (model, its layer, the layer's call)
KINDS: dict[str, tuple[Callable[[], torch.nn.Module], str, Callable[[torch.nn.Module], object]]] = {
    "UNet self": (unet, "mid_block.attentions.0.transformer_blocks.0.attn1", lambda layer: layer(image())),
    "UNet cross": (unet, "mid_block.attentions.0.transformer_blocks.0.attn2", lambda layer: layer(image(), text())),
    "SD3 joint": (sd3, "transformer_blocks.0.attn", lambda layer: layer(image(), encoder_hidden_states=text())),
    "Flux joint": (flux, "transformer_blocks.0.attn", lambda layer: layer(image(), encoder_hidden_states=text())),
}


def image() -> torch.Tensor:
    return _IMAGE


def text() -> torch.Tensor:
    return _TEXT


_IMAGE, _TEXT = torch.ones(1, TOKENS, WIDTH), torch.ones(1, TEXT, WIDTH)


def microseconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats * 1e6


def measure(kind: str, policy: object, rounds: int, repeats: int) -> dict[str, float]:
    make, name, call = KINDS[kind]
    plain, routed = make().eval(), make().eval()
    layers = plain.get_submodule(name), routed.get_submodule(name)
    joint = "joint" in kind
    with torch.no_grad(), apply(routed, scale=policy, train_size=8) as handle:
        running = DenoiserCall(0, (4, 4), image_tokens=TOKENS if joint else None, train_tokens=TOKENS)
        with handle.router.denoiser_call(running):
            for layer in layers:
                microseconds(lambda: call(layer), repeats)  # noqa: B023  (called at once)
            times = [[microseconds(lambda: call(layer), repeats) for layer in layers] for _ in range(rounds)]  # noqa: B023
    own, ours = (statistics.median(column) for column in zip(*times, strict=True))
    differences = [after - before for before, after in times]
    low, middle, high = (statistics.quantiles(differences, n=10)[place] for place in (1, 4, 7))
    return {"plain_us": own, "routed_us": ours, "over_p20": low, "over_p50": middle, "over_p80": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=10, help="calls in a row that one time is taken of")
    parser.add_argument("--csv", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared = {**machine(torch.device("cpu")), "diffusers": diffusers.__version__}
    rows = []
    for kind in KINDS:
        for name, policy in POLICIES.items():
            found = measure(kind, policy, options.rounds, options.repeats)
            rows.append({"layer": kind, "policy": name, **{key: round(us, 2) for key, us in found.items()}, **shared})
            print({key: rows[-1][key] for key in ("layer", "policy", "plain_us", "routed_us", "over_p50")}, flush=True)
    with options.csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
