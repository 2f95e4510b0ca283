"""Maps of single layers and heads, from the image, words or regions to any other of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch

from entropy_attn.prompts import TextPart, TokenSelection
from entropy_attn.recorders.base import Probabilities, Prompt, Request, Tokens
from entropy_attn.recorders.generations import GenerationRecorder
from entropy_attn.recorders.map_sums import RunningSum
from entropy_attn.recorders.recorded_layer_maps import RecordedLayerMaps
from entropy_attn.recorders.token_sides import Side, image_grid
from entropy_attn.scale import CallInfo
from entropy_attn.validation import Size, expected, is_int


class LayerMapRecorder(RecordedLayerMaps, GenerationRecorder):
    """Keeps maps of attention layer by layer, in any direction: `ea.apply(pipe, record=recorder)`.

    A map is the probability that queries (`rows`) give to keys, in the grid of the image, normalized over all keys of
    the layer. At least one side is the image, and the other chooses what there are maps of:

    - `rows="image", keys=("fox", "snow")`: where the image looks at each word, as `MapRecorder` has it, by layer;
    - `rows=("fox", "snow"), keys="image"`: where each word looks in the image, in joint attention;
    - `rows=[(0.3, 0.5)], keys="image"`: where a place of the image looks, in self- and joint attention;
    - `rows="image", keys=[(0, 0, 0.5, 1)]`: which places look into a box;
    - `rows="image", keys="image"`: how much attention each place receives, the sum of its column over all queries of
      the image. In self-attention its mean is 1.

    Words of several tokens, and regions, are the mean over their tokens, of rows and of keys. Each call of a layer
    returns its log-sum-exp too, from which a map follows by the products of the chosen queries, keys and heads alone.
    The mean over the denoising steps stays on the device: one float32 for each layer, image, head, word or region and
    place.

    With reference images, in Flux Kontext or Qwen-Image-Edit, rows and maps are of the generated image alone.
    DeepFloyd IF and layers of cross-attention have no rows of text. In Lumina 2, a position behind the text of its
    sample is NaN. Layers are refused whose tokens are spread over devices (context parallelism).

    Source of the four blocks of joint attention, and of layers that align words with regions: Kim et al., "Seg4Diff:
    Unveiling Open-Vocabulary Segmentation in Text-to-Image Diffusion Transformers", arXiv 2509.18096.

    Args:
        rows: the queries: "image" for each token of it, "text" for every token that is a word, words of the prompt or
            positions in the text as in `MapRecorder`, or a list of regions of the image: points (x, y) and boxes
            (left, top, right, bottom) in fractions of its width and height, and masks, tensors (rows, columns) of any
            size that are not 0 inside. A word that is named "image" or "text" is given as ("image",).
        keys: the keys, in the same forms.
        heads: None for the mean over all heads, "each" for every one by itself, or the numbers of some, from 0.
        layers: a regular expression that is searched for in the names of layers; None is every layer that has these
            rows and keys.
        steps: denoising steps, from 0, to keep apart from each other; other steps are ignored. None is one mean over
            all steps.
        all_branches: keep every part of a guided batch, each by itself, instead of the conditional one alone.
        prompt: the prompt, or a list of them, for a pipeline that is given embeddings instead.
        branches: names of the equal parts of the denoiser's batch, in order; None finds them out, as in
            `EntropyRecorder`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument has no meaning; the message names it, its value and what is expected.
    """

    def __init__(
        self,
        rows: Any,
        keys: Any,
        *,
        heads: Literal["each"] | Sequence[int] | None = None,
        layers: str | re.Pattern[str] | None = None,
        steps: Iterable[int] | None = None,
        all_branches: bool = False,
        prompt: str | Sequence[str] | None = None,
        branches: tuple[str, ...] | None = None,
    ):
        self._rows, self._keys = Side("rows", rows), Side("keys", keys)
        if "image" not in (self._rows.kind, self._keys.kind):
            raise ValueError(f"rows, keys: expected 'image' for at least one of them, got {rows!r} and {keys!r}")
        self.heads = _checked_heads(heads)
        self.pattern = _checked_pattern(layers)
        self._groups = self._keys if self._rows.kind == "image" else self._rows
        # Regions are of no word, but belong to a generation all the same.
        selection = self._groups.selection or TokenSelection(None, special=True)
        super().__init__(selection, steps, all_branches, prompt, branches)

    def attach(self, parts: tuple[TextPart, ...]) -> None:
        """`apply` was called with this recorder.

        Args:
            parts: the parts of the text that layers attend to, one for each tokenizer.

        Raises:
            ValueError: words were chosen, and where they are in the text is not known.
        """
        if self._groups.selection is not None and self._groups.selection.needs_text:
            if not any(part.tokenizer is not None for part in parts):
                raise ValueError(
                    f"{self._groups.name}={self._groups.given!r}: words need the pipeline's tokenizer; there is none, "
                    f"or the positions of its words are not known: give positions, as in {self._groups.name}=(2, 5)"
                )
        super().attach(parts)

    def observe(self, info: CallInfo, latent_size: Size) -> None:
        """Choose the positions, and note the layer and its size.

        Args:
            info: the call.
            latent_size: (rows, columns) of the image in latent cells.

        Raises:
            ValueError: the latents have another size than those whose maps the recorder holds, or the layer has fewer
                heads than were chosen.
        """
        self._seen_steps.add(info.step)
        if not self._asks(info):
            return
        self._check_latents(latent_size)
        if (missing := self._missing(info, latent_size)) is not None:
            self._missed[info.layer] = missing
            return
        if self._groups.kind == "text":
            with self._groups.naming():
                self._text.observe(info.text_tokens)
            if info.text_tokens != self._text.length:
                self._missed[info.layer] = f"its text has {info.text_tokens} positions, not {self._text.length}"
                return
        if isinstance(self.heads, tuple) and max(self.heads) >= info.num_heads:
            raise ValueError(
                f"heads: layer {info.layer!r} has the heads 0 to {info.num_heads - 1}, got {self.heads!r}; choose "
                "others, or layers=..."
            )
        self._grids[info.layer] = self._grid(info, latent_size)

    def wants(self, info: CallInfo, latent_size: Size) -> Request:
        """The chosen rows and keys, for a call whose map is added.

        Args:
            info: the call.
            latent_size: (rows, columns) of the image in latent cells.

        Returns:
            The request, or None.
        """
        if not self._asks(info) or self._missing(info, latent_size) is not None:
            return None
        if self._groups.kind == "text" and info.text_tokens != self._text.length:
            return None
        heads = tuple(range(info.num_heads)) if self.heads == "each" else self.heads
        rows, keys = (self._tokens(side, info, latent_size) for side in (self._rows, self._keys))
        return Probabilities(rows, keys, heads)

    @torch.no_grad()
    def record(
        self,
        info: CallInfo,
        scale: float | torch.Tensor,
        measured: torch.Tensor,
        branches: tuple[str, ...],
        latent_size: Size,
    ) -> None:
        """Add the map of one call, without waiting for the device.

        Args:
            info: the call.
            scale: the softmax scale that was used; not recorded.
            measured: the probabilities (B, heads or 1, rows, keys).
            branches: names of the equal parts of B, in order.
            latent_size: (rows, columns) of the image in latent cells.

        Raises:
            ValueError: the batch does not fit the call, the text or the maps that the recorder holds.
        """
        of_text = self._groups.kind == "text"
        generation = self._check_generation(info, len(measured), branches, latent_size, of_text)
        if self._rows.kind == "image" and self._keys.kind != "image":
            measured = measured.mT  # words or regions before places
        for grid, weights in self._weights.items():  # later calls need not wait for them
            self._weights[grid] = weights.to(measured.device)
        step = None if self.steps is None else info.step
        for branch, maps in self._kept(generation, measured, branches):
            held = self._sums.get((info.layer, step, branch))
            if held is None:
                self._sums[info.layer, step, branch] = RunningSum(maps)
            else:
                held.add(maps)

    def check_call(self) -> None:
        """Raise after the first call, rather than after the last, if there will be no map.

        Raises:
            ValueError: no layer has the chosen rows and keys.
        """
        if self._seen_steps and not self._grids and (self.steps is None or self._seen_steps & self.steps):
            raise ValueError(self._why_no_maps())

    def _start(self, prompts: list[Prompt] | None) -> None:
        self._sums = {}
        self._grids = {}
        self._missed = {}
        self._seen_steps = set()
        self._weights: dict[Size, torch.Tensor] = {}
        with self._groups.naming():
            super()._start(prompts)

    def _asks(self, info: CallInfo) -> bool:
        """Whether the layer and the step are among the chosen ones."""
        if self.pattern is not None and re.search(self.pattern, info.layer) is None:
            return False
        return self.steps is None or info.step in self.steps

    def _missing(self, info: CallInfo, latent_size: Size) -> str | None:
        """Why a call has none of the chosen rows and keys; None if it has them."""
        if info.text == "all" and info.kind != "cross":
            return "its text attends to itself"
        for side in (self._rows, self._keys):
            if side.kind == "text":
                if info.kind == "self" or info.text is None or not info.text_tokens:
                    return f"it has no {side.name} of text"
                if side.name == "rows" and (info.kind != "joint" or info.seqlen_q != info.seqlen_k):
                    return "it has no rows of text, which is attended to and does not attend"
                continue
            count = info.picture_queries if side.name == "rows" else info.picture_keys
            if not count:
                return f"it has no {side.name} of the image"
            if image_grid(count, latent_size) is None:
                return (
                    f"its {count} {side.name} are no image for latents of {latent_size}, as with merged or padded "
                    "tokens and in video"
                )
        return None

    def _grid(self, info: CallInfo, latent_size: Size) -> Size:
        """(rows, columns) of the map."""
        side = self._keys if self._keys.kind == "image" else self._rows
        grid = image_grid(info.picture_keys if side.name == "keys" else info.picture_queries, latent_size)
        assert grid is not None  # or something would be missing
        return grid

    def _tokens(self, side: Side, info: CallInfo, latent_size: Size) -> Tokens:
        if side.kind == "text":
            return Tokens("text", self._text.chosen())
        columns = side.name == "rows" and self._keys.kind == "image"  # whose sums are taken
        if side.kind == "image" and not columns:
            return Tokens("image")
        grid = image_grid(info.picture_queries if side.name == "rows" else info.picture_keys, latent_size)
        assert grid is not None  # or something would be missing
        if grid not in self._weights:
            self._weights[grid] = torch.ones(1, math.prod(grid)) if side.kind == "image" else side.weights(grid)
        return Tokens("image", weights=self._weights[grid])


def _checked_heads(heads: Any) -> Literal["each"] | tuple[int, ...] | None:
    what = "None, 'each', or numbers of heads from 0, each once"
    if heads is None or (isinstance(heads, str) and heads == "each"):
        return None if heads is None else "each"
    if isinstance(heads, str) or not isinstance(heads, (tuple, list, range)):
        raise TypeError(expected("heads", what, heads))
    if not all(is_int(head) and head >= 0 for head in heads) or not heads or len(set(heads)) < len(heads):
        raise ValueError(expected("heads", what, heads))
    return tuple(int(head) for head in heads)


def _checked_pattern(layers: Any) -> str | re.Pattern[str] | None:
    if layers is None or isinstance(layers, re.Pattern):
        return layers
    if not isinstance(layers, str) or not layers:
        raise TypeError(expected("layers", "None or a regular expression", layers))
    try:
        re.compile(layers)
    except re.error as error:
        raise ValueError(f"{expected('layers', 'a regular expression', layers)}: {error}") from None
    return layers
