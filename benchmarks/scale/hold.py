"""Does one Newton step hold the entropy of a layer? On the embedded model, at twice its training size.

A profile of some captions and one seed gives the factors (hold-entropy.json); other captions and seeds show what these
factors, and `LogN`, undo of the drift of each layer's entropy. docs/profile.md quotes the rows.

    python -m benchmarks.scale.hold    # benchmarks/results/hold.csv; minutes on two cores
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

import entropy_attn as ea
from benchmarks.common import RESULTS, add_csv, new_parser, positive, write_rows

TRAINING, LARGE = 64, 128  # pixels
CHOSEN_ON = ("a red circle and a blue square", "a green triangle", "a yellow square above a red triangle",
             "two blue circles")  # fmt: skip
SHOWN_ON = ("a blue triangle and a yellow circle", "three green squares", "a red square to the left of a green circle",
            "a yellow triangle")  # fmt: skip
GUIDANCE_SCALE = 4.0


def shares(pipe: Any, policies: dict[str, Any], seeds: list[int], steps: int) -> dict[str, pd.DataFrame]:
    """{"drift": (layer, seed), and for every policy what it undoes of the drift}, from runs of the default scale."""
    given: dict[str, Any] = {"prompts": SHOWN_ON, "seeds": seeds, "steps": steps, "guidance_scale": GUIDANCE_SCALE,
                             "pictures": False, "regime_steps": 0}  # fmt: skip
    trained = _entropies(ea.profile(pipe, sizes=[TRAINING], scales=["off"], **given))["off"]
    large = _entropies(ea.profile(pipe, sizes=[LARGE], scales={"off": None, **policies}, **given))
    drift = large["off"] - trained
    return {"drift": drift, **{name: (large["off"] - large[name]) / drift for name in policies}}


def _entropies(found: Any) -> dict[str, pd.DataFrame]:
    rows = found.entropy[(found.entropy["kind"] == "self") & (found.entropy["branch"] != "uncond")]
    means = rows.groupby(["policy", "layer", "seed"], sort=False)["mean"].mean()
    return {policy: means[policy].unstack() for policy in found.plan.policies}


def rows(steps: int, seeds: list[int]) -> list[dict[str, Any]]:
    """One row for each layer; intervals are 95 %, over seeds."""
    pipe = ea.shapes.load_pipeline("unet")
    with tempfile.TemporaryDirectory() as folder:
        chosen = ea.profile(
            pipe, sizes=[TRAINING, LARGE], scales=["off"], prompts=CHOSEN_ON, steps=steps, regime_steps=steps,
            guidance_scale=GUIDANCE_SCALE, pictures=False, out=folder, figures=False,
        )  # fmt: skip
        hold = ea.scale.LayerFactors(Path(folder) / "hold-entropy.json")
    found = shares(pipe, {"logn": ea.scale.LogN(), "hold": hold}, seeds, steps)
    table = []
    for row in chosen.regimes[chosen.regimes["size"] == f"{LARGE}x{LARGE}"].itertuples():
        entry = {
            "layer": row.layer,
            "train_tokens": row.train_tokens,
            "tokens": row.tokens,
            "logit_std": row.logit_std,
            "std_ratio": row.std_ratio,
            "regime": row.regime,
            "response": row.response,
            "logn_factor": row.logn_factor,
            "logn_predicted": row.logn_predicted,
            "hold_factor": row.hold_factor,
            "hold": row.hold,
        }
        for name in ("drift", "logn", "hold"):
            values = found[name].loc[row.layer]
            half = stats.t.ppf(0.975, len(values) - 1) * values.std() / math.sqrt(len(values))
            names = ("drift", "drift_ci") if name == "drift" else (f"{name}_undone", f"{name}_undone_ci")
            entry |= {names[0]: values.mean(), names[1]: half}
        table.append({name: f"{v:.4g}" if isinstance(v, float) else v for name, v in entry.items()})
    return table


def main() -> None:
    parser = new_parser(__doc__)
    add_csv(parser, RESULTS / "hold.csv")
    parser.add_argument("--steps", type=positive, default=4, help="denoising steps")
    parser.add_argument("--seeds", type=positive, default=5, help="number of seeds that the shares are measured on")
    args = parser.parse_args()
    write_rows(args.csv, rows(args.steps, list(range(1, args.seeds + 1))))
    print(args.csv)


if __name__ == "__main__":
    main()
