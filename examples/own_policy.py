"""Write a scale policy: any function from an attention call to its scale.

This one sharpens attention at the first steps only, when the layout of an image is decided, and more in layers with
more tokens. You see which scale each layer got at each step, and the image.

    python examples/own_policy.py --sharpen 1.3
    python examples/own_policy.py --model path/or/hub-id --device cuda --prompt "two cats on a sofa"
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline

import entropy_attn as ea


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id of a diffusers pipeline (default: the embedded model)")
    parser.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    parser.add_argument("--sharpen", type=float, default=1.3, help="largest factor on the scale (default: 1.3)")
    parser.add_argument("--prompt", default="two red circles", help="what to draw")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps (default: 10)")
    parser.add_argument("--out", default="policy.png", help="image file (default: policy.png)")
    args = parser.parse_args(argv)

    def early_and_large(call: ea.CallInfo) -> float | None:
        early = 1 - call.step / (args.steps / 2)
        if early <= 0:
            return None  # the model's default scale
        large = min(1.0, math.log(call.seqlen_k) / math.log(256))
        return (1 + (args.sharpen - 1) * early * large) / math.sqrt(call.head_dim)

    load = DiffusionPipeline.from_pretrained
    pipe = load(args.model, dtype=torch.bfloat16) if args.model else ea.shapes.load_pipeline()
    pipe.to(args.device)
    recorder = ea.EntropyRecorder()
    with ea.apply(pipe, scale=early_and_large, record=recorder):
        image = pipe(
            args.prompt, num_inference_steps=args.steps, generator=torch.Generator().manual_seed(0)
        ).images[0]  # fmt: skip
    image.save(args.out)

    table = recorder.to_dataframe()
    table = table[table["layer"].isin(recorder.picture_layers())]
    print("scale of each layer at each step:")
    print(table.pivot_table(index="layer", columns="step", values="scale", sort=False).round(3).to_string())
    print(f"image: {args.out}")


if __name__ == "__main__":
    main()
