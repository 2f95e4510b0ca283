"""Do attention maps predict that an object will be missing? AUC of the maps' statistics, by map size and step.

    OMP_NUM_THREADS=1 python -m benchmarks.guidance.maps_auc            # 120 captions x 4 seeds
    python -m benchmarks.guidance.maps_auc --captions 4 --seeds 1 2 --csv auc.csv --pictures images.csv

A guidance by maps can only help where its maps differ between an image that will lack an object and one that will not.
Images are made without guidance. At chosen steps three statistics of the maps of the conditional branch are kept, each
so that a high value should mean a failure:

- `noun-noun`: the largest cosine of the maps of two nouns, smoothed as T-SAM does (arXiv 2411.15236, Fig. 4 left);
- `color-noun`: 1 - the smallest cosine of a noun and its color (Fig. 4 right);
- `peak`: 1 - the smallest of the nouns' highest attention, which Attend-and-Excite raises.

AUC is the probability that a failed image has a higher value than a correct one: 0.5 is no information. `pooled`
compares all images of a split; `within` only images of the same caption with different seeds, so that a caption that
is difficult for other reasons does not count. Intervals are 95 % percentile bootstraps over captions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import entropy_attn as ea
from benchmarks.common import RESULTS, add_commit, add_csv, append_rows, new_parser, positive, read_rows, write_rows
from benchmarks.guidance.trials import CFG, Caption, chunks, reported_captions
from entropy_attn.bench.machine import machine, version
from entropy_attn.guidance.similarity import smoothed
from entropy_attn.prompts import Text
from entropy_attn.shapes import load_pipeline
from entropy_attn.shapes.checker import check
from entropy_attn.shapes.words import objects

PICTURES = RESULTS / "maps_auc_pictures.csv"
SIZES = (8, 16)  # tokens a side; the latents have 16
STEPS, KEPT = 10, (0, 1, 3, 5, 9)
SEEDS = (1, 2, 3, 4)
STATISTICS = ("noun-noun", "color-noun", "peak")
KEY = ("seed", "split", "caption")
RESAMPLES = 2000


def statistics(maps: Tensor, text: Text) -> dict[str, float]:
    """The statistics of one image.

    Args:
        maps: (h, w, s), probabilities.
        text: its caption, with at least two objects.
    """
    planes = maps.permute(2, 0, 1)
    words = [(color[0], shape[0]) for _, color, shape in objects(text)]  # one token each
    nouns = [noun for _, noun in words]
    flat = F.normalize(smoothed(planes).flatten(1), dim=1)
    cosine = flat @ flat.mT
    pairs = [(a, b) for i, a in enumerate(nouns) for b in nouns[:i]]
    return {
        "noun-noun": max(float(cosine[a, b]) for a, b in pairs),
        "color-noun": 1 - min(float(cosine[color, noun]) for color, noun in words),
        "peak": 1 - min(float(planes[noun].max()) for noun in nouns),
    }


def measure(pipe, batch: list[Caption], seed: int, steps: int, kept: tuple[int, ...]) -> list[dict]:
    """A row for each image: whether every object is present, and the statistics at each size and step."""
    texts = [Text(caption.request.caption(), pipe.tokenizer) for caption in batch]
    recorders = {size: ea.MapRecorder(tokens=range(len(texts[0])), size=(size, size), steps=kept) for size in SIZES}
    with ea.apply(pipe, scale=None, record=list(recorders.values())):
        images = pipe(
            [text.prompt for text in texts], num_inference_steps=steps, guidance_scale=CFG,
            generator=[caption.generator(seed) for caption in batch],
        ).images  # fmt: skip
    rows = []
    for index, (caption, image) in enumerate(zip(batch, images, strict=True)):
        row = {"seed": seed, "split": caption.split, "caption": caption.index}
        row["presence"] = int(check(image, caption.request).presence)
        for size, recorder in recorders.items():
            for step in kept:
                maps = recorder.maps(step)[0, index].permute(1, 2, 0)
                for name, value in statistics(maps, texts[index]).items():
                    row[column(name, size, step)] = f"{value:.6f}"
        rows.append({name: str(value) for name, value in row.items()})
    return rows


def column(statistic: str, size: int, step: int) -> str:
    return f"{statistic} {size}x{size} step {step}"


def auc(
    values: np.ndarray, failed: np.ndarray, groups: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(pooled, within) AUC (draws,); a caption that was drawn w times has weight w. NaN without a pair to compare.

    Args:
        values: (n,), one for each image.
        failed: (n,), bool.
        groups: (n,), the index of the caption of each image.
        weights: (draws, captions), how often each caption counts.
    """
    bad, good = np.flatnonzero(failed), np.flatnonzero(~failed)
    above = values[bad, None] - values[None, good]
    shape = (weights.shape[1], weights.shape[1])
    wins, pairs = np.zeros(shape), np.zeros(shape)  # of a failed image of one caption and a correct one of another
    index = np.broadcast_to(groups[bad, None], above.shape), np.broadcast_to(groups[None, good], above.shape)
    np.add.at(wins, index, (above > 0) + 0.5 * (above == 0))
    np.add.at(pairs, index, 1.0)
    with np.errstate(invalid="ignore"):
        pooled = ((weights @ wins) * weights).sum(-1) / ((weights @ pairs) * weights).sum(-1)
        within = weights @ np.diag(wins) / (weights @ np.diag(pairs))
    return pooled, within


def summarize(
    rows: list[dict[str, str]],
    kept: tuple[int, ...],
    resamples: int = RESAMPLES,
    sizes: tuple[int, ...] = SIZES,
    statistics: tuple[str, ...] = STATISTICS,
) -> list[dict]:
    """Rows of split x size x statistic x step, with intervals over captions."""
    table = []
    for split in ("seen", "held-out", "all"):
        chosen = [row for row in rows if split in ("all", row["split"])]
        if not chosen:
            continue
        names = {key: index for index, key in enumerate(dict.fromkeys((r["split"], r["caption"]) for r in chosen))}
        groups = np.array([names[row["split"], row["caption"]] for row in chosen])
        failed = np.array([row["presence"] == "0" for row in chosen])
        rng = np.random.default_rng(0)
        drawn = [np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names)) for _ in range(resamples)]
        weights = np.array([np.ones(len(names)), *drawn])
        mixed = sum(0 < failed[groups == group].mean() < 1 for group in range(len(names)))
        about = {"captions": len(names), "images": len(chosen), "failed": int(failed.sum()), "mixed": int(mixed)}
        for size in sizes:
            for statistic in statistics:
                for step in kept:
                    values = np.array([float(row[column(statistic, size, step)]) for row in chosen])
                    found = dict(zip(("pooled", "within"), auc(values, failed, groups, weights), strict=True))
                    row = {"split": split, "size": f"{size}x{size}", "statistic": statistic, "step": step}
                    for kind, each in found.items():
                        usable = each[1:][np.isfinite(each[1:])]
                        ends = np.percentile(usable, [2.5, 97.5]) if len(usable) else (float("nan"),) * 2
                        row[kind] = f"{each[0]:.3f}"
                        row[f"{kind}_low"], row[f"{kind}_high"] = (f"{end:.3f}" for end in ends)
                    table.append(row | about)
    return table


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--captions", type=positive, default=120, help="half of them held out (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--steps", type=positive, default=STEPS, help="denoising steps (default %(default)s)")
    parser.add_argument("--at", type=int, nargs="+", default=KEPT, help="the steps whose maps are kept")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="a row for each image; existing rows are kept")
    add_csv(parser, RESULTS / "maps_auc.csv")
    add_commit(parser)
    args = parser.parse_args()

    kept = tuple(args.at)
    fields = [*KEY, "presence", *(column(s, size, step) for size in SIZES for step in kept for s in STATISTICS)]
    rows = [row for row in read_rows(args.pictures) if None not in row.values()]  # the last one may be cut off
    write_rows(args.pictures, rows, fields)
    items, pipe = reported_captions(args.captions), load_pipeline()
    made = {tuple(row[name] for name in KEY) for row in rows}
    with tqdm(total=len(items) * len(args.seeds), desc="images") as bar:
        for seed in args.seeds:
            for batch in chunks(items):
                missing = [c for c in batch if (str(seed), c.split, str(c.index)) not in made]
                if missing:
                    found = measure(pipe, missing, seed, args.steps, kept)
                    append_rows(args.pictures, found, fields)
                    rows += found
                bar.update(len(batch))
    about = machine(torch.device("cpu"), args.commit)
    del about["driver"], about["triton"]
    versions = {"steps": args.steps, "diffusers": version("diffusers")}
    write_rows(args.csv, [row | versions | about for row in summarize(rows, kept)])


if __name__ == "__main__":
    main()
