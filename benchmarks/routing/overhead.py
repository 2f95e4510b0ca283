"""How long does routing keep the host busy per attention call, compared with plain diffusers? On the CPU, tiny models.

A plain and a routed attention layer of each kind are called in turns, so that both see the same load; their tensors are
so small that Python takes the time. The median difference goes to benchmarks/results/overhead.csv.

    python -m benchmarks.routing.overhead
    python -m benchmarks.routing.overhead --rounds 30 --csv overhead.csv
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import diffusers
import torch

from benchmarks.common import RESULTS, add_csv, new_parser, positive, write_rows
from entropy_attn.bench.machine import machine
from entropy_attn.integrations.diffusers import apply
from entropy_attn.routing.calls import DenoiserCall
from entropy_attn.scale import Fixed, LogN

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


# {name: (model, name of the layer, how it is called)}
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
    plain_us, routed_us = (statistics.median(column) for column in zip(*times, strict=True))
    differences = [after - before for before, after in times]
    low, middle, high = (statistics.quantiles(differences, n=10)[index] for index in (1, 4, 7))
    return {"plain_us": plain_us, "routed_us": routed_us, "over_p20": low, "over_p50": middle, "over_p80": high}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--rounds", type=positive, default=300, help="times of each layer (default %(default)s)")
    parser.add_argument("--repeats", type=positive, default=10, help="calls in one time (default %(default)s)")
    add_csv(parser, RESULTS / "overhead.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    shared = {**machine(torch.device("cpu")), "diffusers": diffusers.__version__}
    rows = []
    for kind in KINDS:
        for name, policy in POLICIES.items():
            found = measure(kind, policy, args.rounds, args.repeats)
            rows.append({"layer": kind, "policy": name, **{key: round(us, 2) for key, us in found.items()}, **shared})
            print({key: rows[-1][key] for key in ("layer", "policy", "plain_us", "routed_us", "over_p50")}, flush=True)
    write_rows(args.csv, rows)


if __name__ == "__main__":
    main()
