"""Runs the Python of a Markdown file, and parses its `entropy-attn` command lines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.support.markdown import ROOT, blocks

NEEDED = ("pytorch_fid",)  # packages of others that a page is about; a block that imports one is only compiled
# What makes the same calls small: steps, pixels, and the model of the reader
SMALLER = (
    (r"num_inference_steps=\d+", "num_inference_steps=2"),
    (r'\bpipe\(("[^"]*")(?![^)]*num_inference_steps)', r"pipe(\1, num_inference_steps=2"),
    (r"\bsteps=(?:[3-9]|\d{2,})\b", "steps=2"),
    (r"\bscenes=\d+", "scenes=2"),
    (r"(torch\.randn\(\d+, \d+, )\d{4,}", r"\g<1>256"),
    (r'\w+\.from_pretrained\("path/or/hub-id"[^)]*\)(?:\.to\("cuda"\))?', "_pipeline()"),
    (r"(?<=[(\s])(height|width)=\d{3,}", r"\1=48"),
    (r"\bsizes=\[[^]]*\d{3,}[^]]*\]", "sizes=[32, 48]"),
    (r'\.to\("cuda"\)', '.to("cpu")'),
    (r'"(entropy_attn/shapes/\w+)"', rf'"{ROOT.as_posix()}/\1"'),
)


class Parsed(BaseException):
    """The arguments of a program were parsed; it is stopped before it does anything."""


def run_blocks(document: str, model: Path, scope: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run the Python blocks of a document one after the other, as a reader would, with fewer steps and pixels.

    Args:
        document: its path in the repository.
        model: folder of the pipeline that takes the place of the reader's, path/or/hub-id.
        scope: where the names are defined.

    Returns:
        The scope.
    """

    def _pipeline() -> Any:
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(model)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    scope = {} if scope is None else scope
    scope |= {"_pipeline": _pipeline, "__name__": "__main__"}
    for block in blocks(document, "python"):
        text = block.text
        for pattern, smaller in SMALLER:
            text = re.sub(pattern, smaller, text)
        code = compile(text, block.place, "exec")
        if not any(name in text for name in NEEDED):
            exec(code, scope)
    return scope


def entropy_attn_command(words: list[str], whole: bool = True) -> None:
    """Parse the arguments of `entropy-attn` without running it.

    Args:
        words: after `entropy-attn`.
        whole: False accepts a command without options, or values of options, that it needs.

    Raises:
        LookupError: there is no such command.
        ValueError: its options, or the policies and methods that they name, are refused.
    """
    import typer.main

    from entropy_attn.cli.app import app
    from entropy_attn.cli.parsing import parse_guidance, parse_list, parse_method, parse_scale

    command = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] not in command.commands and words[0] == "COMMAND":
            return
        command, words = command.commands[words[0]], words[1:]
    try:
        given = command.make_context("entropy-attn", list(words)).params
    except Exception as error:  # those of click, of which typer may have a copy
        if not hasattr(error, "format_message"):
            raise
        unfinished = {"MissingParameter", "NoArgsIsHelpError"} & {type(error).__name__}
        unfinished = unfinished or "requires an argument" in str(error)
        if whole or not unfinished:
            raise ValueError(error.format_message()) from error
        return
    scales = given.get("scales") or given.get("scale") or ()
    for text in (scales,) if isinstance(scales, str) else scales:
        for scale in parse_list("--scale", text):
            if ".json" not in scale and "profile=" not in scale:  # a file of the reader
                parse_scale(scale)
    guidance = given.get("guidance") or ()
    for text in (guidance,) if isinstance(guidance, str) else guidance:
        parse_guidance(text) if isinstance(guidance, str) else parse_method(text)
