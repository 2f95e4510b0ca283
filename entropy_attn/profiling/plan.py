"""What a profile runs: sizes x scale policies x seeds, in that order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Size = tuple[int, int]  # (height, width) in pixels

MAX_SEED = 2**64 - 1  # of torch's generators
DEFAULT_PROMPTS = ("a photograph of a red fox in a snowy forest", "a bowl of fruit on a wooden table, oil painting")


def size_name(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


@dataclass(frozen=True)
class Run:
    """One generation of all prompts."""

    size: Size
    policy: str
    seed: int

    @property
    def keys(self) -> dict[str, Any]:
        """The columns that every table begins with."""
        height, width = self.size
        return {"size": size_name(self.size), "height": height, "width": width, "policy": self.policy,
                "seed": self.seed}  # fmt: skip

    def __str__(self) -> str:
        return f"{size_name(self.size)} px, {self.policy}, seed {self.seed}"


@dataclass(frozen=True)
class ProfilePlan:
    """What to run. `policies` maps the name that tables and figures show to a scale policy.

    prompts: none for a pipeline that takes no text, or is given embeddings by `arguments`.
    guidance_scale: None is the pipeline's own.
    arguments: of the pipeline's call, besides those of this plan.
    layers: what the policies are for, as in `ea.apply`.
    heads: keep a row of every head and step.
    pictures: decode and keep pictures.
    reference: the training size, with which other sizes are compared; None where it is not known.
    about: further facts, which a profile that is resumed has to agree with.
    """

    sizes: Sequence[Size]
    policies: Mapping[str, Any]
    prompts: Sequence[str]
    seeds: Sequence[int] = (0,)
    steps: int = 15
    guidance_scale: float | None = None
    reference: Size | None = None
    negative_prompt: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    layers: str = "self"
    heads: bool = False
    pictures: bool = True
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("sizes", "policies", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: at least one is needed")
        for name in ("sizes", "seeds"):
            values = list(getattr(self, name))
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={values}: the same one is given twice")
        if any(not isinstance(seed, int) or not 0 <= seed <= MAX_SEED for seed in self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: whole numbers from 0 to {MAX_SEED} are needed")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps={self.steps}: a whole number from 1 is needed")
        if isinstance(self.prompts, str) or any(not isinstance(p, str) or not p.strip() for p in self.prompts):
            raise ValueError(f"prompts={self.prompts!r}: a list of texts that are not empty is needed")

    @property
    def map_size(self) -> Size:
        """The size whose spatial maps are kept: the largest, where repetition shows."""
        return max(self.sizes, key=lambda size: size[0] * size[1])

    @property
    def total_steps(self) -> int:
        return len(self.sizes) * len(self.policies) * len(self.seeds) * self.steps

    def runs(self) -> Iterator[Run]:
        for size in self.sizes:
            for policy in self.policies:
                for seed in self.seeds:
                    yield Run(size, policy, seed)

    def keeps_map(self, run: Run) -> bool:
        return run.size == self.map_size and run.seed == self.seeds[0]

    @property
    def baseline(self) -> str | None:
        """The policy that is the model's own scale; None where none of them is."""
        from entropy_attn.scale import Fixed

        return next((name for name, policy in self.policies.items() if policy in (None, Fixed())), None)

    def described(self) -> dict[str, Any]:
        """The plan as plain values, by which one is compared with another."""
        return {
            "sizes": [size_name(size) for size in self.sizes],
            "policies": {name: described(policy) for name, policy in self.policies.items()},
            "prompts": list(self.prompts),
            "negative_prompt": self.negative_prompt,
            "seeds": list(self.seeds),
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "arguments": {name: described(value) for name, value in self.arguments.items()},
            "layers": self.layers,
            "heads": self.heads,
            "pictures": self.pictures,
            **self.about,
        }


def described(value: Any) -> str:
    """A value in words that are the same in another process; of tensors, their shapes and sums."""
    import torch

    def of(part: Any) -> str:
        if isinstance(part, torch.Tensor):
            return f"tensor{tuple(part.shape)} of sum {part.double().sum().item():g}"
        if isinstance(part, (list, tuple)):
            return f"[{', '.join(map(of, part))}]"
        return re.sub(r" at 0x[0-9a-f]+", "", repr(part))

    return of(value)
