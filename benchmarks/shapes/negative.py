"""Does NAG keep a color out of images of the embedded UNet, without classifier-free guidance?

Every image is made for the empty prompt, which gives scenes of all colors, and a negative text of one color, such as
"a red circle, a red square and a red triangle"; the checker looks for objects of that color. Compared on the same
noise: no negative text; NAG with its authors' settings; NAG with the settings that leave the most clean images on
other noise (a clean image has objects, none of that color and none of an unknown shape); the same settings with the
text of another color, as a control; and classifier-free guidance with the negative text, at the cost of a second
sample. Writes images.csv, summary.csv (95 % intervals) and negative.png; the same command goes on after it was stopped.

    python -m benchmarks.shapes.negative --seeds 40 --out runs/negative
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

import entropy_attn as ea
from benchmarks.common import append_rows, new_parser, positive, read_rows, write_rows
from entropy_attn.evaluation.statistics import mean, proportion, proportion_difference
from entropy_attn.plots.style import image_grid, name_row
from entropy_attn.shapes.checker import UNKNOWN, find_objects
from entropy_attn.shapes.scenes import COLOURS

SIZE = 64
CHOOSE_FROM = 100_000  # the first seed of the images that settings are chosen on
AUTHORS = (4.0, 2.5, 0.25)  # strength, tau, alpha
SETTINGS = (AUTHORS, (4.0, 2.5, 0.5), (8.0, 2.5, 0.5), (4.0, 2.5, 1.0), (9.0, 5.0, 0.5))
GUIDANCE = 2.0
IMAGES = ("arm", "setting", "colour", "seed", "objects", "of_colour", "unknown")
SUMMARY = ("arm", "setting", "images", "measure", "mean", "low", "high", "difference", "difference_low",
           "difference_high")  # fmt: skip


class Arm(NamedTuple):
    """One way of making an image: a setting of NAG, or a guidance scale, or neither; `shift` picks another color."""

    name: str
    nag: tuple[float, float, float] | None = None
    guidance_scale: float = 1.0
    shift: int = 0

    @property
    def setting(self) -> str:
        if self.nag is not None:
            return "strength {:g}, tau {:g}, alpha {:g}".format(*self.nag)
        return "" if self.guidance_scale == 1.0 else f"guidance scale {self.guidance_scale:g}"


OFF = Arm("off")


def arms(chosen: tuple[float, float, float]) -> list[Arm]:
    return [OFF, Arm("NAG, authors' settings", AUTHORS), Arm("NAG, chosen", chosen),
            Arm("control: another color", chosen, shift=len(COLOURS) // 2),
            Arm("classifier-free guidance", guidance_scale=GUIDANCE)]  # fmt: skip


def text_of(colour: str) -> str:
    return f"a {colour} circle, a {colour} square and a {colour} triangle"


def negative_of(arm: Arm, colour: str) -> str:
    """The negative text: of the color, or in the control of another one."""
    colours = list(COLOURS)
    return text_of(colours[(colours.index(colour) + arm.shift) % len(colours)])


class Maker:
    """Images of arms, and what the checker finds in them. Finished batches are read from the file."""

    def __init__(self, pipe: Any, steps: int, file: Path, bar: Any):
        self.pipe, self.steps, self.file, self.bar = pipe, steps, file, bar
        self.rows = read_rows(file)

    def pictures(self, arm: Arm, colour: str, seeds: list[int]) -> list[Any]:
        mix, more = None, {}
        if arm.nag is not None:
            embeds, _ = self.pipe.encode_prompt(negative_of(arm, colour), "cpu", 1, False)
            mix = ea.mix.NAG(*arm.nag, text=embeds)
        elif arm.guidance_scale != 1.0:
            more = {"negative_prompt": [negative_of(arm, colour)] * len(seeds)}
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with ea.apply(self.pipe, scale=None, mix=mix):
            return self.pipe(
                [""] * len(seeds), height=SIZE, width=SIZE, guidance_scale=arm.guidance_scale, generator=generators,
                num_inference_steps=self.steps, **more,
            ).images  # fmt: skip

    def __call__(self, arm: Arm, seeds: list[int]) -> list[dict[str, Any]]:
        """The rows of these seeds with every color, in this order."""
        found = []
        for colour in COLOURS:
            key = {"arm": arm.name, "setting": arm.setting, "colour": colour}
            done = {int(r["seed"]): r for r in self.rows if all(r[name] == text for name, text in key.items())}
            if not done.keys() >= set(seeds):
                objects = [find_objects(picture) for picture in self.pictures(arm, colour, seeds)]
                new = [key | {"seed": seed, "objects": len(each), "of_colour": sum(o.colour == colour for o in each),
                              "unknown": sum(o.shape == UNKNOWN for o in each)}
                       for seed, each in zip(seeds, objects, strict=True)]  # fmt: skip
                append_rows(self.file, new, IMAGES)
                self.rows += new
                done = {row["seed"]: row for row in new}
            found += [done[seed] for seed in seeds]
            self.bar.update(len(seeds))
        return found


def numbers(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([int(row[name]) for row in rows])


def measures(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Per image: has an object of the color, is clean (each 0 or 1), objects, unknown objects."""
    objects, of_colour, unknown = (numbers(rows, name) for name in ("objects", "of_colour", "unknown"))
    clean = (objects > 0) & (of_colour == 0) & (unknown == 0)
    return {"has the color": (of_colour > 0).astype(float), "clean": clean.astype(float),
            "objects": objects.astype(float), "unknown objects": unknown.astype(float)}  # fmt: skip


def summary(by_arm: dict[Arm, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Means with intervals, and of differences to `OFF`, paired by color and noise."""
    base, out = measures(by_arm[OFF]), []
    for arm, rows in by_arm.items():
        for name, found in measures(rows).items():
            share = name in ("has the color", "clean")
            values = [*(proportion(int(found.sum()), len(found)) if share else mean(found))]
            if arm != OFF:
                values += proportion_difference(found, base[name]) if share else mean(found - base[name])
            cells = dict(zip(SUMMARY[4:], values, strict=False))
            out.append({"arm": arm.name, "setting": arm.setting, "images": len(rows), "measure": name} | cells)
    return out


def first_with(rows: list[dict[str, Any]]) -> dict[str, int]:
    """{color: the first seed whose image has an object of that color}."""
    return {str(row["colour"]): int(row["seed"]) for row in reversed(rows) if int(row["of_colour"])}


def sheet(make: Maker, rows: dict[Arm, list[dict[str, Any]]]) -> Figure:
    """A row for each arm, a column for each color: the first images that have it without a negative text."""
    seeds = first_with(rows[OFF])
    title = "A negative text of one color, for the empty prompt, in the embedded UNet"
    figure, grid = image_grid(len(rows), len(seeds), title=title, cell=1.4)
    for arm, line in zip(rows, grid, strict=True):
        name_row(line[0], arm.name)
        for (colour, seed), axis in zip(seeds.items(), line, strict=True):
            axis.imshow(make.pictures(arm, colour, [seed])[0], interpolation="nearest")
    for colour, axis in zip(seeds, grid[-1], strict=True):
        axis.set_xlabel(f"not {colour}")
    return figure


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of tables and the picture")
    parser.add_argument("--seeds", type=positive, default=40, help="images per color and arm (default %(default)s)")
    parser.add_argument(
        "--chosen-on", type=positive, default=10, help="images per color that settings are chosen on (%(default)s)"
    )
    parser.add_argument("--steps", type=positive, default=12, help="denoising steps (default %(default)s)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    args.out.mkdir(parents=True, exist_ok=True)
    pipe = ea.shapes.load_pipeline("unet")
    pipe.set_progress_bar_config(disable=True)
    seeds, others = list(range(args.seeds)), list(range(CHOOSE_FROM, CHOOSE_FROM + args.chosen_on))
    total = len(COLOURS) * (len(SETTINGS) * len(others) + 5 * len(seeds))
    try:
        with tqdm(total=total, desc="images", mininterval=2) as bar:
            make = Maker(pipe, args.steps, args.out / "images.csv", bar)
            tried = {each: make(Arm("choose", each), others) for each in SETTINGS}
            chosen = max(tried, key=lambda each: measures(tried[each])["clean"].mean())
            rows = {arm: make(arm, seeds) for arm in arms(chosen)}
            sheet(make, rows).savefig(args.out / "negative.png")
    except KeyboardInterrupt:
        raise SystemExit(f"stopped: {args.out} keeps what was finished, and the same command continues") from None
    means = summary(rows)
    write_rows(args.out / "summary.csv", means, SUMMARY)
    for row in means:
        print(f"{row['arm']:26} {row['measure']:16} {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")


if __name__ == "__main__":
    main()
