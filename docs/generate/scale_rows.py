r"""Draw what scale policies change: a row for each policy, a column for each size, the same noise in every row.

The captions are the first ones of the report of benchmarks/shapes/transformer/evaluate.py, with their noise and its
settings: the images are some of those that it scores, and nobody has picked them. Positions of the embedded transformer
are interpolated, as `ea.shapes.load_pipeline` does.

    python -m docs.generate.scale_rows --model transformer --sizes 96 --captions 10 --objects 3 \
        --scales off,logn,lognoroot,logn:strength=3 --out docs/images/scale-rows.png
    python -m docs.generate.scale_rows --model unet --sizes 96 --captions 10 --score "exact count" \
        --scales off,logn,lognoroot,target:per=layer --out docs/images/held-entropy.png
    python -m docs.generate.scale_rows --model transformer unet --sizes 64 96 128 --scales off,lognoroot --out rows.png
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import new_parser, positive
from benchmarks.shapes.transformer.evaluate import CAPTIONS_SEED, model_folder, size_of
from benchmarks.shapes.transformer.images import Sampler, Size
from entropy_attn.evaluation.shapes_captions import numbered_requests, shapes_scores
from entropy_attn.plots.style import DPI, image_grid, name_row
from entropy_attn.profiling.plan import size_name
from entropy_attn.scale.parsing import parse_scale

SIZES: tuple[Size, ...] = ((64, 64), (96, 96), (128, 128))
SCALES = "off,logn,lognoroot"
CELL = 1.05  # inches
WRONG = "#d55e00"  # of frames
# The checker's score that an image needs, the word for images that have it, and what a frame says of others
SCORES = {"presence": ("complete", "an object is missing"), "exact count": ("exact", "objects are missing or too many")}


def rows_of(
    sample: Sampler, scales: Sequence[str], sizes: Sequence[Size], captions: Mapping[int, str]
) -> dict[str, list[Any]]:
    """{policy: images, all sizes of the first caption first}; the number of a caption is its seed."""
    found = {}
    for name in scales:
        by_size = [sample(list(captions.values()), list(captions), size, parse_scale(name)) for size in sizes]
        found[name] = [by_size[at][number] for number in range(len(captions)) for at in range(len(sizes))]
    return found


def first_captions(total: int, objects: int) -> dict[int, str]:
    """The first captions of the evaluation with at least so many objects, by their numbers."""
    found = numbered_requests(total, "report", CAPTIONS_SEED, lambda request: request.total >= objects)
    return {number: request.caption() for number, request in found.items()}


def draw(
    rows: Mapping[str, Sequence[Any]],
    sizes: Sequence[Size],
    captions: Sequence[str],
    title: str,
    score: str = "presence",
) -> Figure:
    """A row for each entry of `rows`; a caption stands above its first size.

    An orange frame is around each image without the checker's `score`, one of `SCORES`, and the name of a row says how
    many images have it.
    """
    figure, grid = image_grid(len(rows), len(sizes) * len(captions), title, cell=CELL)
    for (name, images), axes in zip(rows.items(), grid, strict=True):
        right = 0
        for at, (axis, image) in enumerate(zip(axes, images, strict=True)):
            axis.imshow(image, interpolation="nearest")
            if shapes_scores(image, captions[at // len(sizes)])[score]:
                right += 1
            else:
                axis.spines[:].set(color=WRONG, linewidth=2.5)
        name_row(axes[0], name)
        axes[0].yaxis.label.set_text(f"{axes[0].get_ylabel()}\n{right} of {len(images)}\n{SCORES[score][0]}")
    for number, caption in enumerate(captions):
        wrapped = textwrap.fill(caption, 17 * len(sizes))
        grid[0][number * len(sizes)].set_title(wrapped, loc="left", fontsize=8)
    if len(sizes) > 1:
        for at, axis in enumerate(grid[-1]):
            axis.set_xlabel(size_name(sizes[at % len(sizes)]), fontsize=8)
    return figure


def main() -> None:
    options = new_parser(__doc__)
    options.add_argument("--model", nargs="+", required=True, help="embedded models or diffusers folders")
    options.add_argument("--sizes", type=size_of, nargs="+", default=list(SIZES), help="default 64 96 128")
    options.add_argument("--scales", default=SCALES, help="policies, separated by commas (default %(default)s)")
    options.add_argument("--captions", type=positive, default=3, help="number of captions (default %(default)s)")
    options.add_argument(
        "--objects", type=int, choices=(1, 2, 3), default=1, help="only captions with at least so many (default 1)"
    )
    options.add_argument("--score", choices=SCORES, default="presence", help="what a frame says (default %(default)s)")
    options.add_argument("--steps", type=positive, default=12, help="denoising steps (default %(default)s)")
    options.add_argument("--guidance-scale", type=float, default=4.0, help="default %(default)s")
    options.add_argument("--out", type=Path, required=True, help="the figure")
    args = options.parse_args()
    scales = args.scales.split(",")
    for name in scales:
        parse_scale(name)
    folders = {model: model_folder(options, model) for model in args.model}
    captions, rows = first_captions(args.captions, args.objects), {}
    for model, folder in folders.items():
        positions = "interpolated" if model == "transformer" else "extrapolated"
        sample = Sampler(folder, args.steps, args.guidance_scale, positions)
        made = rows_of(sample, scales, args.sizes, captions)
        prefix = f"{Path(model).name}, " if len(folders) > 1 else ""
        rows |= {f"{prefix}{name}": images for name, images in made.items()}
    sizes = ", ".join(map(size_name, args.sizes))
    title = f"Images of {sizes} pixels by scale, the same noise in each column; orange: {SCORES[args.score][1]}"
    draw(rows, args.sizes, list(captions.values()), title, args.score).savefig(args.out, dpi=DPI)
    print(args.out)


if __name__ == "__main__":
    main()
