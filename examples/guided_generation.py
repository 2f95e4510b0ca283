"""Guide a generation so that the image attends to words that belong together in the same places (T-SAM, CVPR 2025).

You see the loss before each step, without guidance and with it, and both images side by side in a file. For the
embedded model an exact checker says whether each image shows what was asked for.

    python examples/guided_generation.py --alpha 10
    python examples/guided_generation.py --model path/to/stable-diffusion --device cuda --alpha 40 --prompt "a red bear"
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline
from PIL import Image

import entropy_attn as ea
from entropy_attn.guidance import TSAM
from entropy_attn.shapes import checker, scenes


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a pipeline of Stable Diffusion or Flux (default: the embedded model)")
    parser.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    parser.add_argument("--alpha", type=float, default=10.0, help="length of a step of the latents (default: 10)")
    parser.add_argument("--prompt", default="a red circle and a blue square", help="what to draw")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the starting noise (default: 0)")
    parser.add_argument("--out", default="guided.png", help="image file (default: guided.png)")
    args = parser.parse_args(argv)

    load = DiffusionPipeline.from_pretrained
    pipe = load(args.model, dtype=torch.bfloat16) if args.model else ea.shapes.load_pipeline()
    pipe.to(args.device)
    images = []
    for alpha in (0.0, args.alpha):  # with alpha=0 the loss is measured and nothing is changed
        with ea.attach(pipe, TSAM(alpha=alpha)) as guidance:
            generator = torch.Generator().manual_seed(args.seed)
            images.append(pipe(args.prompt, num_inference_steps=args.steps, generator=generator).images[0])
        print(f"alpha {alpha:g}: loss", *(f"{float(loss):.3f}" for step, loss in guidance.losses))
        if not args.model:
            print("  the image is right:", checker.check(images[-1], scenes.parse_caption(args.prompt)).exact)

    sheet = Image.new("RGB", (sum(image.width for image in images), images[0].height))
    for column, image in enumerate(images):
        sheet.paste(image, (column * image.width, 0))
    sheet.save(args.out)
    print(f"{args.out}: without guidance on the left, with it on the right")


if __name__ == "__main__":
    main()
