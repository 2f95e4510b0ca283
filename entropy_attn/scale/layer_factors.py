"""A factor for each layer and number of tokens, from a file that `entropy-attn profile` wrote."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from entropy_attn.display import Settings
from entropy_attn.scale.call import CallInfo
from entropy_attn.validation import expected, require_number, require_one_of

Factor = float | tuple[float, ...]


@dataclass(frozen=True, repr=False)
class LayerFactors(Settings):
    """Measured factors on the default scale: factor / sqrt(D), looked up by the layer and by its number of tokens.

    A profile writes such a file, hold-entropy.json, with the factors that bring the entropy of each layer back to its
    value at the training size; docs/profile.md says how they are computed. A factor is for the token count that it was
    measured at, so other sizes are refused.

    Args:
        factors: the path of a .json file with an object "factors", or that object: {layer: {N: factor}}, where N is
            the number of image tokens among the keys and a factor is a number, or a list with one number per head.
        missing: "error" raises for a layer that is not among `factors`; "leave" keeps its default scale.

    Raises:
        TypeError: `factors` is neither a path nor such an object.
        ValueError: the file cannot be read, a count is no whole number from 1, a factor is not finite and positive, or
            `missing` is unknown.
    """

    factors: Any
    missing: Literal["error", "leave"] = "error"

    def __post_init__(self) -> None:
        require_one_of("missing", self.missing, ("error", "leave"))
        given = _read(Path(self.factors)) if isinstance(self.factors, (str, Path)) else self.factors
        table = _checked(given)
        pairs = tuple((layer, tuple(by_tokens.items())) for layer, by_tokens in table.items())
        object.__setattr__(self, "factors", pairs)  # compares and hashes by what the file says
        object.__setattr__(self, "_by_tokens", table)

    @property
    def _table(self) -> dict[str, dict[int, Factor]]:
        return vars(self)["_by_tokens"]

    def __repr__(self) -> str:
        digest = zlib.crc32(repr(self.factors).encode())
        left = "" if self.missing == "error" else f", missing={self.missing!r}"
        return f"LayerFactors(<{len(self._table)} layers, {digest:08x}>{left})"

    def __call__(self, info: CallInfo) -> float | torch.Tensor | None:
        """The scale of one call.

        Args:
            info: the attention call.

        Returns:
            The scale, or one per head as a float32 tensor (H,); None for a layer without factors, with
            `missing="leave"`.

        Raises:
            ValueError: there is no factor for the layer or for its token count, or there is one for each head and the
                layer has another number of heads.
        """
        by_tokens = self._table.get(info.layer)
        if by_tokens is None:
            if self.missing == "leave":
                return None
            raise ValueError(
                f"layer: expected one of the {len(self._table)} with factors, such as {next(iter(self._table))!r}, got "
                f"{info.layer!r}; missing='leave' keeps such layers' default scale"
            )
        tokens = info.seqlen_k - (info.text_tokens if info.kind == "joint" else 0)
        factor = by_tokens.get(tokens)
        if factor is None:
            counts = ", ".join(map(str, sorted(by_tokens)))
            raise ValueError(
                f"layer {info.layer!r}: expected {counts} image tokens, for which there are factors, got {tokens}: "
                "profile this size too"
            )
        default = 1.0 / math.sqrt(info.head_dim)
        if not isinstance(factor, tuple):
            return factor * default
        if len(factor) != info.num_heads:
            raise ValueError(f"layer {info.layer!r}: expected {len(factor)} heads, as factors, got {info.num_heads}")
        return torch.tensor(factor, dtype=torch.float32) * default


def _read(path: Path) -> Any:
    if path.suffix != ".json":
        raise ValueError(expected("factors", "a .json file that `entropy-attn profile` wrote", str(path)))
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"factors: cannot read {str(path)!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"factors: expected JSON in {str(path)!r}: {error}") from error
    if not isinstance(found, dict) or "factors" not in found:
        raise ValueError(f"factors: expected an object with the key 'factors' in {str(path)!r}, got none")
    return found["factors"]


def _checked(given: Any) -> dict[str, dict[int, Factor]]:
    table = {
        layer: {_tokens(tokens, layer): _factor(factor, layer) for tokens, factor in _pairs(by_tokens)}
        for layer, by_tokens in _pairs(given)
    }
    if not table or not all(table.values()):
        raise ValueError(expected("factors", "at least one layer with a factor for a token count", given))
    return table


def _pairs(given: Any) -> list[tuple[Any, Any]]:
    pairs: Iterable[Any] = given.items() if isinstance(given, Mapping) else given
    try:
        found = [(name, value) for name, value in pairs]
    except (TypeError, ValueError):
        raise TypeError(expected("factors", "a path, or {layer: {number of tokens: factor}}", given)) from None
    return found


def _tokens(given: Any, layer: Any) -> int:
    """JSON has only strings as keys."""
    tokens = int(given) if isinstance(given, str) and given.isdecimal() else given
    if not isinstance(layer, str):
        raise TypeError(expected("factors", "names of layers", layer))
    if type(tokens) is not int or tokens < 1:
        raise ValueError(expected("factors", f"numbers of tokens of layer {layer!r}, whole and from 1", given))
    return tokens


def _factor(given: Any, layer: str) -> Factor:
    heads = isinstance(given, Sequence) and not isinstance(given, str)
    if heads and not given:
        raise ValueError(expected("factors", f"a number, or one for each head of layer {layer!r}", given))
    for value in given if heads else (given,):
        require_number("factors", value, above=0.0)
    return tuple(map(float, given)) if heads else float(given)
