"""What `evaluate scale` runs: sizes x scale policies x repetitions x prompts, in parts of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from entropy_attn.evaluation.sampling import Settings, batches
from entropy_attn.profiling.plan import described, size_name
from entropy_attn.runs.folder import slugs
from entropy_attn.scale import Fixed
from entropy_attn.validation import expected

Size = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """Images that are made at once: one size, policy and repetition, consecutive prompts."""

    size: Size
    policy: str
    seed: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class ScalePlan:
    """What is compared.

    Attributes:
        sizes: image sizes (height, width) in pixels.
        policies: {name: scale policy}; one of them is the model's default scale, with which others are compared.
        prompts: one image is made for each, at every size, with every policy, in every repetition.
        seeds: repetitions.
        settings: what all images have in common.
        batch: images that are made at once.
        about: further facts, which the parts of an evaluation must have in common.

    Raises:
        ValueError: a field is empty, has the same value twice, or has no default scale to compare with.
    """

    sizes: Sequence[Size]
    policies: Mapping[str, Any]
    prompts: Sequence[str]
    seeds: Sequence[int]
    settings: Settings
    batch: int = 4
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("sizes", "policies", "prompts", "seeds"):
            if not getattr(self, name):
                raise ValueError(expected(name, "at least one", getattr(self, name)))
        for name in ("sizes", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(expected(name, "different values", list(getattr(self, name))))
        if self.baseline is None:
            raise ValueError(expected("policies", "'off' among them, which others are compared with", [*self.policies]))

    @property
    def baseline(self) -> str | None:
        """Name of the policy that is the model's default scale."""
        return next((name for name, policy in self.policies.items() if policy in (None, Fixed())), None)

    def parts(self) -> dict[str, Part]:
        """{name of the run: what it makes}, in the order in which they are made.

        All policies of a batch come one after another, so that what an interrupted evaluation has is paired.
        """
        names = slugs(self.policies)
        return {
            f"{size_name(size)}-{names[policy]}-seed{seed}-{batch[0]:06d}": Part(size, policy, seed, tuple(batch))
            for size in self.sizes
            for seed in self.seeds
            for batch in batches(range(len(self.prompts)), self.batch)
            for policy in self.policies
        }

    def described(self) -> dict[str, Any]:
        """The plan as plain values, for plan.json and for comparing plans."""
        settings = self.settings
        return {
            "sizes": [size_name(size) for size in self.sizes],
            "policies": {name: described(policy) for name, policy in self.policies.items()},
            "prompts": list(self.prompts),
            "seeds": list(self.seeds),
            "batch": self.batch,
            "steps": settings.steps,
            "guidance_scale": settings.guidance_scale,
            "negative_prompt": settings.negative_prompt,
            "layers": settings.layers,
            "arguments": {name: described(value) for name, value in settings.arguments.items()},
            **self.about,
        }
