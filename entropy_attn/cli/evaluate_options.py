"""What the commands of `entropy-attn evaluate` share: options of the sampling, and a word on interrupted folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from entropy_attn.cli.parsing import Size, check_at_least, parse_arguments, parse_seeds
from entropy_attn.cli.sampling_options import GUIDANCE_SCALE_HELP, default_guidance_scale


@dataclass(frozen=True)
class EvaluateOptions:
    """The fields are options of a command."""

    limit: Annotated[int | None, typer.Option(help="Use only this many prompts, the first ones.")] = None
    seeds: Annotated[
        str,
        typer.Option(help="Repetitions, separated by commas. The noise depends on repetition and prompt only."),
    ] = "0"
    steps: Annotated[int, typer.Option(help="Number of denoising steps.")] = 25
    guidance_scale: Annotated[float | None, typer.Option(help=GUIDANCE_SCALE_HELP)] = None
    negative_prompt: Annotated[str | None, typer.Option(help="What the images must not show.")] = None
    argument: Annotated[
        list[str] | None,
        typer.Option(help="Another argument of the pipeline's call, NAME=VALUE; can be given several times."),
    ] = None
    batch: Annotated[int, typer.Option(help="Images that are made at once; does not change them.")] = 4

    def parse(self, model: str) -> Sampled:
        """The options as values, for this model."""
        check_at_least("--limit", self.limit, 1)
        check_at_least("--steps", self.steps, 1)
        check_at_least("--guidance-scale", self.guidance_scale, 0)
        check_at_least("--batch", self.batch, 1)
        from entropy_attn.evaluation.sampling import Settings

        settings = Settings(
            steps=self.steps,
            guidance_scale=default_guidance_scale(model, self.guidance_scale),
            negative_prompt=self.negative_prompt,
            arguments=parse_arguments(self.argument or []),
        )
        return Sampled(settings, parse_seeds(self.seeds), self.batch, self.limit)


@dataclass(frozen=True)
class Sampled:
    """The options as values: `settings` of every image, repetitions, images at once, and the limit of prompts."""

    settings: Any
    seeds: list[int]
    batch: int
    limit: int | None

    def prompts(self, prompts: list[str]) -> list[str]:
        """The first prompts, as many as the limit.

        Raises:
            ValueError: there are fewer.
        """
        if self.limit is not None and self.limit > len(prompts):
            raise ValueError(f"--limit: expected at most the number of prompts, {len(prompts)}, got {self.limit}")
        return prompts[: self.limit]


def is_embedded(model: str) -> bool:
    """Whether `--model` means a model of shapes, whose prompts and truth are known."""
    from entropy_attn.shapes.names import embedded

    return embedded(model) is not None


def default_sizes(pipe: Any) -> list[Size]:
    """1, 1.5 and 2 times the training size, in multiples of what the pipeline takes."""
    from entropy_attn.pipelines import size_multiple, train_size

    multiple = size_multiple(pipe)
    height, width = train_size(pipe)

    def fitting(side: float) -> int:
        return max(1, round(side / multiple)) * multiple

    return [(fitting(height * factor), fitting(width * factor)) for factor in (1.0, 1.5, 2.0)]


def kept(out: Path) -> str | None:
    """What an interrupted evaluation has left in its folders."""
    from entropy_attn.runs.folder import finished_runs

    folders = [path for path in (out, *sorted(out.glob("*"))) if path.is_dir()]
    counts = {path: found for path in folders if (found := finished_runs(path)) and found[0]}
    if not counts:
        return None
    parts = [f"{done} of {count} runs are kept in {path}" for path, (done, count) in counts.items()]
    return f"{', '.join(parts)}; the same command continues from there"
