"""Generate one prompt at a larger size than the model was trained at, with its own scale and with the paper's.

You see two images side by side in a file, and the entropy of the layers: the paper's scale, sqrt(log_T N / d), brings
it back towards that at the training size.

    python examples/scale_of_a_pipeline.py --size 128 --train-size 64
    python examples/scale_of_a_pipeline.py --model path/or/hub-id --device cuda --size 1024 --train-size 512 --steps 30
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline
from PIL import Image

import entropy_attn as ea


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id of a diffusers pipeline (default: the embedded model)")
    parser.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    parser.add_argument("--size", type=int, default=128, help="in pixels (default: 128)")
    parser.add_argument("--train-size", type=int, default=64, help="that of the model's training (default: 64)")
    parser.add_argument("--prompt", default="two red circles", help="what to draw")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default: 20)")
    parser.add_argument("--out", default="scale.png", help="image file (default: scale.png)")
    args = parser.parse_args(argv)

    load = DiffusionPipeline.from_pretrained
    pipe = load(args.model, dtype=torch.bfloat16) if args.model else ea.shapes.load_pipeline()
    pipe.to(args.device)

    def generate(size: int, scale: ea.scale.Policy) -> Image.Image:
        recorder = ea.EntropyRecorder()
        with ea.apply(pipe, scale=scale, record=recorder, train_size=args.train_size):
            image = pipe(
                args.prompt, height=size, width=size, num_inference_steps=args.steps,
                generator=torch.Generator().manual_seed(0),
            ).images[0]  # fmt: skip
        table = recorder.to_dataframe()
        entropy = table[table["layer"].isin(recorder.picture_layers())].groupby("layer")["mean"].mean().mean()
        print(f"{size:5d} px, {type(scale).__name__}: mean entropy {entropy:.3f} nats")
        return image

    generate(args.train_size, ea.scale.Fixed())  # what the model is used to
    images = [generate(args.size, ea.scale.Fixed()), generate(args.size, ea.scale.LogN())]
    sheet = Image.new("RGB", (2 * args.size, args.size))
    for column, image in enumerate(images):
        sheet.paste(image, (column * args.size, 0))
    sheet.save(args.out)
    print(f"{args.out}: the model's own scale on the left, LogN on the right")


if __name__ == "__main__":
    main()
