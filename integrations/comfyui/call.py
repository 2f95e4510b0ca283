"""One call of ComfyUI's attention function: read by name, passed on as it came."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from entropy_attn.routing.calls import AttentionArguments


# Every attention function of comfy/ldm/modules/attention.py has these parameters in this order.
def _attention(
    q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, skip_output_reshape=False, **kwargs
):  # fmt: skip
    raise NotImplementedError


SIGNATURE = inspect.signature(_attention)


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of one call, `func(q, k, v, heads, mask=None, ...)`.

    Only the query can be exchanged. Everything else is passed on as it was given, keyword arguments that are not known
    here too, so `attn_precision`, `skip_output_reshape` and whatever ComfyUI adds keep their meaning.
    """

    bound: inspect.BoundArguments

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AttentionCall:
        """The call func(*args, **kwargs).

        Raises:
            TypeError: the arguments are none of ComfyUI's attention functions.
        """
        return cls(SIGNATURE.bind(*args, **kwargs))

    @property
    def query(self) -> Tensor:
        return self.bound.arguments["q"]

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments beyond the named ones: scale, enable_gqa, transformer_options, ..."""
        return self.bound.arguments.get("kwargs", {})

    @property
    def num_heads(self) -> int:
        return self.bound.arguments["heads"]

    @property
    def head_dim(self) -> int:
        return self.query.shape[-1] if self._heads_apart else self.query.shape[2:].numel() // self.num_heads

    @property
    def seqlen_q(self) -> int:
        return self.query.shape[self._tokens]

    @property
    def seqlen_k(self) -> int:
        return self.bound.arguments["k"].shape[self._tokens]

    @property
    def scale(self) -> float:
        """The factor on the products of queries and keys that the call itself has."""
        given = self.options.get("scale")
        return self.head_dim**-0.5 if given is None else given

    def with_query(self, query: Tensor) -> AttentionCall:
        """The same call with another query of the same shape."""
        arguments = {**self.bound.arguments, "q": query}
        return AttentionCall(inspect.BoundArguments(SIGNATURE, arguments))  # type: ignore[arg-type]

    def arguments(self) -> AttentionArguments:
        """The call as torch's scaled_dot_product_attention has it: (B, H, N, D), views of the same tensors.

        The meaning of a mask of 2 or 3 dimensions is that of ComfyUI's `attention_pytorch`: (Nq, Nk) or (B, Nq, Nk).
        """
        q, k, v = (self.bound.arguments[name] for name in ("q", "k", "v"))
        grouped = bool(self.options.get("enable_gqa", False))
        if not self._heads_apart:
            # Some models, such as Stable Diffusion 3, give (B, N, H, D) for one of the three.
            heads = (-1, self.head_dim) if grouped else (self.num_heads, -1)
            q = q.reshape(*q.shape[:2], self.num_heads, -1).transpose(1, 2)
            k, v = (t.reshape(*t.shape[:2], *heads).transpose(1, 2) for t in (k, v))
        mask = self.bound.arguments.get("mask")
        if mask is not None and mask.ndim == 3:
            mask = mask.unsqueeze(1)
        return AttentionArguments(q, k, v, mask, scale=self.scale, enable_gqa=grouped)

    @property
    def _heads_apart(self) -> bool:
        """Whether tensors are (B, H, N, D); otherwise they are (B, N, H * D)."""
        return bool(self.bound.arguments.get("skip_reshape", False))

    @property
    def _tokens(self) -> int:
        return 2 if self._heads_apart else 1
