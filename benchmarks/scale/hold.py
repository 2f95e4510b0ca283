"""Does one Newton step hold the entropy of a layer? On the embedded model, at twice its training size.

A profile of some captions and one seed gives the factors (hold-entropy.json); other captions and seeds show what these
factors, and `LogN`, undo of the drift of each layer's entropy. Writes benchmarks/results/hold.csv, the table in
docs/profile.md and the figure there.

    python -m benchmarks.scale.hold                 # minutes on two cores
    python -m benchmarks.scale.hold --from-csv      # the table and the figure again, from the rows of before
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

import entropy_attn as ea
from benchmarks.common import IMAGES, RESULTS, ROOT, add_csv, new_parser, positive, read_rows, write_rows

TRAINING, LARGE = 64, 128  # pixels
CHOSEN_ON = ("a red circle and a blue square", "a green triangle", "a yellow square above a red triangle",
             "two blue circles")  # fmt: skip
SHOWN_ON = ("a blue triangle and a yellow circle", "three green squares", "a red square to the left of a green circle",
            "a yellow triangle")  # fmt: skip
GUIDANCE_SCALE = 4.0
PAGE, IMAGE = ROOT / "docs" / "profile.md", IMAGES / "regimes.png"
BEGIN, END = "<!-- hold:begin -->", "<!-- hold:end -->"


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


def table(measured: list[dict[str, str]]) -> str:
    """The rows in Markdown."""
    titles = ["layer", "N, T", "sd / √(2 ln T)", "regime", "drift, nats", "`LogN`", "undoes", "held", "undoes"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in measured:
        name = (
            row["layer"].removesuffix(".transformer_blocks.0.attn1").replace(".attentions", "").replace("_blocks", "")
        )
        number = {key: float(row[key]) for key in row if key not in ("layer", "regime", "hold")}
        bounded = " (bounded)" if row["hold"] == "bounded" else ""
        cells = [
            f"`{name}`",
            f"{row['tokens']}, {row['train_tokens']}",
            f"{number['std_ratio']:.2f}",
            row["regime"],
            f"{number['drift']:+.2f} ± {number['drift_ci']:.3f}",
            f"{number['logn_factor']:.3f}",
            f"{number['logn_undone']:.1%} ± {number['logn_undone_ci']:.1%}",
            f"{number['hold_factor']:.2f}{bounded}",
            f"{number['hold_undone']:.1%} ± {number['hold_undone_ci']:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(page: str, measured: list[dict[str, str]]) -> str:
    """The page with a new table between its markers."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"page: expected {BEGIN} … {END} in it, got neither or only one")
    return f"{before}{BEGIN}\n{table(measured)}\n{END}{after}"


def draw(measured: list[dict[str, str]], path: Path) -> None:
    from entropy_attn.plots import layer_regimes
    from entropy_attn.profiling import ProfilePlan

    rows = pd.DataFrame(measured).rename(columns={"logn_undone": "logn_measured"})
    texts = ["layer", "regime", "hold"]
    rows[[name for name in rows if name not in texts]] = rows.drop(columns=texts).astype(float)
    rows = rows.assign(size=f"{LARGE}x{LARGE}", height=LARGE, width=LARGE)
    plan = ProfilePlan([(LARGE, LARGE)], {"off": None}, SHOWN_ON, reference=(TRAINING, TRAINING))
    layer_regimes(rows, plan, "the embedded model").savefig(path, dpi=110)


def main() -> None:
    parser = new_parser(__doc__)
    add_csv(parser, RESULTS / "hold.csv")
    parser.add_argument("--from-csv", action="store_true", help="measure nothing: take the rows of --csv")
    parser.add_argument("--steps", type=positive, default=4, help="denoising steps")
    parser.add_argument("--seeds", type=positive, default=5, help="number of seeds that the shares are measured on")
    args = parser.parse_args()
    if not args.from_csv:
        write_rows(args.csv, rows(args.steps, list(range(1, args.seeds + 1))))
    measured = read_rows(args.csv)
    if not measured:
        parser.error(f"--csv: expected rows in {args.csv}, got none")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), measured), encoding="utf-8")
    draw(measured, IMAGE)
    print(args.csv, PAGE, IMAGE, sep="\n")


if __name__ == "__main__":
    main()
