"""The second answer of an attention call, and what comes of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, cast

import torch
from torch import Tensor

from entropy_attn.errors import Unroutable
from entropy_attn.mix import Identity, Mix, Other, OtherScale, OtherText, OwnText
from entropy_attn.ops import api as ops
from entropy_attn.recorders.base import Parts
from entropy_attn.routing.calls import AttentionArguments, LayerCall, LayerSelection, samples_of
from entropy_attn.scale import CallInfo


class Mixing:
    """The mix of a handle, applied to its calls."""

    def __init__(self, mix: Mix):
        if not isinstance(mix, Mix):
            raise TypeError(f"mix: expected an ea.mix.Mix, such as NAG() or SoftPAG(), or None, got {mix!r}")
        self.mix = mix
        self.layers = LayerSelection(mix.layers)

    def other(self, info: CallInfo) -> Other | None:
        """What the second answer of a call is computed from; None for a call with one answer."""
        text_alone = info.kind != "cross" and info.text_tokens == info.seqlen_k
        if text_alone or not self.layers.takes(info) or not self.mix.takes_step(info.step):
            return None
        if info.batch is not None and not self.samples(info.branches, info.batch):
            return None
        other = self.mix.other(info)
        if other is None or isinstance(other, (Identity, OtherScale, OtherText)):
            return other
        if isinstance(other, OwnText):
            if other is self.mix.own_text:
                return other
            raise ValueError(f"other() of mix {self.mix!r}: expected the OwnText of its own_text, got {other!r}")
        raise TypeError(
            f"other() of mix {self.mix!r}: expected Identity(), OtherScale(), OtherText(), own_text or None, got "
            f"{other!r}"
        )

    def samples(self, branches: Sequence[str] | None, batch: int) -> list[int]:
        """Those that are mixed of a batch with these branches; None if they are not known."""
        branch = self.mix.branch
        if branch is None or branches is None:
            return list(range(batch))
        names = (branch, "all") if branch == "cond" else (branch,)
        return [sample for sample, name in enumerate(branches) if name in names]

    def refuse(self, layer_call: LayerCall, reason: str) -> NoReturn:
        """Raise for a call that cannot be answered twice."""
        raise Unroutable(f"layer {layer_call.layer!r}", [f"mix={type(self.mix).__name__}: {reason}"])

    def check(
        self,
        layer_call: LayerCall,
        arguments: AttentionArguments,
        *,
        groups: bool,
        shards: bool,
        other: Other,
        of_own_text: AttentionArguments | None,
    ) -> None:
        """Refuse what is not served, before the first answer is computed.

        of_own_text: the same call with the text of the mix, for all samples or for those that are mixed; None where
            there is none.

        Raises:
            Unroutable: with the remedy.
        """
        if arguments.query.dim() != 4:
            self.refuse(layer_call, f"its query has the shape {tuple(arguments.query.shape)}, no (B, H, Nq, D)")
        if shards:
            self.refuse(layer_call, "its tokens are spread over devices (context parallel); run it on one device")
        if groups:
            self.refuse(layer_call, "its scale policy gives KeyGroups; give another policy, or no mix in this layer")
        if arguments.dropout_p > 0.0:
            self.refuse(layer_call, f"dropout_p={arguments.dropout_p}; attention is mixed without dropout only")
        if arguments.is_causal:
            self.refuse(layer_call, "it is causal; choose other layers")
        if layer_call.ragged and arguments.attn_mask is not None:
            self.refuse(layer_call, "its images begin at different positions; give it prompts of one length")
        if isinstance(other, Identity) and layer_call.kind == "cross":
            self.refuse(layer_call, "its queries are not among its keys, so there is no identity; choose other layers")
        if isinstance(other, OtherText) and layer_call.sample is not None:
            self.refuse(layer_call, "it makes one attention call for each sample, which has one text")
        if isinstance(other, OwnText) and of_own_text is None:
            self.refuse(layer_call, "it attends to no text, so it has no answer for another one; choose other layers")

    def mixed(
        self,
        out: Tensor,
        other: Other,
        layer_call: LayerCall,
        arguments: AttentionArguments,
        info: CallInfo,
        parts: Parts,
        of_own_text: AttentionArguments | None,
    ) -> Tensor:
        """What the layer gets of the first answer `out` of these arguments, with the scale that was used.

        parts: the branches of the batch.
        of_own_text: see `check`; its scale is not used.
        """
        samples = self.samples(info.branches, len(out))
        rows = slice(*info.image_rows)
        mine = arguments.of_rows(rows).of_samples(samples)
        first = samples_of(out, samples)[:, :, rows]
        if isinstance(other, Identity):
            second = self._own_values(mine.value, layer_call, info)
        elif isinstance(other, OtherScale):
            second = _answer(mine._replace(scale=_scale(other, info, samples)))
        elif isinstance(other, OwnText):
            theirs = cast(AttentionArguments, of_own_text).of_rows(rows)
            if len(theirs.query) != len(samples):
                theirs = theirs.of_samples(samples)
            second = _answer(theirs._replace(scale=mine.scale))
        else:
            sources = self._sources(samples, other.branch, parts, layer_call, info)
            second = _answer(_with_text_of(mine, arguments.of_rows(rows).of_samples(sources), layer_call, info))
        found = self.mix.combine(first, second, _with_all_heads(mine.value, info), info)
        if not isinstance(found, Tensor) or found.shape != first.shape or not found.is_floating_point():
            got = f"shape {tuple(found.shape)} and {found.dtype}" if isinstance(found, Tensor) else repr(found)
            raise ValueError(
                f"combine() of mix {self.mix!r} in layer {info.layer!r}: expected a floating-point tensor of shape "
                f"{tuple(first.shape)}, got {got}"
            )
        found = found.to(out.dtype)
        if found.shape == out.shape:
            return found
        result = out.clone()
        result[torch.tensor(samples, device=out.device), :, rows] = found
        return result

    def _own_values(self, value: Tensor, layer_call: LayerCall, info: CallInfo) -> Tensor:
        """The value of each query of the image: its token is among the keys, in the order of the queries."""
        start = info.text_tokens if info.text == "first" else 0
        image = info.seqlen_k - info.text_tokens - info.reference_tokens
        if image != info.picture_queries:
            self.refuse(
                layer_call,
                f"the image has {info.picture_queries} queries and {image} keys, so there is no identity; choose other "
                "layers",
            )
        return _with_all_heads(value[:, :, start : start + image], info)

    def _sources(
        self, samples: Sequence[int], branch: str, parts: Parts, layer_call: LayerCall, info: CallInfo
    ) -> list[int]:
        """For each sample the one of another branch that belongs to it."""
        if info.branches is None:
            self.refuse(layer_call, "its branches are not known; a mix with OtherText has needs_branches = True")
        names, batch = info.branches, len(info.branches)
        if branch not in parts.names or any(names[sample] not in parts.names for sample in samples):
            self.refuse(
                layer_call,
                f"its batch has no samples of the branch {branch!r} beside those that are mixed: it has "
                f"{parts.names or names}. Give a negative prompt and a guidance scale above 1; pipelines that call the "
                "denoiser for one branch after the other are not served",
            )
        there = parts.rows_of(branch, batch)
        return [there[list(parts.rows_of(names[sample], batch)).index(sample)] for sample in samples]


def _with_text_of(
    mine: AttentionArguments, theirs: AttentionArguments, layer_call: LayerCall, info: CallInfo
) -> AttentionArguments:
    """The call with the keys and values of the text, and their mask, of other samples."""
    if layer_call.kind == "cross":
        return mine._replace(key=theirs.key, value=theirs.value, attn_mask=theirs.attn_mask)
    start, stop = cast(tuple[int, int], info.text_keys)

    def exchanged(own: Tensor, other: Tensor, dim: int) -> Tensor:
        parts = (
            own.narrow(dim, 0, start),
            other.narrow(dim, start, stop - start),
            own.narrow(dim, stop, own.shape[dim] - stop),
        )
        return torch.cat(parts, dim=dim)

    mask, other_mask = mine.attn_mask, theirs.attn_mask
    if mask is not None and other_mask is not None and mask.shape[-1] != 1:
        mask = exchanged(mask, other_mask, mask.dim() - 1)
    key, value = exchanged(mine.key, theirs.key, 2), exchanged(mine.value, theirs.value, 2)
    return mine._replace(key=key, value=value, attn_mask=mask)


def _scale(other: OtherScale, info: CallInfo, samples: Sequence[int]) -> float | Tensor:
    scale = other.scale
    if not isinstance(scale, Tensor):
        return float(scale)
    if not scale.is_floating_point() or scale.shape not in ((), (info.num_heads,), (info.batch, info.num_heads)):
        raise ValueError(
            f"scale of OtherScale in layer {info.layer!r}: expected a floating-point tensor of shape (), "
            f"({info.num_heads},) or ({info.batch}, {info.num_heads}), got {scale.dtype} and shape {tuple(scale.shape)}"
        )
    return samples_of(scale, samples) if scale.dim() == 2 else scale


def _with_all_heads(value: Tensor, info: CallInfo) -> Tensor:
    """A value head for each query head."""
    shared = info.num_heads // value.shape[1]
    return value if shared == 1 else value.repeat_interleave(shared, dim=1)


def _answer(arguments: AttentionArguments) -> Tensor:
    scale = arguments.scale
    if isinstance(scale, Tensor):
        arguments = arguments._replace(scale=scale.to(arguments.query.device, non_blocking=True))
    return ops.scaled_dot_product_attention(*arguments)
