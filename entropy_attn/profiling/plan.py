"""What a profile runs: sizes x scale policies x seeds, in this order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Size = tuple[int, int]  # (height, width) in pixels

MAX_SEED = 2**64 - 1  # the largest that torch's generators accept
DEFAULT_PROMPTS = ("a photograph of a red fox in a snowy forest", "a bowl of fruit on a wooden table, oil painting")


def size_name(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


@dataclass(frozen=True)
class Run:
    """One generation of all prompts.

    Attributes:
        size: (height, width) in pixels.
        policy: name of the scale policy.
        seed: seed of the starting noise.
    """

    size: Size
    policy: str
    seed: int

    @property
    def keys(self) -> dict[str, Any]:
        """The first columns of every table."""
        height, width = self.size
        return {"size": size_name(self.size), "height": height, "width": width, "policy": self.policy,
                "seed": self.seed}  # fmt: skip

    def __str__(self) -> str:
        return f"{size_name(self.size)} px, {self.policy}, seed {self.seed}"


@dataclass(frozen=True)
class ProfilePlan:
    """What a profile runs.

    Attributes:
        sizes: image sizes (height, width) in pixels.
        policies: {name in tables and figures: scale policy}; None is the model's default scale.
        prompts: one image is generated for each; empty for a pipeline that takes no text, or gets embeddings from
            `arguments`.
        seeds: seeds of the starting noise.
        steps: number of denoising steps.
        guidance_scale: strength of classifier-free guidance; None is the pipeline's default.
        reference: the training size, which other sizes are compared with; None if it is unknown.
        negative_prompt: used with every prompt.
        arguments: further arguments of the pipeline's call.
        layers: layers that get the policies, as in `ea.apply`.
        heads: keep a row for every head and step.
        pictures: decode and keep the images.
        regime_steps: number of steps, spread over the generation, at which the regime of each layer is measured.
        about: further facts, which a resumed profile must have in common with the first part.

    Raises:
        ValueError: a field is empty, has the same value twice, or has a value that cannot be used.
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
    regime_steps: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("sizes", "policies", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one, got {getattr(self, name)!r}")
        for name in ("sizes", "seeds"):
            values = list(getattr(self, name))
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: expected different values, got {values}")
        if any(not isinstance(seed, int) or not 0 <= seed <= MAX_SEED for seed in self.seeds):
            raise ValueError(f"seeds: expected whole numbers from 0 to {MAX_SEED}, got {list(self.seeds)}")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps: expected a whole number from 1, got {self.steps!r}")
        if not isinstance(self.regime_steps, int) or self.regime_steps < 0:
            raise ValueError(f"regime_steps: expected a whole number from 0, got {self.regime_steps!r}")
        if isinstance(self.prompts, str) or any(not isinstance(p, str) or not p.strip() for p in self.prompts):
            raise ValueError(f"prompts: expected a list of texts that are not empty, got {self.prompts!r}")

    @property
    def map_size(self) -> Size:
        """The size whose entropy maps are kept: the largest, at which repetition shows."""
        return max(self.sizes, key=lambda size: size[0] * size[1])

    @property
    def total_steps(self) -> int:
        """Denoising steps of all runs."""
        return len(self.sizes) * len(self.policies) * len(self.seeds) * self.steps

    def runs(self) -> Iterator[Run]:
        """The runs, in the order in which they are made."""
        for size in self.sizes:
            for policy in self.policies:
                for seed in self.seeds:
                    yield Run(size, policy, seed)

    def keeps_map(self, run: Run) -> bool:
        """Whether the entropy maps of this run are kept."""
        return run.size == self.map_size and run.seed == self.seeds[0]

    @property
    def baseline(self) -> str | None:
        """Name of the policy that is the model's default scale; None if there is none."""
        from entropy_attn.scale import Fixed

        return next((name for name, policy in self.policies.items() if policy in (None, Fixed())), None)

    @property
    def regime_at(self) -> tuple[int, ...]:
        """The steps at which the regime is measured: the middles of equal parts of the generation."""
        count = min(self.regime_steps, self.steps)
        return tuple(dict.fromkeys(int((part + 0.5) * self.steps / count) for part in range(count)))

    def measures_regime(self, run: Run) -> bool:
        """Whether the regime is measured in this run: under the model's default scale alone."""
        return self.regime_steps > 0 and run.policy == self.baseline

    def described(self) -> dict[str, Any]:
        """The plan as plain values, for plan.json and for comparing plans."""
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
            "regime_steps": self.regime_steps,
            **self.about,
        }


def described(value: Any) -> str:
    """A description of a value that is the same in another process; of tensors, their shapes and sums."""
    import torch

    def of(part: Any) -> str:
        if isinstance(part, torch.Tensor):
            return f"tensor{tuple(part.shape)} of sum {part.double().sum().item():g}"
        if isinstance(part, (list, tuple)):
            return f"[{', '.join(map(of, part))}]"
        return re.sub(r" at 0x[0-9a-f]+", "", repr(part))

    return of(value)
