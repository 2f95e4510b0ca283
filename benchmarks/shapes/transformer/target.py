"""Does holding the entropy, step by step, mend images of another size? The paper's policies and `TargetEntropy`.

At each size off, LogN, LogNoRoot, EntropyAdaptive and TargetEntropy (a factor per head, or per layer) make the same
captions from the same noise; the checker scores the images. Two controls are as strong as TargetEntropy per layer and
know less: its mean factor in all layers and steps, and that of each layer in all steps. EntropyAdaptive and these
read profiles of other captions at that size. The same other captions show how much of the entropy's drift each policy
undoes: the mean over layers of |H - H0|, where H0 is the entropy at the training size without a policy. Writes
images.csv, summary.csv (95 % intervals) and drift.csv; the same command goes on after it was stopped.

    python -m benchmarks.shapes.transformer.target --model transformer --positions interpolated --sizes 96 128 \
        --captions 300 --out runs/target
    python -m benchmarks.shapes.transformer.target --model unet --sizes 96 --captions 100 --out runs/target-unet
"""

from __future__ import annotations

import math
import re
import signal
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import entropy_attn as ea
from benchmarks.common import new_parser, positive, write_rows
from benchmarks.shapes.transformer.evaluate import captions_of, model_folder, size_of
from benchmarks.shapes.transformer.images import Images, Sampler, Size, digest
from benchmarks.shapes.transformer.paired import FIELDS, summary
from entropy_attn.pipelines import sample as generate
from entropy_attn.pipelines.sizes import check_size, train_size
from entropy_attn.profiling.plan import size_name
from entropy_attn.shapes import POSITIONS

OFF = "off"
TARGET = ea.scale.TargetEntropy(per="layer")
POLICIES = 8
DRIFT = ("size", "policy", "captions", "layers", "drift", "low", "high", "undone")


def policies(profile: ea.EntropyRecorder, held: ea.EntropyRecorder) -> dict[str, Any]:
    """All of one size, by what was recorded at that size without a policy, and with `TARGET`."""
    factors = mean_factors(profile, held)
    of_layers = {rf"^{re.escape(layer)}$": ea.scale.Constant(factor) for layer, factor in factors.items()}
    return {
        OFF: ea.scale.Fixed(),
        "LogN": ea.scale.LogN(),
        "LogNoRoot": ea.scale.LogNoRoot(),
        "EntropyAdaptive": ea.scale.EntropyAdaptive(profile, relative=True, missing="leave"),
        "TargetEntropy, per head": ea.scale.TargetEntropy(),
        "TargetEntropy, per layer": TARGET,
        "control: its mean factor": ea.scale.Constant(statistics.geometric_mean(factors.values())),
        "control: mean of each layer": ea.scale.Layers(of_layers),
    }


def mean_factors(profile: ea.EntropyRecorder, held: ea.EntropyRecorder) -> dict[str, float]:
    """The geometric mean of the factors that a policy gave each layer of self- or joint attention."""
    plain, scaled = (_image_rows(recorder.to_dataframe()) for recorder in (profile, held))
    before = plain.groupby("layer", sort=False)["scale"].first()
    logs = scaled["scale"].map(math.log).groupby(scaled["layer"], sort=False).mean()
    return {layer: math.exp(logs[layer]) / before[layer] for layer in before.index}


def _image_rows(table: Any) -> Any:
    """The rows of self- and joint attention of the conditional branch."""
    return table[(table["kind"] != "cross") & (table["branch"] == "cond")]


def entropies(sample: Sampler, captions: list[str], size: Size, policy: Any) -> ea.EntropyRecorder:
    """The entropies of the conditional branch, from one batch of captions. Their seeds are their numbers."""
    recorder = ea.EntropyRecorder()
    generate(
        sample.pipe, captions, size=size, scale=policy, seed=list(range(len(captions))), steps=sample.steps,
        guidance_scale=sample.guidance_scale, arguments=sample.arguments, record=recorder,
    )  # fmt: skip
    return recorder


def of_layers(recorder: ea.EntropyRecorder) -> dict[str, float]:
    """The mean entropy of each layer of self- or joint attention, in nats."""
    return _image_rows(recorder.to_dataframe()).groupby("layer")["mean"].mean().to_dict()


def drift(found: Mapping[str, float], target: Mapping[str, float]) -> np.ndarray:
    """|H - H0| of each layer, in nats."""
    return np.array([abs(found[layer] - target[layer]) for layer in target])


def drifts(size: Size, captions: int, by_policy: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row a policy: the mean over layers with the smallest and largest, and the share of off's that is gone."""
    return [
        {"size": size_name(size), "policy": name, "captions": captions, "layers": len(found), "drift": found.mean(),
         "low": found.min(), "high": found.max(), "undone": 1.0 - found.mean() / by_policy[OFF].mean()}
        for name, found in by_policy.items()
    ]  # fmt: skip


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", required=True, help="a diffusers folder, or the name of an embedded model")
    parser.add_argument("--out", type=Path, required=True, help="folder of images and tables")
    parser.add_argument("--sizes", type=size_of, nargs="+", required=True, help="sizes in pixels, or HEIGHTxWIDTH")
    parser.add_argument(
        "--captions", type=positive, default=300, help="captions that are reported (default %(default)s)"
    )
    parser.add_argument("--profiled", type=positive, default=20, help="profiled ones, others (default %(default)s)")
    parser.add_argument("--steps", type=positive, default=12, help="denoising steps (default %(default)s)")
    parser.add_argument("--positions", choices=POSITIONS, default="extrapolated", help="default %(default)s")
    parser.add_argument("--guidance-scale", type=float, default=4.0, help="default %(default)s")
    args = parser.parse_args()
    folder = model_folder(parser, args.model)
    try:
        sample = Sampler(folder, args.steps, args.guidance_scale, args.positions)
    except ValueError as error:
        parser.error(f"--positions {args.positions}: {error}")
    trained = train_size(sample.pipe)
    for size in args.sizes:
        check_size(sample.pipe, size)
        if size == trained:
            parser.error(f"--sizes: expected other sizes than the training size {size_name(trained)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settings = {"weights_sha256": digest(folder), "steps": args.steps, "guidance_scale": args.guidance_scale,
                "positions": args.positions, "profiled": args.profiled}  # fmt: skip
    report, others = captions_of("report", args.captions), captions_of("choose", args.profiled)
    target = of_layers(entropies(sample, others, trained, ea.scale.Fixed()))
    rows: list[dict[str, Any]] = []
    drift_rows: list[dict[str, Any]] = []
    scored: list[dict[str, Any]] = []
    try:
        with tqdm(total=POLICIES * len(args.sizes) * args.captions, desc="images", mininterval=2) as bar:
            for size in args.sizes:
                profile = entropies(sample, others, size, ea.scale.Fixed())
                chosen = policies(profile, entropies(sample, others, size, TARGET))
                found = {name: of_layers(entropies(sample, others, size, each)) for name, each in chosen.items()}
                drift_rows += drifts(size, args.profiled, {name: drift(each, target) for name, each in found.items()})
                images = Images(sample, args.out, settings, chosen)
                rows += summary(size_name(size), {name: images("report", size, name, report, bar.update)
                                                  for name in chosen})  # fmt: skip
                scored += images.rows
    except KeyboardInterrupt:
        raise SystemExit(f"stopped: {args.out} keeps what was finished, and the same command continues") from None
    write_rows(args.out / "images.csv", scored)
    write_rows(args.out / "summary.csv", rows, FIELDS)
    write_rows(args.out / "drift.csv", drift_rows, DRIFT)
    for row in drift_rows:
        print(f"{row['size']:9} {row['policy']:26} drift {row['drift']:.3f} nats, undone {row['undone']:+.2f}")


if __name__ == "__main__":
    main()
