"""`python -m docs.generate.guidance_api` writes api-guidance.md from the signatures and docstrings of what it lists."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

import entropy_attn as ea
from entropy_attn import guidance
from entropy_attn.integrations.guidance.attach import GuidanceHandle
from entropy_attn.plots.guidance import guidance_sheet

PAGE = Path(__file__).parents[1] / "api-guidance.md"
HEAD = """# Guidance: the API

Written by `python -m docs.generate.guidance_api` from the docstrings; the tutorial is [guidance.md](guidance.md).
Names are those of `entropy_attn.guidance` unless another module is given; `ea` is `import entropy_attn as ea`.
"""
SECTIONS: dict[str, list[tuple[str, Any]]] = {
    "On a pipeline": [
        ("attach", guidance.attach),
        ("GuidanceHandle", GuidanceHandle),
        ("ea.TSAMStableDiffusionPipeline", ea.TSAMStableDiffusionPipeline),
        ("ea.TSAMStableDiffusionXLPipeline", ea.TSAMStableDiffusionXLPipeline),
        ("entropy_attn.plots.guidance.guidance_sheet", guidance_sheet),
    ],
    "Methods": [
        (name, getattr(guidance, name))
        for name in ("Guidance", "TSAM", "AttendAndExcite", "CONFORM", "SynGen", "Custom", "RandomDirection", "Prompt")
    ],
    "Functions on tensors": [
        (name, getattr(guidance, name))
        for name in (
            *("text_self_attention", "real_tokens", "attention_similarity", "tsam_loss"),
            *("update_latents", "step_size", "input_correction"),
        )
    ],
}
METHODS = {
    GuidanceHandle: ("remove",),
    guidance.Guidance: ("loss", "applies_to", "is_reached", "direction"),  # what a method of one's own overrides
    guidance.TSAM: ("text_matrix",),
}


def page() -> str:
    parts = [HEAD]
    for title, entries in SECTIONS.items():
        parts.append(f"\n## {title}\n")
        for name, value in entries:
            parts.append("\n" + entry(name, value))
    return "".join(parts)


def entry(name: str, value: Any) -> str:
    is_pipeline = isinstance(value, type) and issubclass(value, DiffusionPipeline)
    if value is GuidanceHandle:
        usage = "What `attach` returns."
    elif is_pipeline:  # whose making is the parent's
        usage = f"`{name}`, called as `pipe{signature(value.__call__)}`"
    else:
        usage = f"`{name}{signature(value)}`"
    lines = [f"### {name.rpartition('.')[2]}", "", usage, "", *described(value)]
    if is_pipeline:
        lines += ["", *described(value.__call__)]
    for method in METHODS.get(value, ()):
        function = getattr(value, method)
        lines += ["", f"`{method}{signature(function)}`:", "", *described(function)]
    return "\n".join(lines) + "\n"


def signature(value: Callable) -> str:
    """Names and defaults; the annotations are said in words below."""
    parameters = [
        each.replace(annotation=inspect.Parameter.empty, default=Shown.of(each, value))
        for each in inspect.signature(value).parameters.values()
        if each.name != "self"
    ]
    return str(inspect.Signature(parameters))


class Shown:
    """A default as one would write it."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text

    @classmethod
    def of(cls, parameter: inspect.Parameter, owner: Any) -> Any:
        default = parameter.default
        if isinstance(default, guidance.Guidance) and default == type(default)():
            return cls(f"{type(default).__name__}()")
        if isinstance(default, range):
            return cls(f"range({default.stop})")
        if repr(default) == "<factory>":
            return cls(repr(owner.__dataclass_fields__[parameter.name].default_factory()))
        return default


def described(value: Any) -> Iterator[str]:
    """The docstring in Markdown: its paragraphs, and what begins as "name: ..." as a list."""
    named = False
    for line in inspect.getdoc(value).splitlines():
        item = re.fullmatch(r"\s*(\*{0,2}\w+(?:, \w+)*): (\S.*)", line)
        if not line.strip():
            named = False
            yield ""
        elif line.strip() in ("Args:", "Attributes:", "Returns:", "Raises:"):
            yield from (f"*{line.strip()[:-1]}*", "")
        elif item:
            named = True
            yield f"- `{item[1]}`: {item[2]}"
        else:
            yield f"  {line.strip()}" if named else line.strip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Written to {PAGE}")
