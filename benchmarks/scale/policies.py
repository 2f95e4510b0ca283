"""What factor on 1/sqrt(d) does each scale policy choose? The figure and the table of docs/scale.md.

Sizes are from half to four times the training size. Nothing is sampled: the policies are called for the token counts
that layers of Stable Diffusion 1.5 and Flux have in training.

    python -m benchmarks.scale.policies
    python -m benchmarks.scale.policies --out plots/scale.png --page plots/scale.md
"""

from __future__ import annotations

from pathlib import Path

import entropy_attn as ea
from benchmarks.common import IMAGES, ROOT, new_parser
from entropy_attn.plots.style import BLUE, GREEN, GREY, PINK, VERMILION, new_figure, plain_axis

LAYERS = {
    "SD 1.5, lowest level (T = 64)": (64, 0),
    "SD 1.5, highest level (T = 4096)": (4096, 0),
    "Flux (T = 4096, and 512 of text)": (4096, 512),
}
POLICIES = {
    "LogN": ea.scale.LogN(),
    "LogN(count_text_tokens=True)": ea.scale.LogN(count_text_tokens=True),
    "LogNoRoot": ea.scale.LogNoRoot(),
    "YaRN": ea.scale.YaRN(),
    "Power(0.1)": ea.scale.Power(0.1),
    "Power(0.25)": ea.scale.Power(0.25),
}
BEGIN, END = "<!-- factors:begin -->", "<!-- factors:end -->"
SIDES = tuple(0.5 * 2 ** (step / 16) for step in range(49))  # 0.5 to 4


def factor(policy: ea.scale.TokenRatio, side: float, train_tokens: int, text_tokens: int) -> float:
    """The factor if the sides are `side` times those of the training size."""
    tokens = round(train_tokens * side**2) + text_tokens
    info = ea.CallInfo(layer="", kind="joint" if text_tokens else "self", seqlen_q=tokens, seqlen_k=tokens, num_heads=1,
                       head_dim=64, train_tokens=train_tokens, text_tokens=text_tokens)  # fmt: skip
    return policy.ratio(info)


class OneLayer:
    """In place of a recorder: one layer, whose heads have these entropies."""

    def __init__(self, entropies: list[float]):
        self.entropies = entropies

    def to_columns(self) -> dict[str, list[object]]:
        same = {"layer": "", "kind": "joint", "step": 0, "branch": "all", "seqlen_k": 4608}
        columns = {name: [value] * len(self.entropies) for name, value in same.items()}
        return {**columns, "head": list(range(len(self.entropies))), "mean": self.entropies}


def adaptive_factors(entropies: list[float], **options: float) -> list[float]:
    """The factors of heads with these entropies, at any size."""
    info = ea.CallInfo("", "joint", 4608, 4608, num_heads=len(entropies), head_dim=64)
    return (ea.scale.EntropyAdaptive(OneLayer(entropies), **options)(info) * 8).tolist()


def draw(path: Path) -> None:
    styles = ["-", (0, (1, 1.2)), "-", "-", "--", "--"]
    colors = [BLUE, BLUE, VERMILION, GREEN, PINK, "#8c564b"]
    figure = new_figure(16, 4.3, "")
    axes = figure.subplots(1, 4, sharey=True)
    for axis in axes:
        plain_axis(axis)
    for axis, (title, counts) in zip(axes[:3], LAYERS.items(), strict=True):
        for (name, policy), style, color in zip(POLICIES.items(), styles, colors, strict=True):
            if name.startswith("LogN(") and not counts[1]:
                continue  # the same as LogN without text
            axis.plot(SIDES, [factor(policy, side, *counts) for side in SIDES], ls=style, color=color, label=name)
        axis.axhline(1, color=GREY, lw=1)
        axis.axvline(1, color=GREY, lw=1, ls=":")
        axis.set(xscale="log", xlabel="sides, times the training size", title=title, xlim=(0.5, 4), ylim=(0.65, 2.05))
        axis.set_xticks([0.5, 0.75, 1, 1.5, 2, 3, 4], ["0.5", "0.75", "1", "1.5", "2", "3", "4"])
        axis.minorticks_off()
    axes[0].set_ylabel("scale · √d")
    axes[2].legend(loc="upper left", fontsize=9)
    parts = [step / 50 for step in range(51)]
    for label, options, color in (
        ("EntropyAdaptive", {}, BLUE),
        ("gamma=1", {"gamma": 1.0}, GREEN),
        ("lambda_min=1.1", {"lambda_min": 1.1}, VERMILION),
    ):
        axes[3].plot(parts, adaptive_factors(parts, **options), color=color, label=label)
    axes[3].axhline(1, color=GREY, lw=1)
    axes[3].set(xlabel="head's entropy, from h_min to h_max", title="per head, at any size", xlim=(0, 1))
    axes[3].set_xticks([0, 0.5, 1], ["h_min", "", "h_max"])
    axes[3].legend(loc="upper right", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def table() -> str:
    """The factors at a few sizes."""
    sides = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
    lines = ["| layer | policy | " + " | ".join(f"{side:g}" for side in sides) + " |", "|---" * (len(sides) + 2) + "|"]
    for title, counts in LAYERS.items():
        for name, policy in POLICIES.items():
            if name.startswith("LogN(") and not counts[1]:
                continue
            cells = " | ".join(f"{factor(policy, side, *counts):.3f}" for side in sides)
            lines.append(f"| {title} | `{name}` | {cells} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """The page with a new table between its markers."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"page: expected {BEGIN} … {END} in it, got neither or only one")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, default=IMAGES / "scale-policies.png", help="the figure")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "scale.md", help="the page that has the table")
    args = parser.parse_args()
    draw(args.out)
    args.page.write_text(with_table(args.page.read_text(encoding="utf-8")), encoding="utf-8")
    print(args.out, args.page, sep="\n")


if __name__ == "__main__":
    main()
