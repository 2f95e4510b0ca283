"""Draw what scale policies change: a row for each policy, a column for each size, the same noise in every row.

The captions are the first ones of the report of benchmarks/shapes/transformer/evaluate.py, with their noise and its
settings: the images are some of those that it scores, and nobody has picked them.

    python -m docs.generate.scale_rows --model unet --out docs/images/scale-rows.png
    python -m docs.generate.scale_rows --model transformer unet --sizes 64 96 128 --scales off,lognoroot --out rows.png
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import new_parser, positive
from benchmarks.shapes.transformer.evaluate import captions_of, model_folder, size_of
from benchmarks.shapes.transformer.images import Sampler, Size
from entropy_attn.plots.style import DPI, image_grid, name_row
from entropy_attn.profiling.plan import size_name
from entropy_attn.scale.parsing import parse_scale

SIZES: tuple[Size, ...] = ((64, 64), (96, 96), (128, 128))
SCALES = "off,logn,lognoroot"
CELL = 1.05  # inches


def rows_of(
    sample: Sampler, scales: Sequence[str], sizes: Sequence[Size], captions: Sequence[str]
) -> dict[str, list[Any]]:
    """{policy: images, all sizes of the first caption first}."""
    seeds = list(range(len(captions)))
    found = {}
    for name in scales:
        by_size = [sample(list(captions), seeds, size, parse_scale(name)) for size in sizes]
        found[name] = [by_size[at][number] for number in seeds for at in range(len(sizes))]
    return found


def draw(rows: Mapping[str, Sequence[Any]], sizes: Sequence[Size], captions: Sequence[str], title: str) -> Figure:
    """A row for each entry of `rows`; a caption stands above its first size."""
    figure, grid = image_grid(len(rows), len(sizes) * len(captions), title, cell=CELL)
    for (name, images), axes in zip(rows.items(), grid, strict=True):
        name_row(axes[0], name)
        for axis, image in zip(axes, images, strict=True):
            axis.imshow(image, interpolation="nearest")
    for number, caption in enumerate(captions):
        grid[0][number * len(sizes)].set_title(caption, loc="left", fontsize=8)
    for at, axis in enumerate(grid[-1]):
        axis.set_xlabel(size_name(sizes[at % len(sizes)]), fontsize=8)
    return figure


def main() -> None:
    options = new_parser(__doc__)
    options.add_argument("--model", nargs="+", required=True, help="embedded models or diffusers folders")
    options.add_argument("--sizes", type=size_of, nargs="+", default=list(SIZES), help="default 64 96 128")
    options.add_argument("--scales", default=SCALES, help="policies, separated by commas (default %(default)s)")
    options.add_argument("--captions", type=positive, default=3, help="number of captions (default %(default)s)")
    options.add_argument("--steps", type=positive, default=8, help="denoising steps (default %(default)s)")
    options.add_argument("--guidance-scale", type=float, default=4.0, help="default %(default)s")
    options.add_argument("--out", type=Path, required=True, help="the figure")
    args = options.parse_args()
    scales = args.scales.split(",")
    for name in scales:
        parse_scale(name)
    folders = {model: model_folder(options, model) for model in args.model}
    captions, rows = captions_of("report", args.captions), {}
    for model, folder in folders.items():
        sample = Sampler(folder, args.steps, args.guidance_scale)
        made = rows_of(sample, scales, args.sizes, captions)
        rows |= {f"{Path(model).name}, {name}": images for name, images in made.items()}
    title = f"Images by scale and size (px), {args.steps} steps; the same noise in each column of a model"
    draw(rows, args.sizes, captions, title).savefig(args.out, dpi=DPI)
    print(args.out)


if __name__ == "__main__":
    main()
