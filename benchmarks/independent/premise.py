"""Does T-SAM's premise hold in a trained text encoder: do words that belong together attend to each other more?

    OMP_NUM_THREADS=1 python -m benchmarks.independent.download --weights minilm    # first, once: 84 MB
    OMP_NUM_THREADS=1 python -m benchmarks.independent.premise --prompts color.txt evaluation_metadata.jsonl
    python -m benchmarks.independent.premise --captions 100 --csv premise.csv --figure premise.png

Entries of T, as in `benchmarks.guidance.premise`, in all-MiniLM-L6-v2: the row is a noun and the column its color
(bound) or the color of another object (unbound), or the row is a color and the columns are nouns. The captions are:

- shapes: those of the grammar of shapes; near: "a red bear, a blue bird and a green car";
- after: "a bear that is red, a bird that is blue and a car that is green". An object's own color is three words after
  the noun, and that of the object before it is three words before the noun;
- far: "a red and large bear, a blue and old bird and a green and new car". Three words again, sides exchanged;
- files of prompts, which are not part of the repository: T2I-CompBench's color.txt and GenEval's
  evaluation_metadata.jsonl, those prompts that are "a <color> <noun> and a <color> <noun>".

An encoder that only looks one word back passes shapes and near. "bound - matched" is the difference to the entries of
other objects at the same distance as the bound one; "after and far" is the mean of this over both, which is zero for
an encoder that looks at positions only, whatever the distances and the side that it prefers. In the other captions the
control is to shuffle the words. Intervals are 95 % bootstraps over captions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import IMAGES, RESULTS, add_commit, new_parser, positive, write_rows
from benchmarks.guidance.premise import QUANTITIES, marks
from benchmarks.guidance.summary import interval
from benchmarks.independent.captions import TEMPLATES, Caption, from_file, from_template, of_shapes
from benchmarks.independent.download import add_folder
from benchmarks.independent.minilm import encoded, load
from entropy_attn.bench.machine import machine, version
from entropy_attn.guidance import text_self_attention
from entropy_attn.plots.style import DPI, GREY, named_handles, panels, policy_style
from entropy_attn.prompts import Text

CAPTIONS = 1000
RESAMPLES = 1000
MATCHED = "bound - matched"
BOTH = "after and far"  # the mean of two forms whose objects are the same
MATCHING = ("far", "after", BOTH)
ORDERS = ("written", "shuffled")
READERS = ("noun", "color")  # the word whose row is read
GAMMAS = (1.0, 4.0)
SERIES = {  # of the figure: form, quantity, order
    "near: its word less the others": ("near", "bound - unbound", "written"),
    "the same, words shuffled": ("near", "bound - unbound", "shuffled"),
    "after and far: its word less others at the same distance": (BOTH, MATCHED, "written"),
}
Marks = list[dict[str, float]]


def marks_of(T: Tensor, text: Text, caption: Caption, reader: str) -> Marks:
    """The quantities for each object of a caption: the row is its `reader`, the columns are the other kind of words.

    A word of several tokens counts by its last one. MATCHED is left out where no other object is at the same distance.
    """
    entries = T.tolist()
    ends = [tuple(text.words[index].positions[-1] - 1 for index in pair) for pair in caption.objects]
    rows, columns = zip(*(pair if reader == "color" else pair[::-1] for pair in ends), strict=True)
    found = []
    for row, column in zip(rows, columns, strict=True):
        others = [other for other in columns if other != column]
        values = marks(entries[row][column], [entries[row][other] for other in others])
        matched = [entries[row][other] for other in others if abs(other - row) == abs(column - row)]
        if matched:
            values[MATCHED] = values["bound"] - sum(matched) / len(matched)
        found.append(values)
    return found


def summarize(by_caption: list[Marks], quantities: Iterable[str]) -> Iterator[dict[str, str]]:
    """A row for each quantity that at least two captions have."""
    for quantity in quantities:
        groups = [[each[quantity] for each in found if quantity in each] for found in by_caption]
        if sum(map(bool, groups)) < 2:
            continue
        mean, low, high = interval(groups, RESAMPLES)
        yield {"quantity": quantity, "mean": f"{mean:.4f}", "low": f"{low:.4f}", "high": f"{high:.4f}",
               "objects": str(sum(map(len, groups))), "captions": str(sum(map(bool, groups)))}  # fmt: skip


def table(encoder: Any, tokenizer: Any, sets: dict[str, list[Caption]]) -> list[dict[str, str]]:
    """Rows of form x order x row x layer x gamma x quantity."""
    found: dict[tuple[str, ...], list[Marks]] = {}
    jobs = [(form, order) for form in sets for order in ORDERS if order == "written" or form not in MATCHING]
    for form, order in tqdm(jobs, desc="forms"):
        captions = [caption if order == "written" else caption.shuffled() for caption in sets[form]]
        texts, ids, attentions = encoded(encoder, tokenizer, captions)
        for layer, gamma, matrices in matrices_of(attentions, ids, tokenizer.sep_token_id):
            for reader in READERS:
                found[form, order, reader, layer, gamma] = [
                    marks_of(T, text, caption, reader)
                    for T, text, caption in zip(matrices, texts, captions, strict=True)
                ]
    for form, *rest in list(found):
        if form == "after":  # its captions and those of "far" are for the same objects
            pairs = zip(*(found[(each, *rest)] for each in ("after", "far")), strict=True)
            found[(BOTH, *rest)] = [[*one, *other] for one, other in pairs]
    rows = []
    for key, by_caption in tqdm(found.items(), desc="intervals"):
        about = dict(zip(("form", "order", "row", "layer", "gamma"), key, strict=True))
        quantities = [*(QUANTITIES if key[0] != BOTH else ()), *((MATCHED,) if key[0] in MATCHING else ())]
        rows += [about | row for row in summarize(by_caption, quantities)]
    return rows


def matrices_of(attentions: Tensor, ids: Tensor, end: int) -> Iterator[tuple[str, str, list[Tensor]]]:
    """(layer, gamma, T of each caption) of the mean over the layers and of each layer."""
    layers = {"mean": attentions, **{str(i): attentions[i : i + 1] for i in range(len(attentions))}}
    for layer, chosen in layers.items():
        for gamma in GAMMAS if layer == "mean" else GAMMAS[:1]:
            yield layer, f"{gamma:g}", text_self_attention(chosen, ids, end, gamma=gamma)


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Differences by layer, for rows of nouns and of colors."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    layers = [*(layer for layer in layers if layer != "mean"), "mean"]
    figure, axes = panels(len(READERS), "", panel_width=5.6)
    for axis, reader in zip(axes, READERS, strict=True):
        axis.axhline(0, color=GREY, linewidth=1)
        for index, (name, shown) in enumerate(SERIES.items()):
            chosen = [row for row in rows if (row["form"], row["quantity"], row["order"]) == shown
                      and row["row"] == reader and row["gamma"] == "1"]  # fmt: skip
            chosen.sort(key=lambda row: layers.index(row["layer"]))
            middle, low, high = (np.array([float(row[end]) for row in chosen]) for end in ("mean", "low", "high"))
            x = np.arange(len(layers)) + 0.1 * (index - 1)
            axis.errorbar(x, middle, yerr=[middle - low, high - middle], label=name, linestyle="", markersize=4.5,
                          capsize=2, **policy_style(index))  # fmt: skip
        axis.set_xticks(range(len(layers)), layers)
        axis.set_xlabel("layer")
        axis.set_title({"noun": "row of a noun: its color", "color": "row of a color: its noun"}[reader])
    axes[0].set_ylabel("difference of entries of T")
    handles = named_handles(axes[:1])
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", frameon=False, ncols=1)
    figure.savefig(path, dpi=DPI)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--captions", type=positive, default=CAPTIONS, help="captions of a form (default %(default)s)")
    parser.add_argument("--prompts", type=Path, nargs="+", default=[], help="files of prompts")
    parser.add_argument("--csv", type=Path, default=RESULTS / "premise_minilm.csv", help="write the rows to this file")
    parser.add_argument("--figure", type=Path, default=IMAGES / "premise_minilm.png", help="write the figure here")
    add_folder(parser)
    add_commit(parser)
    args = parser.parse_args()

    sets = {"shapes": of_shapes(args.captions)} | {form: from_template(form, args.captions) for form in TEMPLATES}
    for path in args.prompts:
        sets[path.stem] = from_file(path)
        print(f"{path}: {len(sets[path.stem])} prompts name two objects with a color each")
    about = machine(torch.device("cpu"), args.commit)
    about = {"transformers": version("transformers"), **{name: about[name] for name in ("torch", "commit", "date")}}
    rows = [row | about for row in table(*load(args.folder), sets)]
    write_rows(args.csv, rows)
    draw(rows, args.figure)


if __name__ == "__main__":
    main()
