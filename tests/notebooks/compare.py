"""Whether two executions of a notebook show the same: text up to rounding, images up to noise."""

from __future__ import annotations

import base64
import io
import itertools
import re

import numpy as np
from PIL import Image

RELATIVE = 0.01  # of a number with decimals, or one unit of its last digit
SIDE = 32  # pixels to which images are averaged
LEVELS = 3.0  # of 255, mean difference of the averaged images
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?%?")
INLINE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")


def differences(committed, fresh) -> list[str]:
    """What differs between two notebooks with the same cells; empty if nothing does."""
    found = []
    for number, (old, new) in enumerate(zip(committed.cells, fresh.cells, strict=True)):
        if old.cell_type != "code":
            continue
        outputs = itertools.zip_longest(old.outputs, new.outputs, fillvalue={})
        for before, after in outputs:
            found += [f"cell {number}: {said}" for said in _of_output(before, after)]
    return found


def _of_output(before, after) -> list[str]:
    old, new = _data(before), _data(after)
    if old.keys() != new.keys():
        return [f"{sorted(old)} became {sorted(new)}"]
    found = []
    for kind in old:
        if kind == "image/png":
            found += [] if same_image(old[kind], new[kind]) else ["another image"]
            continue
        pairs = zip(INLINE.findall(old[kind]), INLINE.findall(new[kind]), strict=False)
        found += ["another image in a table" for one, other in pairs if not same_image(one, other)]
        if not same_text(INLINE.sub("image", old[kind]), INLINE.sub("image", new[kind])):
            found.append(f"{kind}:\n{old[kind]}\nbecame\n{new[kind]}")
    return found


def _data(output) -> dict[str, str]:
    """{kind: text} of a stream, a result or an error."""
    if not output:
        return {}
    kind = output["output_type"]
    if kind == "stream":
        return {output["name"]: output["text"]}
    return dict(output["data"]) if kind != "error" else {"error": output["evalue"]}


def same_text(one: str, other: str) -> bool:
    """Equal apart from the spaces of columns and the rounding of numbers; numbers without decimals are equal."""
    words = [[piece.strip() for piece in NUMBER.split(text)] for text in (one, other)]
    numbers = [NUMBER.findall(text) for text in (one, other)]
    return words[0] == words[1] and all(map(_near, *numbers))


def _near(one: str, other: str) -> bool:
    if one == other:
        return True
    if ("." not in one + other and "%" not in one) or one.endswith("%") != other.endswith("%"):
        return False
    first, second = (float(text.rstrip("%")) for text in (one, other))
    unit = 10.0 ** -min(len(text.rstrip("%").partition(".")[2].partition("e")[0]) for text in (one, other))
    size = max(abs(first), abs(second))
    return abs(first - second) <= max(RELATIVE * size, 1.001 * unit if "e" not in one + other else 0.0)


def same_image(one: str, other: str) -> bool:
    """Two PNG files in base64: of the same size, and alike when averaged to `SIDE` pixels."""
    images = [Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data in (one, other)]
    if images[0].size != images[1].size:
        return False
    small = [np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=float) for image in images]
    return bool(np.abs(small[0] - small[1]).mean() <= LEVELS)
