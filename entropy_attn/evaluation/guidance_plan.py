"""What `evaluate guidance` runs: methods and their controls x repetitions x prompts, in parts of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from entropy_attn.evaluation.prompt_sets import PromptSet
from entropy_attn.evaluation.sampling import Arm, Settings, batches
from entropy_attn.guidance import Guidance, RandomDirection
from entropy_attn.profiling.plan import described, size_name
from entropy_attn.runs.folder import slugs
from entropy_attn.validation import expected

OFF, OTHER_SEED, RANDOM, ORACLE = "off", "another seed", "random direction", "oracle map"
SEED_OFFSET = 1_000_000  # of the control "another seed"


@dataclass(frozen=True)
class Part:
    """Images that are made at once: one arm and repetition, consecutive prompts."""

    arm: str
    seed: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class GuidancePlan:
    """What is compared.

    Attributes:
        prompts: one image is made for each, by every arm, in every repetition.
        arms: {name: arm}, from `arms`.
        controls: {name of a method: names of its controls}.
        size: (height, width) in pixels.
        seeds: repetitions.
        settings: what all images have in common.
        batch: images that are made at once.
        about: further facts, which the parts of an evaluation must have in common.

    Raises:
        ValueError: there are fewer than two prompts, no method, no repetition or one twice.
    """

    prompts: PromptSet
    arms: Mapping[str, Arm]
    controls: Mapping[str, Sequence[str]]
    size: tuple[int, int]
    seeds: Sequence[int]
    settings: Settings
    batch: int = 4
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.prompts) < 2:
            raise ValueError(expected("prompts", "at least two, for intervals over them", len(self.prompts)))
        if not self.controls:
            raise ValueError(expected("guidance", "at least one method", list(self.arms)))
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(expected("seeds", "different ones, at least one", list(self.seeds)))

    def parts(self) -> dict[str, Part]:
        """{name of the run: what it makes}, in the order in which they are made.

        All arms of a batch come one after another, so that what an interrupted evaluation has is paired.
        """
        names = slugs(self.arms)
        return {
            f"{names[arm]}-seed{seed}-{batch[0]:06d}": Part(arm, seed, tuple(batch))
            for seed in self.seeds
            for batch in batches(range(len(self.prompts)), self.batch)
            for arm in self.arms
        }

    def arm(self, part: Part) -> Arm:
        """The arm of a part; random directions differ between repetitions."""
        arm = self.arms[part.arm]
        if isinstance(arm.guidance, RandomDirection):
            return replace(arm, guidance=replace(arm.guidance, seed=part.seed))
        return arm

    def is_guided(self, part: Part) -> bool:
        """Whether the images of a part are guided, which takes gradients."""
        return self.arms[part.arm].guidance is not None

    def described(self) -> dict[str, Any]:
        """The plan as plain values, for plan.json and for comparing plans."""
        settings = self.settings
        return {
            "arms": list(self.arms),
            "prompts": self.prompts.texts,
            "objects": [list(item.objects) for item in self.prompts.items],
            "size": size_name(self.size),
            "seeds": list(self.seeds),
            "batch": self.batch,
            "steps": settings.steps,
            "guidance_scale": settings.guidance_scale,
            "negative_prompt": settings.negative_prompt,
            "arguments": {name: described(value) for name, value in settings.arguments.items()},
            **self.about,
        }


def arms(
    methods: Mapping[str, Guidance], oracle: Guidance | None = None
) -> tuple[dict[str, Arm], dict[str, list[str]]]:
    """Every method beside its controls.

    Args:
        methods: {name: guidance}.
        oracle: the oracle map, where there is one.

    Returns:
        {name: arm}: without guidance, the methods, another seed, a random direction for each method, the oracle map;
        and {method: its controls}.

    Raises:
        ValueError: a method has the name of a control.
    """
    taken = next((name for name in methods if name in (OFF, OTHER_SEED, ORACLE)), None)
    if taken is not None:
        raise ValueError(expected("guidance", "a method", taken))
    found = {OFF: Arm(OFF)}
    found |= {name: Arm(name, guidance=guidance) for name, guidance in methods.items()}
    found[OTHER_SEED] = Arm(OTHER_SEED, seed_offset=SEED_OFFSET)
    directions = {name: f"{RANDOM}, {name}" for name in methods}
    for name, control in directions.items():
        found[control] = Arm(control, guidance=RandomDirection(guidance=methods[name]))
    if oracle is not None:
        found[ORACLE] = Arm(ORACLE, guidance=oracle)
    common = [OTHER_SEED] + ([ORACLE] if oracle is not None else [])
    return found, {name: [directions[name], *common] for name in methods}
