"""The factor on 1/sqrt(d) of every scale policy: docs/images/scale-policies.png, and the table of docs/scale.md.

Sizes from half to four times the training size, as in docs/scale.md. Nothing is sampled: these are the policies' own
answers, for token counts that layers of Stable Diffusion 1.5 and of Flux have in training.

    python -m benchmarks.scale.policies
    python -m benchmarks.scale.policies --out plots/scale.png --page plots/scale.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

import entropy_attn as ea

ROOT = Path(__file__).parents[2]
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
    """At `side` times the sides of the training size."""
    tokens = round(train_tokens * side**2) + text_tokens
    info = ea.CallInfo(layer="", kind="joint" if text_tokens else "self", seqlen_q=tokens, seqlen_k=tokens, num_heads=1,
                       head_dim=64, train_tokens=train_tokens, text_tokens=text_tokens)  # fmt: skip
    return policy.ratio(info)


class OneLayer:
    """Stands for a recorder that saw one layer, whose heads have these entropies."""

    def __init__(self, entropies: list[float]):
        self.entropies = entropies

    def to_columns(self) -> dict[str, list[object]]:
        same = {"layer": "", "kind": "joint", "step": 0, "branch": "all", "seqlen_k": 4608}
        columns = {name: [value] * len(self.entropies) for name, value in same.items()}
        return {**columns, "head": list(range(len(self.entropies))), "mean": self.entropies}


def adaptive_factors(entropies: list[float], **options: float) -> list[float]:
    """Of heads with these entropies, at any size."""
    info = ea.CallInfo("", "joint", 4608, 4608, num_heads=len(entropies), head_dim=64)
    return (ea.scale.EntropyAdaptive(OneLayer(entropies), **options)(info) * 8).tolist()


def draw(path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    styles = ["-", (0, (1, 1.2)), "-", "-", "--", "--"]
    colors = ["#0072b2", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c564b"]
    fig, axes = plt.subplots(1, 4, figsize=(16, 4.3), layout="constrained", sharey=True)
    for ax, (title, counts) in zip(axes[:3], LAYERS.items(), strict=True):
        for (name, policy), style, color in zip(POLICIES.items(), styles, colors, strict=True):
            if name.startswith("LogN(") and not counts[1]:
                continue  # the same as LogN without text
            ax.plot(SIDES, [factor(policy, side, *counts) for side in SIDES], ls=style, color=color, label=name)
        ax.axhline(1, color="0.6", lw=1)
        ax.axvline(1, color="0.6", lw=1, ls=":")
        ax.set(xscale="log", xlabel="sides, times the training size", title=title, xlim=(0.5, 4), ylim=(0.65, 2.05))
        ax.set_xticks([0.5, 0.75, 1, 1.5, 2, 3, 4], ["0.5", "0.75", "1", "1.5", "2", "3", "4"])
        ax.minorticks_off()
        ax.grid(color="0.92")
    axes[0].set_ylabel("scale · √d")
    axes[2].legend(loc="upper left", fontsize=9)
    parts = [step / 50 for step in range(51)]
    for label, options, color in (
        ("EntropyAdaptive", {}, "#0072b2"),
        ("gamma=1", {"gamma": 1.0}, "#009e73"),
        ("lambda_min=1.1", {"lambda_min": 1.1}, "#d55e00"),
    ):
        axes[3].plot(parts, adaptive_factors(parts, **options), color=color, label=label)
    axes[3].axhline(1, color="0.6", lw=1)
    axes[3].set(xlabel="head's entropy, from h_min to h_max", title="per head, at any size", xlim=(0, 1))
    axes[3].set_xticks([0, 0.5, 1], ["h_min", "", "h_max"])
    axes[3].legend(loc="upper right", fontsize=9)
    axes[3].grid(color="0.92")
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=130)
    plt.close(fig)


def table() -> str:
    """The factors at some sizes."""
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
    """The page with the table between its marks."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "scale-policies.png")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "scale.md", help="page with the table")
    args = parser.parse_args()
    draw(args.out)
    args.page.write_text(with_table(args.page.read_text(encoding="utf-8")), encoding="utf-8")
    print(args.out, args.page, sep="\n")


if __name__ == "__main__":
    main()
