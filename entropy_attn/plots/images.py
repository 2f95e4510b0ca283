"""Generated images: all of a profile on one sheet, and some side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from entropy_attn.plots.style import image_grid, name_row
from entropy_attn.profiling import Profile, size_name

MAX_SHEET_PROMPTS = 4
MIN_COMPARE_WIDTH = 320  # px, so that captions fit below small images


def contact_sheet(result: Profile, model: str) -> Figure:
    """Images of the first seed: a column for each size, a row for each prompt and policy."""
    plan = result.plan
    seed = plan.seeds[0]
    count = len(next(iter(result.pictures.values())))
    prompts = [plan.prompts[index] if index < len(plan.prompts) else "" for index in range(count)]
    images = {(size, policy): result.pictures[size, policy, seed] for size in plan.sizes for policy in plan.policies}
    return sheet_of_sizes(images, prompts, title=f"Images by size and scale, {model}, seed {seed}")


def sheet_of_sizes(
    images: Mapping[tuple[tuple[int, int], str], Sequence[Any]], prompts: Sequence[str], title: str
) -> Figure:
    """A column for each size, a row for each prompt and policy; the first prompts.

    Args:
        images: {(size, policy): an image for each prompt}.
        prompts: the prompts.
        title: of the sheet.
    """
    sizes = list(dict.fromkeys(size for size, _ in images))
    policies = list(dict.fromkeys(policy for _, policy in images))
    rows = [(index, policy) for index in range(len(prompts[:MAX_SHEET_PROMPTS])) for policy in policies]
    figure, grid = image_grid(len(rows), len(sizes), title=title, cell=1.7)
    for (index, policy), row in zip(rows, grid, strict=True):
        for size, axis in zip(sizes, row, strict=True):
            axis.imshow(images[size, policy][index], interpolation="nearest")
        name_row(row[0], policy)
        if policy == policies[0]:
            row[0].set_title(prompts[index], loc="left", fontsize=10, pad=6)
    for size, axis in zip(sizes, grid[-1], strict=True):
        axis.set_xlabel(f"{size_name(size)} px")
    return figure


def sheet_of_arms(pictures: Mapping[str, Sequence[Any]], prompts: Sequence[str], title: str) -> Figure:
    """A column for each arm, a row for each prompt.

    Args:
        pictures: {arm: an image for each prompt}.
        prompts: the prompts.
        title: of the sheet.
    """
    figure, grid = image_grid(len(prompts), len(pictures), title=title, cell=1.7)
    for index, (prompt, row) in enumerate(zip(prompts, grid, strict=True)):
        for images, axis in zip(pictures.values(), row, strict=True):
            axis.imshow(images[index], interpolation="nearest")
        row[0].set_title(prompt, loc="left", fontsize=10, pad=6)
    for arm, axis in zip(pictures, grid[-1], strict=True):
        axis.set_xlabel("\n".join(wrap(arm.replace(":", " "), 22, break_long_words=False)), fontsize=9)
    return figure


def side_by_side(pictures: Sequence[Image.Image], captions: Sequence[str], title: str) -> Image.Image:
    """Images of one size in a row, with a caption below each and a title above; small images are enlarged."""
    zoom = max(1, math.ceil(MIN_COMPARE_WIDTH / pictures[0].width))
    width, height = pictures[0].width * zoom, pictures[0].height * zoom
    gap, line = 16, 28
    sheet_width = gap + (width + gap) * len(pictures)
    font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=15)
    title_lines = _wrapped(title, font, sheet_width - 2 * gap)
    top = gap // 2 + line * len(title_lines)
    sheet = Image.new("RGB", (sheet_width, top + height + line + gap // 2), "white")
    draw = ImageDraw.Draw(sheet)
    for index, text in enumerate(title_lines):
        draw.text((sheet_width / 2, gap // 2 + line * index), text, fill="black", font=font, anchor="ma")
    for index, (image, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = gap + index * (width + gap)
        sheet.paste(image.convert("RGB").resize((width, height), Image.Resampling.NEAREST), (left, top))
        draw.text((left + width / 2, top + height + 6), caption, fill="#333333", font=small, anchor="ma")
    return sheet


def _wrapped(text: str, font: Any, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
