"""Does T-SAM's premise hold in the shapes text encoder: do words that belong together attend to each other more?

    python -m benchmarks.guidance.premise
    python -m benchmarks.guidance.premise --csv premise.csv --figure premise.png

As in figure 6a of the paper (arXiv 2411.15236), on the reported captions: entries of T, the mean self-attention of the
encoder over real tokens with rows that sum to one, where the row is a noun and the column its color (bound), or the
color of an object before it (unbound). Both are in the same row, so each noun is its own control. This cannot separate
syntax from distance: in this grammar the color of a noun is always the word before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import IMAGES, RESULTS, add_commit, new_parser, write_rows
from benchmarks.guidance.summary import interval
from benchmarks.guidance.trials import reported_captions
from entropy_attn.bench.machine import machine, version
from entropy_attn.guidance import text_self_attention
from entropy_attn.integrations.transformers import text_self_attention_maps
from entropy_attn.plots.style import BLUE, DPI, VERMILION, color_bar, new_figure, plain_axis
from entropy_attn.prompts import Text
from entropy_attn.shapes import load_pipeline
from entropy_attn.shapes.words import objects

FIGURE = IMAGES / "tsam_premise.png"
EXAMPLE = "a green circle, a yellow circle and a red cross"
QUANTITIES = {
    "bound": "T[noun, its color]",
    "unbound": "T[noun, color of an earlier object], mean over these",
    "bound - unbound": "their difference in one row",
    "strongest": "share of nouns for which their color is the strongest color",
}


def pairs_of(T: Tensor, text: Text, first: int = 1) -> list[dict[str, float]]:
    """The quantities for each noun after the first object; `first` is the position of the first token of T."""
    named = objects(text)
    found = []
    for at, (_, color, noun) in enumerate(named[1:], start=1):
        row = T[noun[-1] - first].tolist()
        found.append(marks(row[color[-1] - first], [row[earlier[-1] - first] for _, earlier, _ in named[:at]]))
    return found


def marks(bound: float, others: list[float]) -> dict[str, float]:
    """The quantities of one row, from its entry for the word that belongs to it and those for words that do not."""
    unbound = sum(others) / len(others)
    difference, strongest = bound - unbound, float(bound > max(others))
    return {"bound": bound, "unbound": unbound, "bound - unbound": difference, "strongest": strongest}


def summarize(matrices: Iterable[Tensor], texts: list[Text]) -> list[dict[str, str]]:
    by_caption = [pairs_of(T, text) for T, text in zip(matrices, texts, strict=True)]
    rows = []
    for quantity in QUANTITIES:
        mean, low, high = interval([[noun[quantity] for noun in nouns] for nouns in by_caption])
        nouns = sum(map(len, by_caption))
        rows.append({"quantity": quantity, "mean": f"{mean:.4f}", "low": f"{low:.4f}", "high": f"{high:.4f}",
                     "nouns": str(nouns), "captions": str(len(texts))})  # fmt: skip
    return rows


def encoded(pipe, prompts: list[str]) -> tuple[list[Text], Tensor, Tensor]:
    """Words, token ids (B, s) and attention (L, B, s, s) of the captions."""
    texts = [Text(prompt, pipe.tokenizer) for prompt in prompts]
    ids = torch.tensor([text.ids for text in texts])
    with torch.no_grad():
        _, attentions = text_self_attention_maps(pipe.text_encoder, ids)
    return texts, ids, attentions


def draw(T: Tensor, text: Text, nouns: list[dict[str, float]], path: Path) -> None:
    from matplotlib.patches import Rectangle

    figure = new_figure(10, 4.4, "")
    left, right = figure.subplots(1, 2)
    plain_axis(right)
    shown = np.ma.masked_where(np.triu(np.ones(T.shape), 1) > 0, T.numpy())
    highest = float(T.max())
    left.imshow(shown, cmap="Blues", vmin=0, vmax=highest)
    words = [choice.label for choice in text.words]
    left.set_xticks(range(len(words)), words, rotation=60, ha="right")
    left.set_yticks(range(len(words)), words)
    for _, color, noun in objects(text):
        left.add_patch(Rectangle((color[0] - 1.5, noun[0] - 1.5), 1, 1, fill=False, edgecolor=VERMILION, linewidth=2))
    left.set_title("T of one caption (framed: a noun and its color)", fontsize=10)
    color_bar(figure, [left], "Blues", "attention, rows sum to one", limits=(0.0, highest), shrink=0.8)
    bins = np.linspace(0, max(noun["bound"] for noun in nouns) * 1.02, 40)
    for name, color in (("unbound", BLUE), ("bound", VERMILION)):
        values = [noun[name] for noun in nouns]
        label = {"bound": "its color", "unbound": "colors of earlier objects"}[name]
        right.hist(values, bins, color=color, alpha=0.65, label=f"{label} (mean {np.mean(values):.3f})")
    right.set_xlabel("T in the row of a noun")
    right.set_ylabel("nouns")
    right.set_title(f"{len(nouns)} nouns after the first object", fontsize=10)
    right.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=DPI)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--csv", type=Path, default=RESULTS / "tsam_premise.csv", help="write the rows to this file")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="write the figure to this file")
    add_commit(parser)
    args = parser.parse_args()

    pipe = load_pipeline()
    eos = pipe.tokenizer.eos_token_id
    texts, ids, attentions = encoded(pipe, [caption.request.caption() for caption in reported_captions()])
    about = machine(torch.device("cpu"), args.commit)
    about = {"transformers": version("transformers"), **{name: about[name] for name in ("torch", "commit", "date")}}
    layers = {"mean": attentions, **{str(i): attentions[i : i + 1] for i in range(len(attentions))}}
    rows = [
        {"layer": layer, "gamma": f"{gamma:g}"} | row | about
        for layer, chosen in layers.items()
        for gamma in ((1.0, 4.0) if layer == "mean" else (1.0,))
        for row in summarize(text_self_attention(chosen, ids, eos, gamma=gamma), texts)
    ]
    write_rows(args.csv, rows)
    matrices = text_self_attention(attentions, ids, eos, gamma=1.0)
    nouns = [noun for T, text in zip(matrices, texts, strict=True) for noun in pairs_of(T, text)]
    (text,), ids, attentions = encoded(pipe, [EXAMPLE])
    draw(text_self_attention(attentions, ids, eos, gamma=1.0)[0], text, nouns, args.figure)


if __name__ == "__main__":
    main()
