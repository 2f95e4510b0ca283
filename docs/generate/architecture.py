"""The floors of the package: tests/test_layout.py holds imports to them, this script draws them.

It writes docs/images/architecture.svg and the tables in docs/architecture.md.

    python -m docs.generate.architecture
"""

from __future__ import annotations

import textwrap
from html import escape
from pathlib import Path

from benchmarks.common import new_parser

DOCS = Path(__file__).parents[1]
PAGE = DOCS / "architecture.md"
IMAGE = DOCS / "images" / "architecture.svg"

# From the bottom up: a module may import modules of its floor and of the floors below.
FLOORS: list[dict[str, str]] = [
    {"kernels": "Triton kernels, their launchers and configurations"},
    {
        "_ops": "the namespace of torch's operators",
        "errors": "the package's exception",
        "display": "tables in notebooks",
        "validation": "checks of arguments and settings",
        "prompts": "from the words of a prompt to token positions",
        "runs": "finished runs in a folder, and the processes that divide them",
        "table_files": "tables as .csv and .json files",
    },
    {
        "ops": "one attention call: checks, choice of an implementation, autograd operator, reference",
        "scale": "scale policies: which softmax scale a call gets",
    },
    {
        "recorders": "entropies and attention maps of calls, summed on the device",
        "mix": "two answers of a call made into one: ea.mix",
    },
    {
        "routing": "one routed call: scale policy, attention, recorders",
        "guidance": "losses on maps and the update of the latents, with torch alone",
    },
    {"integrations": "interception of attention calls in diffusers and transformers: apply, attach"},
    {
        "shapes": "a tiny trained pipeline and an exact checker of its images",
        "bench": "workloads, implementations, correctness gate, timing",
        "pipelines": "loading and sampling a pipeline; the T-SAM pipelines",
    },
    {
        "profiling": "entropy across sizes, policies and seeds: ea.profile",
        "explore": "one HTML file to explore a profile and word maps",
        "plots": "figures of profiles, maps, guidance and benchmarks",
        "evaluation": "images of many prompts under several policies, and their metrics",
    },
    {"cli": "the entropy-attn command", "__main__": "python -m entropy_attn"},
]

FOLDERS = {
    "kernels/forward": "output, log-sum-exp and entropy in one pass; autotuning",
    "kernels/pingpong": "the forward pass in Gluon for Hopper: groups of warps in turns",
    "kernels/backward": "gradients of output, log-sum-exp, entropy and map",
    "kernels/maps": "head-averaged maps of a range of keys",
    "kernels/common": "what the passes share: tiles, arguments, launch plans, supported calls",
    "integrations/diffusers": "`apply` and its handle: layers, processors, steps, branches, torch.compile",
    "integrations/diffusers/context_parallel": "a sequence that diffusers has spread over devices",
    "integrations/diffusers/models": "the table of supported denoisers, one row each",
    "integrations/guidance": "`attach` and `GuidanceBlock`: the guided forward pass of a pipeline; a guider",
    "integrations/transformers": "a name for models of transformers; maps of text encoders",
    "evaluation/metrics": "similarities of CLIP, and TIFA's questions",
    "bench/implementations": "one file per kind of implementation that is compared",
}

# Third-party packages that only these parts may import.
OPTIONAL = {
    "altair": {"explore"},
    "triton": {"kernels"},
    "vl_convert": {"explore"},
    "diffusers": {"integrations", "pipelines", "shapes"},
    "transformers": {"integrations", "pipelines", "shapes"},
}

WIDTH, LEFT, HEIGHT, GAP = 960, 20, 66, 10
COLORS = {"triton": "#fdebd3", "diffusers": "#dcebfb", "": "#f3f3f1"}


def image() -> str:
    """The floors as an SVG drawing, the lowest at the bottom."""
    bottom = GAP + len(FLOORS) * (HEIGHT + GAP)
    boxes = []
    for level, parts in enumerate(FLOORS):
        width = (WIDTH - 2 * LEFT - GAP * (len(parts) - 1)) / len(parts)
        top = bottom - (level + 1) * (HEIGHT + GAP)
        for column, (name, purpose) in enumerate(parts.items()):
            boxes.append(_box(name, purpose, LEFT + column * (width + GAP), top, width))
    legend = _legend(bottom + 24)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 44}" '
            'font-family="Helvetica, Arial, sans-serif" font-size="14">',
            f'<rect width="{WIDTH}" height="{bottom + 44}" fill="white"/>',
            *boxes,
            *legend,
            "</svg>",
            "",
        ]
    )


def _box(name: str, purpose: str, x: float, y: float, width: float) -> str:
    lines = textwrap.wrap(purpose, max(int(width / 6.6) - 4, 10))
    middle = x + width / 2
    text_top = y + HEIGHT / 2 - 9 * len(lines) + 5
    title = f'<text x="{middle:.1f}" y="{text_top:.1f}" text-anchor="middle" font-weight="bold">{escape(name)}</text>'
    body = "".join(
        f'<text x="{middle:.1f}" y="{text_top + 18 * (i + 1):.1f}" text-anchor="middle" font-size="13">'
        f"{escape(line)}</text>"
        for i, line in enumerate(lines)
    )
    kind = next((package for package in ("triton", "diffusers") if name in OPTIONAL[package]), "")
    frame = (
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{HEIGHT}" rx="6" fill="{COLORS[kind]}" stroke="#777"/>'
    )
    return frame + title + body


def _legend(y: int) -> list[str]:
    texts = ("imports go down", "may import Triton", "may import diffusers and transformers")
    entries = zip((LEFT, 200, 400), ("", "triton", "diffusers"), texts, strict=True)
    return [
        (f'<rect x="{x}" y="{y - 13}" width="16" height="16" fill="{COLORS[kind]}" stroke="#777"/>' if kind else "")
        + f'<text x="{x + (24 if kind else 0)}" y="{y}" font-size="13">{text}</text>'
        for x, kind, text in entries
    ]


def tables() -> str:
    """The part of the page between its markers: what each folder and each loose file is for."""
    rows = ["| floor | part | purpose |", "|---|---|---|"]
    for level in range(len(FLOORS) - 1, -1, -1):
        for name, purpose in FLOORS[level].items():
            rows.append(f"| {level} | `{name}` | {purpose} |")
    nested = ["| subfolder | purpose |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in FOLDERS.items())]
    return "\n".join([*rows, "", *nested])


def page(text: str) -> str:
    """The page with its tables brought up to date."""
    head, begin, rest = text.partition("<!-- floors:begin -->\n")
    _, end, tail = rest.partition("<!-- floors:end -->")
    if not begin or not end:
        raise ValueError("docs/architecture.md: expected the lines <!-- floors:begin --> and <!-- floors:end -->")
    return f"{head}{begin}{tables()}\n{end}{tail}"


def main() -> None:
    new_parser(__doc__).parse_args()
    IMAGE.write_text(image(), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
