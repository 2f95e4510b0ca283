"""How good is the embedded model? The exact checker scores images of fixed captions, at the training size and others.

python -m benchmarks.shapes.evaluate --csv benchmarks/results/shapes.csv        # the table of the model card
python -m benchmarks.shapes.evaluate --sizes 32 64 128 --scales off logn        # the count error over sizes
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import entropy_attn as ea
from benchmarks.common import add_csv, new_parser, write_rows
from entropy_attn.evaluation.sampling import batches
from entropy_attn.evaluation.shapes_captions import shapes_requests
from entropy_attn.pipelines import sample
from entropy_attn.shapes import load_pipeline
from entropy_attn.shapes.checker import check
from entropy_attn.shapes.scenes import Request

FIELDS = ("split", "size", "scale", "captions", "presence", "count", "exact", "binding", "relation", "objects_found",
          "count_error")  # fmt: skip
SCALES = {"off": ea.scale.Fixed(), "logn": ea.scale.LogN()}


def images_of(
    pipe: Any, requests: list[Request], size: int, policy: Any, steps: int, guidance_scale: float, seed: int, bar: tqdm
) -> Iterator[Any]:
    """An image for each request; each has a different seed, so the batch size does not matter."""
    for numbers in batches(range(len(requests)), 20):
        yield from sample(
            pipe, [requests[i].caption() for i in numbers], size=(size, size), scale=policy,
            seed=[seed + i for i in numbers], steps=steps, guidance_scale=guidance_scale,
        )  # fmt: skip
        bar.update(len(numbers))


def mark(images, requests: list[Request]) -> dict:
    """Means of the scores; `relation` is over the captions that have one."""
    scores = [check(image, request) for image, request in zip(images, requests, strict=True)]
    relations = [s.relation for s in scores if s.relation is not None]
    total = len(scores)
    return {
        "captions": total,
        **{name: sum(getattr(s, name) for s in scores) / total for name in ("presence", "count", "exact", "binding")},
        "relation": sum(relations) / len(relations) if relations else None,
        "objects_found": sum(len(s.found) for s in scores) / total,
        "count_error": sum(abs(len(s.found) - r.total) for s, r in zip(scores, requests, strict=True)) / total,
    }


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--captions", type=int, default=200, help="captions of each split (default %(default)s)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[64], help="image sizes in pixels (default 64, the training size)"
    )
    parser.add_argument("--scales", nargs="+", choices=list(SCALES), default=["off"], help="default off")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (default %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=4.0, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    add_csv(parser)
    args = parser.parse_args()

    pipe, rows = load_pipeline(), []
    jobs = [(split, size, name) for split in ("seen", "held-out") for size in args.sizes for name in args.scales]
    with tqdm(total=len(jobs) * args.captions, desc="images") as bar:
        for split, size, name in jobs:
            requests = shapes_requests(args.captions, split)
            images = list(
                images_of(pipe, requests, size, SCALES[name], args.steps, args.guidance_scale, args.seed, bar)
            )
            rows.append({"split": split, "size": size, "scale": name, **mark(images, requests)})

    table = Table(*FIELDS)
    for row in rows:
        values = [row[name] for name in FIELDS]
        table.add_row(*("" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in values))
    Console(width=150).print(table)
    if args.csv:
        write_rows(args.csv, rows, FIELDS)


if __name__ == "__main__":
    main()
