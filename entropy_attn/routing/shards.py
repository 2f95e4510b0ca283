"""What the router asks of a sequence whose tokens are spread over devices, each with its part of them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from entropy_attn.ops.api import AttentionOutput
from entropy_attn.routing.calls import AttentionArguments, LayerCall


class Shards(ABC):
    """The spread of one denoiser's tokens. Image and text are spread separately: a device has its part of each.

    Every method is called on all devices alike, since most of them communicate.
    """

    @abstractmethod
    def total(self, tokens: int) -> int:
        """Number of tokens on all devices, of which this one has `tokens`."""

    @abstractmethod
    def own(self, total: int) -> int:
        """Number of tokens that this device has of so many."""

    @abstractmethod
    def whole(self, part: Tensor, dim: int) -> Tensor:
        """The parts of all devices along `dim`, in the order of the tokens; the same on every device.

        A gradient of it that every device has goes to each device's own part.
        """

    @abstractmethod
    def check(self, layer_call: LayerCall, arguments: AttentionArguments) -> None:
        """Refuse a call over the keys of all devices that would be computed wrongly.

        Decided by nothing that differs between the devices, lest one refuse while the others wait for it.

        Raises:
            Unroutable: with the remedy.
        """

    @abstractmethod
    def attention(
        self,
        arguments: AttentionArguments,
        *,
        return_entropy: bool = False,
        text: slice | None = None,
        text_range: tuple[int, int] | None = None,
    ) -> AttentionOutput:
        """Attention of this device's queries over the keys of all devices, as `ops.attention` on one device.

        Args:
            arguments: query, key, value and mask of this device's tokens.
            return_entropy: fill `entropy` of the result, (B, H, own queries).
            text: where the text is among the own keys.
            text_range: positions (start, stop) of the whole text; fills `map` of the result with theirs.
        """

    @abstractmethod
    def response(self, arguments: AttentionArguments) -> Tensor:
        """`ops.response_and_variance` of this device's queries over the keys of all devices, (B, H, own queries, 2)."""
