"""One routed attention call: the pass of the denoiser that it belongs to, its layer, its arguments, its rows."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from entropy_attn.errors import Unroutable
from entropy_attn.recorders.base import Parts
from entropy_attn.scale import CallInfo, Kind, training_tokens

if TYPE_CHECKING:
    from entropy_attn.routing.shards import Shards
    from entropy_attn.routing.text_rows import TextRows

_training_tokens = functools.lru_cache(maxsize=4096)(training_tokens)  # the same few in every call

# The end of the name of a layer's call that attends to an image prompt, beside the one to the text.
IMAGE_PROMPT = ".image"

# The queries of joint attention that the scale is for: all of them, or those of the image alone.
Rows = Literal["all", "image"]


class AttentionArguments(NamedTuple):
    """The arguments of torch's scaled_dot_product_attention, with its names, order and defaults."""

    query: Tensor  # (B, H, Nq, D)
    key: Tensor  # (B, Hkv, Nk, D)
    value: Tensor  # (B, Hkv, Nk, Dv)
    attn_mask: Tensor | None = None  # broadcasts to (B, H, Nq, Nk)
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | Tensor | None = None
    enable_gqa: bool = False

    def of_rows(self, rows: slice) -> AttentionArguments:
        """The same call for some of its queries."""
        mask = self.attn_mask
        if mask is not None and mask.dim() >= 2 and mask.shape[-2] != 1:
            mask = mask[..., rows, :]
        return self._replace(query=self.query[..., rows, :], attn_mask=mask)

    def of_samples(self, samples: Sequence[int]) -> AttentionArguments:
        """The same call for some of its samples, of (B, H, tokens, D)."""
        if list(samples) == list(range(len(self.query))):
            return self
        mask, scale = self.attn_mask, self.scale
        if mask is not None and mask.dim() == 4 and len(mask) > 1:
            mask = samples_of(mask, samples)
        if isinstance(scale, Tensor) and scale.dim() == 2 and len(scale) > 1:
            scale = samples_of(scale, samples)
        query, key, value = (samples_of(tensor, samples) for tensor in (self.query, self.key, self.value))
        return self._replace(query=query, key=key, value=value, attn_mask=mask, scale=scale)


def samples_of(tensor: Tensor, samples: Sequence[int]) -> Tensor:
    """Some entries of the first dimension; a view where they are in a row."""
    first, number = samples[0], len(samples)
    if list(samples) == list(range(first, first + number)):
        return tensor[first : first + number]
    return tensor[torch.tensor(samples, device=tensor.device)]


class TwoTexts(NamedTuple):
    """How many tokens the two texts of a denoiser call have: the prompt's, and those of the mix that follow it."""

    prompt: int
    own: int

    def split(
        self, layer_call: LayerCall, arguments: AttentionArguments
    ) -> tuple[AttentionArguments, AttentionArguments]:
        """The call with the first text, and with the second, of one whose keys are of both.

        Raises:
            Unroutable: it has other keys.
        """
        keys, mask = arguments.key.shape[-2], arguments.attn_mask
        if keys != self.prompt + self.own:
            reason = (
                f"it attends to {keys} keys, not to the {self.prompt} tokens of the prompt and the {self.own} of the "
                "mix's own text: set one of diffusers' processors"
            )
            raise Unroutable(f"layer {layer_call.layer!r}", [reason])

        def of(start: int, number: int) -> AttentionArguments:
            key, value = arguments.key.narrow(-2, start, number), arguments.value.narrow(-2, start, number)
            part = mask if mask is None or mask.shape[-1] == 1 else mask.narrow(-1, start, number)
            return arguments._replace(key=key, value=value, attn_mask=part)

        return of(0, self.prompt), of(self.prompt, self.own)


class Blocks(NamedTuple):
    """The blocks of a denoiser that have a routed layer, numbered from 0 as the model runs them.

    Attributes:
        of_layer: the number of each layer's block.
        number: how many blocks there are.
    """

    of_layer: Mapping[str, int]
    number: int


@dataclass(frozen=True)
class DenoiserCall:
    """One forward pass of the denoiser.

    Attributes:
        step: denoising step, from 0.
        latent_size: (rows, columns) of the image in latent cells.
        parts: the branches of the batch, for recorders that were not given any.
        image_tokens: number of image tokens that every layer attends to. None for a model whose layers halve the image
            more or less often: there the latent size says it, layer by layer.
        train_tokens: the same number at the training size; None where it differs by layer, or is not known.
        reference_tokens: how many of the image tokens belong to reference images; they come last.
        batch: rows of the latents; None if they are not known.
        timestep: the scheduler's, from 1000 to 0; None unless a policy needs it and it is known.
        sigma: the scheduler's noise level; None unless a policy needs it and it is known.
        num_steps: of the generation; None if it is not known.
        shards: how the tokens are spread over devices; None where one device has all of them.
        texts: where the text of the mix is: behind the prompt's in every row, or in rows behind those of the batch;
            None is nowhere.
    """

    step: int
    latent_size: tuple[int, int]
    parts: Parts = Parts(("all",))  # noqa: RUF009  (immutable)
    image_tokens: int | None = None
    train_tokens: int | None = None
    reference_tokens: int = 0
    batch: int | None = None
    timestep: float | None = None
    sigma: float | None = None
    num_steps: int | None = None
    shards: Shards | None = None
    texts: TwoTexts | TextRows | None = None


@dataclass(frozen=True)
class LayerCall:
    """One attention call of a layer: its kind, and where the text is.

    Attributes:
        layer: the layer's name in the denoiser.
        kind: "self", "cross" or "joint".
        text: where the text is among the keys, and among the queries of joint attention if any is there. None: nowhere.
        sample: index of the one sample of the batch that this call is for; None if it is for all samples.
        samples: number of samples of the batch.
        ragged: the image of each sample follows its text, whatever length that has, and the rest is masked; without a
            mask all texts have the same length. See `LayerRule` of the integration.
    """

    layer: str
    kind: Kind
    text: Literal["first", "last", "all"] | None = None
    sample: int | None = None
    samples: int = 1
    ragged: bool = False


@dataclass(frozen=True)
class LayerSelection:
    """The layers that the scale policy is for: "self" (image tokens among the keys), "cross", "all", or a regex.

    The regex is searched for in the layer's name: "up_blocks", r"attn1$", "^mid_block".
    """

    layers: str | re.Pattern[str] = "self"

    def __post_init__(self) -> None:
        if isinstance(self.layers, re.Pattern):
            return
        if not isinstance(self.layers, str) or not self.layers:
            raise TypeError(f"layers: expected 'self', 'cross', 'all' or a regular expression, got {self.layers!r}")
        if self.pattern is None:
            return
        try:
            re.compile(self.layers)
        except re.error as error:
            raise ValueError(f"layers: expected a regular expression, got {self.layers!r}: {error}") from None

    @property
    def pattern(self) -> str | re.Pattern[str] | None:
        """The regex, or None for one of the three words."""
        return None if self.layers in ("self", "cross", "all") else self.layers

    def __contains__(self, layer: tuple[str, Kind]) -> bool:
        name, kind = layer
        if self.pattern is not None:
            return re.search(self.pattern, name) is not None
        return self.layers == "all" or (kind == "cross") == (self.layers == "cross")

    def takes(self, info: CallInfo) -> bool:
        """Whether the policy is for this call. "self" leaves out text that attends to itself."""
        if self.layers == "self" and info.text_tokens == info.seqlen_k:
            return False
        return (info.layer, info.kind) in self


def describe(
    layer_call: LayerCall,
    seqlen_q: int,
    seqlen_k: int,
    num_heads: int,
    head_dim: int,
    denoiser_call: DenoiserCall | None,
    train_size: tuple[int, int] | None = None,
    halvings: Mapping[str, int] | None = None,
    blocks: Blocks | None = None,
    batch: int | None = None,
    branches: tuple[str, ...] | None = None,
) -> CallInfo:
    """The call as policies and recorders see it.

    denoiser_call: None for a layer that is called by itself; token counts and the step are then not known.
    train_size, halvings, blocks: see `Router`.
    batch, branches: see `CallInfo`.
    """
    train_tokens, text_tokens = None, 0
    if layer_call.text == "all":
        text_tokens = seqlen_k
    elif layer_call.kind != "cross" and denoiser_call is not None:
        image_tokens = denoiser_call.image_tokens
        if layer_call.kind == "joint":
            # In a model whose layers differ, all queries belong to the image.
            text_tokens = seqlen_k - (seqlen_q if image_tokens is None else image_tokens)
        if image_tokens is not None:
            train_tokens = denoiser_call.train_tokens
        elif train_size is not None:
            train_tokens = _training_tokens(
                seqlen_k - text_tokens,
                denoiser_call.latent_size,
                train_size,
                halvings=None if halvings is None else halvings.get(layer_call.layer),
            )
    return CallInfo(
        layer=layer_call.layer,
        kind=layer_call.kind,
        seqlen_q=seqlen_q,
        seqlen_k=seqlen_k,
        num_heads=num_heads,
        head_dim=head_dim,
        train_tokens=train_tokens,
        text_tokens=text_tokens,
        step=denoiser_call.step if denoiser_call is not None else 0,
        reference_tokens=0 if denoiser_call is None or layer_call.kind == "cross" else denoiser_call.reference_tokens,
        text=layer_call.text,
        latent_size=denoiser_call.latent_size if denoiser_call is not None else None,
        timestep=denoiser_call.timestep if denoiser_call is not None else None,
        sigma=denoiser_call.sigma if denoiser_call is not None else None,
        num_steps=denoiser_call.num_steps if denoiser_call is not None else None,
        batch=batch,
        branches=branches,
        block=None if blocks is None else blocks.of_layer.get(layer_call.layer.removesuffix(IMAGE_PROMPT)),
        num_blocks=None if blocks is None else blocks.number,
    )


def rows_of(layer_call: LayerCall, info: CallInfo, shards: Shards | None = None) -> tuple[slice, slice | None]:
    """The queries of the image and those of the text in joint attention; all of them and None otherwise.

    shards: of the queries, among whose part on this device the rows are counted.
    """
    image = info.seqlen_k - info.text_tokens
    text = info.seqlen_q - image
    if layer_call.kind != "joint" or text <= 0:
        return slice(None), None
    if shards is not None:
        image, text = shards.own(image), shards.own(text)
    if layer_call.text == "first":
        return slice(text, text + image), slice(0, text)
    return slice(0, image), slice(image, image + text)


def text_keys_of(layer_call: LayerCall, info: CallInfo, keys: int, shards: Shards) -> slice:
    """The keys of the text among the `keys` of this device."""
    text = shards.own(info.text_tokens)
    return slice(keys - text, keys) if layer_call.text == "last" else slice(0, text)
