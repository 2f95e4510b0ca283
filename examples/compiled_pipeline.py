"""Compile a routed denoiser: attention is one node of the graph, and another scale or size compiles nothing anew.

You see how many graphs torch.compile made of the denoiser, at a first size and after further ones, and that the
results are the same. The backend "eager" only traces, in seconds; "inductor" generates code, which takes minutes on a
CPU.

    python examples/compiled_pipeline.py
    python examples/compiled_pipeline.py --model path/or/hub-id --device cuda --sizes 512 768 1024 --backend inductor
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline

import entropy_attn as ea


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id of a diffusers pipeline (default: the embedded model)")
    parser.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128], help="in pixels (default: 64 96 128)")
    parser.add_argument("--prompt", default="two red circles", help="what to draw")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps (default: 4)")
    parser.add_argument("--backend", default="eager", help="of torch.compile: eager, inductor, ... (default: eager)")
    args = parser.parse_args(argv)

    load = DiffusionPipeline.from_pretrained
    pipe = load(args.model, dtype=torch.bfloat16) if args.model else ea.shapes.load_pipeline()
    pipe.to(args.device)
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer

    def latents(size: int) -> torch.Tensor:
        return pipe(
            args.prompt, height=size, width=size, num_inference_steps=args.steps, output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    with ea.apply(pipe, scale=ea.scale.LogN()):  # first apply, then compile
        plain = [latents(size) for size in args.sizes]
        denoiser.compile(backend=args.backend, dynamic=True)
        torch._dynamo.utils.counters.clear()
        for size, expected in zip(args.sizes, plain, strict=True):
            difference = (latents(size) - expected).abs().max() / expected.abs().max()
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            print(f"{size} px: {graphs} graphs so far; largest difference to the uncompiled latents {difference:.1e}")


if __name__ == "__main__":
    main()
