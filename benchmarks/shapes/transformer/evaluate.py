"""Does a scale policy improve the images of a model? Paired by caption and noise, scored by the exact checker.

At each size, captions of their own choose the strength with the most correct images: every object and no other. Then
off, LogN, LogNoRoot and the chosen strength are compared on other captions. Finished batches are kept, so that the same
command goes on after it was stopped; images.csv has a row for each image, summary.csv and the printed table have means
and paired differences to off, with 95 % intervals.

    python -m benchmarks.shapes.transformer.evaluate --model model/ --estimate       # core-minutes, without the images
    python -m benchmarks.shapes.transformer.evaluate --model model/ --out runs/evaluation
    python -m benchmarks.shapes.transformer.evaluate --model unet --out runs/unet --sizes 64 96 128
"""

from __future__ import annotations

import argparse
import re
import signal
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import entropy_attn as ea
from benchmarks.common import new_parser, positive, write_rows
from benchmarks.shapes.transformer.images import BATCH, Images, Sampler, Size, digest
from benchmarks.shapes.transformer.paired import FIELDS, best_policy, summary
from entropy_attn.evaluation.shapes_captions import shapes_requests
from entropy_attn.pipelines.sizes import check_size, train_size
from entropy_attn.profiling.plan import size_name
from entropy_attn.shapes import MODELS, POSITIONS

SIZES: tuple[Size, ...] = ((32, 32), (48, 48), (64, 64), (96, 96), (128, 128), (192, 192), (64, 128))
POLICIES = {"off": ea.scale.Fixed(), "LogN": ea.scale.LogN(), "LogNoRoot": ea.scale.LogNoRoot()}
# LogNoRoot is LogN of strength 2. Negative strengths do the opposite of the paper's scale.
OTHERS = {f"LogN, strength {s:g}": ea.scale.LogN(strength=s) for s in (-2.0, 3.0, 4.0, 6.0)}
CANDIDATES = {**POLICIES, **OTHERS}
CHOSEN = "chosen"
CAPTIONS_SEED = "transformer"


def captions_of(split: str, total: int) -> list[str]:
    """The first captions of "choose" or "report"."""
    return [request.caption() for request in shapes_requests(total, split, CAPTIONS_SEED)]


def evaluate(images: Images, sizes: list[Size], trained: Size, captions: int, choose: int) -> list[dict]:
    """The rows of the summary."""
    report, chooses, rows = captions_of("report", captions), captions_of("choose", choose), []
    with tqdm(total=planned(sizes, trained, captions, choose), desc="images", mininterval=2) as bar:
        for size in sizes:

            def scored(split: str, wanted: list[str], names: Any, size: Size = size) -> dict[str, list[dict]]:
                return {name: images(split, size, name, wanted, bar.update) for name in names}

            if size == trained:  # every policy is 1 there
                rows += summary(size_name(size), scored("report", report, ["off"]))
                continue
            found = scored("report", report, POLICIES)
            settings = {}
            if choose:
                best = best_policy(scored("choose", chooses, CANDIDATES))
                settings[CHOSEN] = best
                found[CHOSEN] = found[best] if best in found else scored("report", report, [best])[best]
                bar.update(len(report) if best in POLICIES else 0)
            rows += summary(size_name(size), found, settings)
    return rows


def planned(sizes: list[Size], trained: Size, captions: int, choose: int) -> int:
    """The number of images, if the chosen policy is at each size one of `OTHERS`."""
    return sum(images_at(size, trained, captions, choose) for size in sizes)


def images_at(size: Size, trained: Size, captions: int, choose: int) -> int:
    if size == trained:
        return captions
    return captions * (len(POLICIES) + bool(choose)) + choose * len(CANDIDATES)


def estimate(sample: Sampler, sizes: list[Size], trained: Size, captions: int, choose: int) -> list[list[str]]:
    """Rows (size, images, core-seconds an image, core-minutes), from one batch of two steps at each size."""
    out, total = [], 0.0
    batch = captions_of("report", BATCH)
    for size in sizes:
        seconds = {}
        for few in (1, 3):
            start = time.process_time()
            sample(batch, list(range(BATCH)), size, POLICIES["LogN"], steps=few)
            seconds[few] = (time.process_time() - start) / BATCH
        each = seconds[1] + (sample.steps - 1) * (seconds[3] - seconds[1]) / 2
        count = images_at(size, trained, captions, choose)
        total += count * each / 60
        out.append([size_name(size), str(count), f"{each:.2f}", f"{count * each / 60:.1f}"])
    return [*out, ["all", str(planned(sizes, trained, captions, choose)), "", f"{total:.1f}"]]


def model_folder(options: argparse.ArgumentParser, model: str) -> Path:
    """The folder of the value of --model."""
    folder = MODELS.get(model, Path(model))
    if not (folder / "model_index.json").is_file():
        options.error(f"--model: expected a diffusers folder or one of {', '.join(MODELS)}, got {model!r}")
    return folder


def size_of(text: str) -> Size:
    """The value of --sizes: one number for a square, or HEIGHTxWIDTH."""
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected a size such as 64 or 64x128, got {text!r}")
    return int(found[1]), int(found[2] or found[1])


def parser() -> argparse.ArgumentParser:
    options = new_parser(__doc__)
    options.add_argument(
        "--model", required=True, help=f"a diffusers folder, or the name of an embedded model: {', '.join(MODELS)}"
    )
    options.add_argument(
        "--out", type=Path, help="folder of images, images.csv and summary.csv; not needed for --estimate"
    )
    options.add_argument("--estimate", action="store_true", help="only time a batch at each size")
    default = " ".join(size_name(size) for size in SIZES)
    options.add_argument(
        "--sizes", type=size_of, nargs="+", default=list(SIZES), help=f"sizes in pixels (default {default})"
    )
    options.add_argument("--captions", type=positive, default=300, help="captions for the report (default %(default)s)")
    options.add_argument(
        "--choose", type=int, default=40, help="captions for choosing the strength; 0: no choice (default %(default)s)"
    )
    options.add_argument("--steps", type=positive, default=8, help="denoising steps (default %(default)s)")
    options.add_argument(
        "--positions", choices=POSITIONS, default="extrapolated",
        help="of image tokens at other sizes than the training size; 'interpolated' is for the transformer (default "
        "%(default)s, as plain diffusers)",
    )  # fmt: skip
    options.add_argument("--guidance-scale", type=float, default=4.0, help="default %(default)s")
    return options


def main() -> None:
    options = parser()
    args = options.parse_args()
    if args.choose < 0:
        options.error(f"--choose: expected a whole number from 0, got {args.choose}")
    if args.out is None and not args.estimate:
        options.error("--out: expected a folder, or --estimate")
    if len(set(args.sizes)) < len(args.sizes):
        options.error(f"--sizes: expected different sizes, got {' '.join(map(size_name, args.sizes))}")
    model = model_folder(options, args.model)
    try:
        sample = Sampler(model, args.steps, args.guidance_scale, args.positions)
    except ValueError as error:
        options.error(f"--positions {args.positions}: {error}")
    for size in args.sizes:
        check_size(sample.pipe, size)
    trained = train_size(sample.pipe)
    if args.estimate:
        _print(("size", "images", "core-seconds each", "core-minutes"),
               estimate(sample, args.sizes, trained, args.captions, args.choose))  # fmt: skip
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settings = {"weights_sha256": digest(model), "steps": args.steps, "guidance_scale": args.guidance_scale,
                "positions": args.positions}  # fmt: skip
    try:
        images = Images(sample, args.out, settings, CANDIDATES)
        rows = evaluate(images, args.sizes, trained, args.captions, args.choose)
    except KeyboardInterrupt:
        raise SystemExit(f"stopped: {args.out} keeps what was finished, and the same command continues") from None
    write_rows(args.out / "images.csv", images.rows)
    write_rows(args.out / "summary.csv", rows, FIELDS)
    _print(FIELDS, [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows])


def _print(columns: tuple[str, ...], rows: list[list[str]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    Console(width=190).print(table)


if __name__ == "__main__":
    main()
