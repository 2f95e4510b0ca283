"""T-SAM's premise in the shapes text encoder: do words that belong together attend to each other more?

    python -m benchmarks.guidance.premise

As in the paper's figure 6a (arXiv 2411.15236), on the captions that are reported: entries of T, the encoder's mean
self-attention over the real tokens with rows that sum to one, where the row is a noun and the column its own colour
(bound), or the colour of an object named before it (unbound). Both stand in one row, so each noun is its own control.
What it cannot tell apart from syntax is distance: in this grammar a noun's own colour is always the word before it.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.guidance.arms import objects
from benchmarks.guidance.choose import RESULTS
from benchmarks.guidance.summary import interval
from benchmarks.guidance.trials import reported_captions
from entropy_attn.bench.machine import machine, version
from entropy_attn.guidance import text_self_attention
from entropy_attn.integrations.transformers import text_self_attention_maps
from entropy_attn.prompts import Text
from entropy_attn.shapes import load_pipeline

FIGURE = Path(__file__).parents[2] / "docs" / "images" / "tsam_premise.png"
EXAMPLE = "a green circle, a yellow circle and a red cross"
QUANTITIES = {
    "bound": "T[noun, its own colour]",
    "unbound": "T[noun, colour of an earlier object], mean over those",
    "bound - unbound": "difference in one row",
    "strongest": "share of the nouns whose own colour is the strongest of the colours",
}


def pairs_of(T: Tensor, text: Text, first: int = 1) -> list[dict[str, float]]:
    """The quantities of every noun that an object stands before; ``first`` is the position of T's first token."""
    named = objects(text)
    found = []
    for at, (_, own, noun) in enumerate(named[1:], start=1):
        row = T[noun[-1] - first]
        bound = row[own[-1] - first].item()
        others = [row[colour[-1] - first].item() for _, colour, _ in named[:at]]
        unbound = sum(others) / len(others)
        marks = {"bound": bound, "unbound": unbound, "bound - unbound": bound - unbound}
        found.append(marks | {"strongest": float(bound > max(others))})
    return found


def summarise(matrices: Iterable[Tensor], texts: list[Text]) -> list[dict[str, str]]:
    by_caption = [pairs_of(T, text) for T, text in zip(matrices, texts, strict=True)]
    rows = []
    for quantity in QUANTITIES:
        mean, low, high = interval([[noun[quantity] for noun in nouns] for nouns in by_caption])
        nouns = sum(map(len, by_caption))
        rows.append({"quantity": quantity, "mean": f"{mean:.4f}", "low": f"{low:.4f}", "high": f"{high:.4f}",
                     "nouns": str(nouns), "captions": str(len(texts))})  # fmt: skip
    return rows


def encoded(pipe, prompts: list[str]) -> tuple[list[Text], Tensor, Tensor]:
    """The words, the token ids (B, s) and the attention (L, B, s, s) of the captions."""
    texts = [Text(prompt, pipe.tokenizer) for prompt in prompts]
    ids = torch.tensor([text.ids for text in texts])
    with torch.no_grad():
        _, attentions = text_self_attention_maps(pipe.text_encoder, ids)
    return texts, ids, attentions


def draw(T: Tensor, text: Text, nouns: list[dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    shown = np.ma.masked_where(np.triu(np.ones(T.shape), 1) > 0, T.numpy())
    image = left.imshow(shown, cmap="Blues", vmin=0)
    words = [choice.label for choice in text.words]
    left.set_xticks(range(len(words)), words, rotation=60, ha="right")
    left.set_yticks(range(len(words)), words)
    for _, colour, noun in objects(text):
        left.add_patch(
            plt.Rectangle((colour[0] - 1.5, noun[0] - 1.5), 1, 1, fill=False, edgecolor="#D55E00", linewidth=2)
        )
    left.set_title("T of one caption (framed: noun and its own colour)", fontsize=10)
    figure.colorbar(image, ax=left, shrink=0.8, label="attention, rows sum to one")
    bins = np.linspace(0, max(noun["bound"] for noun in nouns) * 1.02, 40)
    for name, colour in (("unbound", "#0072B2"), ("bound", "#D55E00")):
        values = [noun[name] for noun in nouns]
        label = {"bound": "its own colour", "unbound": "colours of earlier objects"}[name]
        right.hist(values, bins, color=colour, alpha=0.65, label=f"{label} (mean {np.mean(values):.3f})")
    right.set_xlabel("T in the row of a noun")
    right.set_ylabel("nouns")
    right.set_title(f"{len(nouns)} nouns with an object named before them", fontsize=10)
    right.legend(frameon=False, fontsize=9)
    for side in ("top", "right"):
        right.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=RESULTS / "tsam_premise.csv")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--commit", help="the commit that the rows name, where the folder is no git checkout")
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
        for row in summarise(text_self_attention(chosen, ids, eos, gamma=gamma), texts)
    ]
    with args.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    matrices = text_self_attention(attentions, ids, eos, gamma=1.0)
    nouns = [noun for T, text in zip(matrices, texts, strict=True) for noun in pairs_of(T, text)]
    (text,), ids, attentions = encoded(pipe, [EXAMPLE])
    draw(text_self_attention(attentions, ids, eos, gamma=1.0)[0], text, nouns, args.figure)


if __name__ == "__main__":
    main()
