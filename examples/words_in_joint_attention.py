"""Maps of words where image and text attend together, as in Stable Diffusion 3 and Flux.

You see how much attention the image pays to each word; the map of each word is written into a file. The default model
is a tiny Flux with random weights and the embedded text encoder: it shows the calls, and its maps mean nothing.

    python examples/words_in_joint_attention.py --prompt "a red circle and a blue square"
    python examples/words_in_joint_attention.py --model path/to/flux-or-sd3 --device cuda --size 1024 --steps 28
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from PIL import Image

import entropy_attn as ea


def tiny_flux() -> FluxPipeline:
    torch.manual_seed(0)
    text = ea.shapes.load_pipeline()
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, num_attention_heads=2, attention_head_dim=16,
        joint_attention_dim=128, pooled_projection_dim=128, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    encoders = (text.text_encoder, text.tokenizer) * 2
    return FluxPipeline(FlowMatchEulerDiscreteScheduler(), None, *encoders, transformer)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id of a pipeline (default: a tiny random Flux)")
    parser.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    parser.add_argument("--prompt", default="a red circle and a blue square", help="what to draw")
    parser.add_argument("--size", type=int, default=128, help="in pixels (default: 128)")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps (default: 4)")
    parser.add_argument("--out", default="words", help="start of the names of the files (default: words)")
    args = parser.parse_args(argv)

    pipe = DiffusionPipeline.from_pretrained(args.model, dtype=torch.bfloat16) if args.model else tiny_flux()
    pipe.to(args.device)
    options = {} if args.model else {"max_sequence_length": 77, "output_type": "latent"}
    maps = ea.MapRecorder()  # every word of the prompt
    with ea.apply(pipe, scale=None, record=maps):
        found = pipe(args.prompt, height=args.size, width=args.size, num_inference_steps=args.steps, **options).images
    image = found[0] if args.model else Image.new("RGB", (args.size, args.size), "white")

    rows, columns = maps.map_size
    print(f"{len(maps.layers)} layers of {rows}x{columns} image tokens; of the attention of the image to all tokens:")
    for index, word in enumerate(maps.tokens):
        share, path = maps.heat_map(index).mean(), f"{args.out}-{index}-{word}.png"
        maps.overlay(image, index).save(path)
        print(f"{share:8.3%} to {word!r}: {path}")


if __name__ == "__main__":
    main()
