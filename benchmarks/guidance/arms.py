"""The arms of the comparison: every guidance with the words that its paper gives it, and two controls of T-SAM.

The words that a method needs are taken from the grammar of the captions, without error: the nouns for
Attend-and-Excite, color and shape of each object for CONFORM and SynGen. T-SAM needs no words.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import torch
from torch import Tensor

from entropy_attn.evaluation.methods import guidance_for, words_of_shapes
from entropy_attn.guidance import CONFORM, TSAM, AttendAndExcite, SynGen
from entropy_attn.guidance.method import Guidance, Prompt
from entropy_attn.guidance.text import sharpen
from entropy_attn.shapes.words import objects

TSAM_ARMS = ("tsam-released", "tsam-paper", "tsam-shuffled", "tsam-oracle")  # the arms with a gamma
ARMS = ("none", "tsam-released", "tsam-paper", "attend-and-excite", "conform", "syngen", "tsam-shuffled", "tsam-oracle")
MAP_SIZE = (8, 8)  # of the tables in benchmarks/results; `map_size=None` is (16, 16) since then
UNRELATED = 0.1  # the syntax oracle's attention between words of different objects, before the power


def guidance_of(arm: str, alpha: float, gamma: float | None, steps: range) -> Guidance | None:
    """The guidance of an arm; None for `"none"`. Without refinement: each makes one update per step.

    Raises:
        ValueError: the arm is unknown.
    """
    if arm == "none":
        return None
    if arm in TSAM_ARMS:
        target = {"tsam-shuffled": shuffled, "tsam-oracle": oracle}.get(arm)
        variant = "paper" if arm == "tsam-paper" else "released"
        target = target and partial(target, gamma=gamma)
        return TSAM(alpha=alpha, gamma=gamma, steps=steps, variant=variant, target=target, map_size=MAP_SIZE)
    settings: dict[str, Any] = {"alpha": alpha, "steps": steps, "map_size": MAP_SIZE}
    words = (1, 2)  # those of each caption take their place
    examples: dict[str, Guidance] = {
        "attend-and-excite": AttendAndExcite(tokens=words, thresholds={}, **settings),
        "conform": CONFORM(groups=[words], refine_at=(), **settings),
        "syngen": SynGen(pairs=[words], **settings),
    }
    if arm in examples:
        return guidance_for(examples[arm], words_of_shapes)
    raise ValueError(f"arm: expected one of {', '.join(ARMS)}, got {arm!r}")


def shuffled(prompt: Prompt, gamma: float) -> Tensor:
    """T with permuted words: equally many, strong and causal relations, but between the wrong words.

    The rows of the encoder, normalized to sum to one, are mirrored over the diagonal, so that a pair keeps its value
    whichever word comes first; then rows and columns are permuted, with one order for each caption.
    """
    positions = list(prompt.tokens)
    rows = prompt.attention[positions][:, positions]
    rows = rows / rows.sum(-1, keepdim=True)
    pairs = rows.tril() + rows.tril(-1).mT
    order = list(range(len(positions)))
    random.Random(prompt.text.prompt).shuffle(order)
    return sharpen(pairs[order][:, order].tril(), gamma, "released")


def oracle(prompt: Prompt, gamma: float) -> Tensor:
    """T as from a perfect parser: words of one object attend to each other equally, and little to all others."""
    at = {position: row for row, position in enumerate(prompt.tokens)}
    rows = torch.full((len(at), len(at)), UNRELATED)
    rows.fill_diagonal_(1.0)
    for words in objects(prompt.text):
        of_object = torch.tensor([at[position] for word in words for position in word])
        rows[of_object[:, None], of_object] = 1.0
    return sharpen(rows.tril(), gamma, "released")
