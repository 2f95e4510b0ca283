"""Write a loss on attention maps: this one moves an object to the left or the right half of the image.

You see how much of the attention to the word lies in that half before and after the updates of the first step, without
guidance and with it, and both images in files. Any differentiable function of the maps works in the same way.

    python examples/own_loss.py --word triangle --side right
    python examples/own_loss.py --model path/to/stable-diffusion --device cuda --prompt "a cat on a beach" --word cat
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline

import entropy_attn as ea
from entropy_attn.guidance import Custom, Prompt


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a pipeline of Stable Diffusion 1, 2 or XL (default: the embedded model)")
    parser.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    parser.add_argument("--prompt", default="a green square and a red triangle", help="what to draw")
    parser.add_argument("--word", default="triangle", help="the word to move (default: triangle)")
    parser.add_argument("--side", choices=("left", "right"), default="left", help="where to (default: left)")
    parser.add_argument("--alpha", type=float, default=100.0, help="length of a step of the latents (default: 100)")
    parser.add_argument("--updates", type=int, default=20, help="updates before the first step (default: 20)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default: 20)")
    parser.add_argument("--out", default="moved", help="start of the names of the files (default: moved)")
    args = parser.parse_args(argv)

    def share_elsewhere(maps: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """maps: (rows, columns, tokens), probabilities averaged over heads and layers."""
        word = maps[..., prompt.text.find(args.word).positions].mean(-1)
        middle = word.shape[1] // 2
        wanted = word[:, middle:] if args.side == "right" else word[:, :middle]
        return 1 - wanted.sum() / word.sum()

    load = DiffusionPipeline.from_pretrained
    pipe = load(args.model, dtype=torch.bfloat16) if args.model else ea.shapes.load_pipeline()
    pipe.to(args.device)
    for alpha in (0.0, args.alpha):  # with alpha=0 the loss is measured and nothing is changed
        # Where an object stands is decided early: all updates are made before the first step.
        loss = Custom(function=share_elsewhere, alpha=alpha, steps=(0,), refine_at=(0,), refine_iters=args.updates)
        with ea.attach(pipe, loss) as guidance:
            generator = torch.Generator().manual_seed(0)
            image = pipe(args.prompt, num_inference_steps=args.steps, generator=generator).images[0]
        image.save(f"{args.out}-{alpha:g}.png")
        first, last = (1 - float(guidance.losses[at][1]) for at in (0, -1))
        print(f"{args.out}-{alpha:g}.png: attention to {args.word!r} in the {args.side} half {first:.0%} -> {last:.0%}")


if __name__ == "__main__":
    main()
