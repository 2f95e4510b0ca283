"""Which strength is best for each arm, on captions that are not reported? alpha, and gamma for the arms of T-SAM.

    OMP_NUM_THREADS=1 python -m benchmarks.guidance.choose
    OMP_NUM_THREADS=1 python -m benchmarks.guidance.choose --arms conform --captions 20 --csv selection.csv

Each arm tries six settings; the one with the highest mean of presence and binding is chosen (the weaker one of equals).
An arm of T-SAM tries four alphas with the paper's gamma, then two other gammas with the best alpha. If the best alpha
is the smallest or largest, the next one beyond it is tried too, at most EXTENSIONS times. T-SAM with a shuffled T is
searched like the others, but reported at the strength that is chosen for T-SAM, so that they differ only in T.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.common import RESULTS, add_commit, new_parser, read_rows, write_rows
from benchmarks.guidance.arms import ARMS, TSAM_ARMS
from benchmarks.guidance.trials import GUIDED, STEPS, Setting, Trials, chunks, selection_captions, trial
from entropy_attn.bench.machine import machine
from entropy_attn.shapes import load_pipeline

TABLE = RESULTS / "tsam_selection.csv"
ALPHAS = {
    "attend-and-excite": (5.0, 10.0, 20.0, 40.0, 80.0, 160.0),
    "conform": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    "syngen": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    **dict.fromkeys(TSAM_ARMS, (2.5, 10.0, 40.0, 160.0)),
}
GAMMA, OTHER_GAMMAS = 4.0, (2.0, 8.0)
EXTENSIONS = 3
Score = Callable[[Setting], float]


def search(arm: str, score: Score) -> list[Setting]:
    """All settings that were tried, the best one first."""
    gamma = f"{GAMMA:g}" if arm in TSAM_ARMS else ""
    alphas = list(ALPHAS[arm])
    factor = alphas[1] / alphas[0]

    def best(settings: list[Setting]) -> Setting:
        return max(settings, key=lambda s: (score(s), -float(s.alpha)))

    def along() -> list[Setting]:
        return [Setting(arm, f"{alpha:g}", gamma) for alpha in alphas]

    for _ in range(EXTENSIONS):
        top = float(best(along()).alpha)
        if top == alphas[0]:
            alphas.insert(0, alphas[0] / factor)
        elif top == alphas[-1]:
            alphas.append(alphas[-1] * factor)
        else:
            break
    tried = along()
    if gamma:
        tried += [Setting(arm, best(tried).alpha, f"{other:g}") for other in OTHER_GAMMAS]
    chosen = best(tried)
    return [chosen, *(s for s in tried if s != chosen)]


def means(rows: list[dict[str, str]]) -> dict[str, float]:
    presence, binding = (sum(int(row[name]) for row in rows) / len(rows) for name in ("presence", "binding"))
    return {"presence": presence, "binding": binding, "criterion": (presence + binding) / 2}


def chosen_settings(path: Path = TABLE) -> list[Setting]:
    """The chosen setting of each arm, in the order of ARMS."""
    rows = {row["arm"]: row for row in read_rows(path) if row["chosen"] == "1"}
    return [Setting(arm, rows[arm]["alpha"], rows[arm]["gamma"]) for arm in ARMS if arm in rows]


def chosen_on(path: Path = TABLE) -> int:
    """The number of captions that they were chosen on."""
    return max(int(row["captions"]) for row in read_rows(path))


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--captions", type=int, default=40, help="number of captions (default %(default)s)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument(
        "--pictures", type=Path, default=RESULTS / "tsam_selection_pictures.csv", help="a row for each image"
    )
    parser.add_argument("--csv", type=Path, default=TABLE, help="a row for each setting")
    parser.add_argument("--steps", type=int, default=STEPS, help="denoising steps (default %(default)s)")
    parser.add_argument("--guided", type=int, default=GUIDED, help="guided steps, the first ones (default %(default)s)")
    add_commit(parser)
    args = parser.parse_args()

    trials, pipe = Trials(args.pictures), load_pipeline()
    items = selection_captions(args.captions)
    table = []
    with tqdm(desc="images") as bar:

        def score(setting: Setting) -> float:
            for batch in chunks(items):
                if missing := trials.missing(setting, batch, seed=0):
                    trials.add(trial(pipe, setting, missing, 0, args.steps, args.guided))
                    bar.update(len(missing))
                    bar.set_postfix_str(f"{setting.arm} alpha {setting.alpha} gamma {setting.gamma}")
            return means(trials.of(setting))["criterion"]

        for arm in args.arms:
            tried = search(arm, score) if arm != "none" else [Setting("none")]
            if arm == "tsam-shuffled":
                chosen = search("tsam-released", score)[0]
                tried = list(dict.fromkeys([Setting(arm, chosen.alpha, chosen.gamma), *tried]))
            for setting in sorted(tried, key=lambda s: (s.gamma, float(s.alpha or 0))):
                score(setting)
                marks = {name: f"{value:.4f}" for name, value in means(trials.of(setting)).items()}
                table.append(vars(setting) | marks | {"chosen": int(setting == tried[0])})

    about = machine(torch.device("cpu"), args.commit)
    write_rows(args.csv, [row | {"captions": len(items), "seeds": 1} | about for row in table])


if __name__ == "__main__":
    main()
