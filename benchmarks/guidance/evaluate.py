"""Does guidance help the embedded shapes model? Each arm at its chosen strength, on captions that chose nothing.

    OMP_NUM_THREADS=1 python -m benchmarks.guidance.choose      # first, once
    OMP_NUM_THREADS=1 python -m benchmarks.guidance.evaluate    # 300 captions x 4 seeds x 8 arms: 90 minutes
    python -m benchmarks.guidance.summary                       # intervals and the figure, from the rows

A run that was stopped can be continued with the same command: `tsam_pictures.csv` has a row for each image. Seeds are
the outer loop, then batches of captions, then arms, so that an incomplete run is balanced except for its last batch.
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from benchmarks.common import RESULTS, new_parser
from benchmarks.guidance.arms import ARMS
from benchmarks.guidance.choose import TABLE, chosen_on, chosen_settings
from benchmarks.guidance.trials import (
    GUIDED,
    STEPS,
    Caption,
    Trials,
    chunks,
    reported_captions,
    selection_captions,
    trial,
)
from entropy_attn.shapes import load_pipeline

PICTURES = RESULTS / "tsam_pictures.csv"
SEEDS = (1, 2, 3, 4)  # 0 is that of the selection


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--captions", type=int, default=300, help="number of captions (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="a row for each image; existing rows are kept")
    parser.add_argument("--selection", type=Path, default=TABLE, help="the table of benchmarks.guidance.choose")
    parser.add_argument("--limit", type=int, help="stop after this many new images")
    parser.add_argument("--steps", type=int, default=STEPS, help="denoising steps (default %(default)s)")
    parser.add_argument("--guided", type=int, default=GUIDED, help="guided steps, the first ones (default %(default)s)")
    args = parser.parse_args()

    settings = [setting for setting in chosen_settings(args.selection) if setting.arm in args.arms]
    items = reported_captions(args.captions)
    disjoint(items, selection_captions(chosen_on(args.selection)))
    trials = Trials(args.pictures)
    jobs = [(s, batch, seed) for seed in args.seeds for batch in chunks(items) for s in settings]
    left = [(s, missing, seed) for s, batch, seed in jobs if (missing := trials.missing(s, batch, seed))]
    total, done = len(settings) * len(items) * len(args.seeds), 0
    pipe = load_pipeline()
    with tqdm(total=total, initial=total - sum(len(batch) for _, batch, _ in left), desc="images") as bar:
        for setting, batch, seed in left:
            if args.limit is not None:
                batch = batch[: args.limit - done]
            if not batch:
                break
            trials.add(trial(pipe, setting, batch, seed, args.steps, args.guided))
            done += len(batch)
            bar.update(len(batch))


def disjoint(*groups: list[Caption]) -> None:
    """
    Raises:
        AssertionError: a caption is in two groups.
    """
    texts = [{item.request.caption() for item in group} for group in groups]
    assert sum(map(len, texts)) == len(set().union(*texts)), "settings were chosen on captions that are reported"


if __name__ == "__main__":
    main()
