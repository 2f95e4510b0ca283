"""Profile a pipeline: how the entropy of its attention changes with the size of the image, with two scales.

You see the mean entropy of its layers at each size, the slope against ln N, and whether a scale can help. Tables and
figures of every layer, head and step are written to a folder.

    python examples/entropy_profile.py --sizes 32 64 128 --out profile
    python examples/entropy_profile.py --model path/or/hub-id --device cuda --sizes 512 768 1024
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
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128], help="in pixels (default: 32 64 128)")
    parser.add_argument("--prompt", default="a red circle and a blue square", help="what to draw")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps (default: 8)")
    parser.add_argument("--out", default="profile", help="folder for tables and figures (default: profile)")
    args = parser.parse_args(argv)

    load = DiffusionPipeline.from_pretrained
    pipe = load(args.model, dtype=torch.bfloat16) if args.model else ea.shapes.load_pipeline()
    pipe.to(args.device)
    profile = ea.profile(
        pipe,
        sizes=args.sizes,
        scales=["off", ea.scale.LogN()],
        prompts=[args.prompt],
        steps=args.steps,
        out=args.out,
        on_run=lambda run, seconds, number, total: print(f"{number} of {total}: {run}"),
    )

    summary = profile.summary
    for policy, by_size in summary["mean_entropy"].items():
        found = ", ".join(f"{size} px {entropy:.2f}" for size, entropy in by_size.items())
        print(f"{policy}: {found} nats; median slope against ln N {summary['slope'][policy]['median']:.2f}")
    for size, regimes in (summary["regimes"] or {}).items():
        print(f"{size} px: {regimes['verdict']}")
    print(f"written to {args.out}: {', '.join(sorted(path.name for path in profile.files.values()))}")


if __name__ == "__main__":
    main()
