"""A policy that strengthens the attention of the image to the text in joint attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from entropy_attn.display import Settings
from entropy_attn.scale.call import CallInfo
from entropy_attn.scale.key_groups import KeyGroups
from entropy_attn.validation import require_number


@dataclass(frozen=True)
class TACA(Settings):
    """Temperature-adjusted cross-modal attention: a factor on the logits of image queries and text keys.

    In joint attention the image has many more keys than the text, so the text gets little of the softmax. All other
    logits stay as they are. The factor is for noisy steps, which decide the composition.

    Source: Lv et al., "TACA: Rethinking Cross-Modal Interaction in Multimodal Diffusion Transformers", ICCV 2025, arXiv
    2506.07986, with a factor for timesteps of at least 970 of 1000; github.com/Vchitect/TACA has 1.2 for Flux and
    Stable Diffusion 3.5, at all timesteps. The authors tune the model with it (LoRA) against artifacts; here the factor
    is alone.

    Args:
        factor: on the logits, a number >= 0; above 1 the text gets more weight.
        from_timestep: the least timestep of the scheduler, from 0 to 1000, that the factor is for; None is all.
        scale: the scale of all logits; None is the model's default scale. `Product(LogN(), TACA())` uses a policy.

    Raises:
        TypeError: an argument is no number.
        ValueError: `factor` or `from_timestep` is negative, or a number is not finite.
    """

    factor: float = 1.2
    from_timestep: float | None = 970.0
    scale: float | None = None

    gives_key_groups: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number("factor", self.factor, least=0.0)
        if self.from_timestep is not None:
            require_number("from_timestep", self.from_timestep, least=0.0)
        if self.scale is not None:
            require_number("scale", self.scale)

    @property
    def needs_timestep(self) -> bool:
        """Whether `CallInfo.timestep` is read."""
        return self.from_timestep is not None

    def __call__(self, info: CallInfo) -> KeyGroups | float | None:
        """The key groups of one call.

        Args:
            info: the attention call.

        Returns:
            The factor on the text keys for the queries of the image; `scale` outside of joint attention, and at other
            timesteps.

        Raises:
            ValueError: the timestep is not known.
        """
        text = info.text_keys
        if info.kind != "joint" or text is None or not self._is_noisy(info):
            return self.scale
        return KeyGroups(self.scale, key_scale=[(text, float(self.factor))], key_rows=info.image_rows)

    def _is_noisy(self, info: CallInfo) -> bool:
        if self.from_timestep is None:
            return True
        if info.timestep is None:
            raise ValueError(
                f"from_timestep={self.from_timestep}: the timestep of layer {info.layer!r} is not known; give "
                "Steps(TACA(from_timestep=None), 0, stop), which counts steps"
            )
        return info.timestep >= self.from_timestep
