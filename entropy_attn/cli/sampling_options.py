"""How images are sampled: the options that `generate` and `maps` share, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from entropy_attn.cli.parsing import SCALE_HELP, SIZE_HELP, Size, check_at_least, check_seed, parse_scale, parse_size

SHAPES_GUIDANCE = 4.0  # the embedded models are evaluated with it
GUIDANCE_SCALE_HELP = (
    "Strength of classifier-free guidance. Default: 4 for the embedded models, else the pipeline's default."
)


def sizes_option(default: str) -> Any:
    """`--sizes` of the commands that take several; `default` in words."""
    return typer.Option(help=f"Image sizes, separated by commas; each is {SIZE_HELP}. Default: {default}.")


def scales_option(default: str, more: str = "") -> Any:
    """`--scale` of the commands that compare policies; `more` says what one of them is for."""
    return typer.Option(
        "--scale",
        "--scales",
        help="Scale policies, separated by commas; the option can also be given several times. "
        f"{more}Default: {default}. Each is {SCALE_HELP}",
    )


@dataclass(frozen=True)
class SamplingOptions:
    """The fields are options of a command."""

    size: Annotated[str | None, typer.Option(help=f"Image size: {SIZE_HELP}. Default: the training size.")] = None
    scale: Annotated[str, typer.Option(help=f"Scale policy: {SCALE_HELP}")] = "logn"
    negative_prompt: Annotated[str | None, typer.Option(help="What the image must not show.")] = None
    seed: Annotated[int, typer.Option(help="Seed of the starting noise.")] = 0
    steps: Annotated[int, typer.Option(help="Number of denoising steps.")] = 25
    guidance_scale: Annotated[float | None, typer.Option(help=GUIDANCE_SCALE_HELP)] = None

    def parse(self, model: str) -> Sampling:
        """The options as values, for this model."""
        check_seed("--seed", self.seed)
        check_at_least("--steps", self.steps, 1)
        check_at_least("--guidance-scale", self.guidance_scale, 0)
        return Sampling(
            size=None if self.size is None else parse_size(self.size),
            policy=parse_scale(self.scale),
            negative_prompt=self.negative_prompt,
            seed=self.seed,
            steps=self.steps,
            guidance_scale=default_guidance_scale(model, self.guidance_scale),
        )


@dataclass(frozen=True)
class Sampling:
    """The options as values. `size` is None for the training size until `fit` fills it in."""

    size: Size | None
    policy: Any
    negative_prompt: str | None
    seed: int
    steps: int
    guidance_scale: float | None

    def fit(self, pipe: Any, prompts: Sequence[str]) -> Sampling:
        """The same with a size; refuses what the pipeline cannot do, before it runs."""
        from entropy_attn.pipelines import call_options, check_size, train_size

        size = self.size or train_size(pipe)
        check_size(pipe, size, len(prompts))
        call_options(pipe, prompts, guidance_scale=self.guidance_scale, negative_prompt=self.negative_prompt)
        return replace(self, size=size)

    @property
    def fitted_size(self) -> Size:
        """The size, after `fit`."""
        if self.size is None:
            raise RuntimeError("size: expected the size of a fitted pipeline, got None: call fit() first")
        return self.size

    def sample(self, pipe: Any, prompts: Sequence[str], **options: Any) -> list[Any]:
        """One image for each prompt; `options` are further ones of `entropy_attn.pipelines.sample`."""
        from entropy_attn.pipelines import sample

        settings = {
            "size": self.fitted_size,
            "scale": self.policy,
            "seed": self.seed,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "negative_prompt": self.negative_prompt,
        }
        return sample(pipe, prompts, **(settings | options))


def default_guidance_scale(model: str, given: float | None) -> float | None:
    """As given, else what suits the embedded models, else None for the pipeline's default."""
    from entropy_attn.shapes.names import embedded

    return SHAPES_GUIDANCE if given is None and embedded(model) is not None else given
