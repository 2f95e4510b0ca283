"""Maps of words where image and text attend together, as in Stable Diffusion 3, Flux and Lumina 2.

You see how much attention the image pays to each word; the map of each word is written into a file, over the image.
The default model is the embedded transformer, a small Lumina 2.

    python examples/words_in_joint_attention.py --prompt "a red circle and a blue square"
    python examples/words_in_joint_attention.py --model path/to/flux-or-sd3 --device cuda --size 1024 --steps 28
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline

import entropy_attn as ea


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id of a pipeline (default: the embedded transformer)")
    parser.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    parser.add_argument("--prompt", default="a red circle and a blue square", help="what to draw")
    parser.add_argument("--size", type=int, default=64, help="in pixels (default: 64)")
    parser.add_argument("--steps", type=int, default=12, help="denoising steps (default: 12)")
    parser.add_argument("--out", default="words", help="start of the names of the files (default: words)")
    args = parser.parse_args(argv)

    if args.model:
        pipe = DiffusionPipeline.from_pretrained(args.model, dtype=torch.bfloat16)
    else:
        pipe = ea.shapes.load_pipeline("transformer")
    pipe.to(args.device)
    maps = ea.MapRecorder()  # every word of the prompt
    with ea.apply(pipe, scale=None, record=maps):
        image = pipe(args.prompt, height=args.size, width=args.size, num_inference_steps=args.steps).images[0]

    rows, columns = maps.map_size
    print(f"{len(maps.layers)} layers of {rows}x{columns} image tokens; of the attention of the image to all tokens:")
    for index, word in enumerate(maps.tokens):
        share, path = maps.heat_map(index).mean(), f"{args.out}-{index}-{word}.png"
        maps.overlay(image, index).save(path)
        print(f"{share:8.3%} to {word!r}: {path}")


if __name__ == "__main__":
    main()
