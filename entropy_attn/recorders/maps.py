"""Where the image attends to the words of the prompt: head-averaged attention maps, kept on the device."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch

from entropy_attn.prompts import TokenSelection
from entropy_attn.recorders.base import Prompt, Request
from entropy_attn.recorders.generations import GenerationRecorder
from entropy_attn.recorders.map_calls import SeenCalls
from entropy_attn.recorders.map_sums import MapSums
from entropy_attn.recorders.recorded_maps import RecordedMaps
from entropy_attn.recorders.token_sides import image_grid
from entropy_attn.scale import CallInfo, token_grid
from entropy_attn.validation import Size, checked_token_size


class MapRecorder(RecordedMaps, GenerationRecorder):
    """Averages the attention maps of chosen words: `ea.apply(pipe, record=recorder)`.

    A map is the softmax probability that each token of the image gives to a token of the text, averaged over the heads,
    over the layers of one size, and over the denoising steps. The mean stays on the device: its memory does not grow
    with steps, layers or heads, and nothing waits for the device until the maps are read. Maps come from the layers
    with text among their keys: cross-attention, and joint attention, where they are for the queries of the image and
    normalized over all keys, image and text, so that their sum over the text is less than 1.

    Several generations are averaged if they share prompts and sizes; otherwise call `reset()` between them.

    Args:
        tokens: words of the prompt, positions in the text (0 is the first), or a mixture. None is every token that is a
            word or a part of one. The map of a word of several tokens, or of one that the prompt has several times, is
            the mean of their maps, as in DAAM (arXiv 2210.04885); several words in a row ("red circle") count as one.
            Stable Diffusion 3 has every word twice, in CLIP's text (the first 77 positions) and in T5's: a word is
            the mean of both. The positions of words are known for pipelines of Stable Diffusion 1, 2, XL and 3, of
            LDM, of Flux and of Lumina 2; for others give positions. A position behind the text of an image, which
            Lumina 2 has in batches of prompts of different lengths, gives a map of NaN.
        size: (rows, columns), in tokens, of the layers to average. None is the size that most cross-attention layers
            have; if several sizes have as many, the one nearest to a quarter of the latent's sides, which is
            (H / 32, W / 32) for an image of H x W pixels in Stable Diffusion. The first step settles it: until then,
            every size is kept.
        steps: denoising steps, from 0, to keep apart from each other; other steps are ignored. Memory grows with their
            number. None is one mean over all steps.
        special: with tokens=None, take all positions of the text, with the start and end marks and the padding.
        all_branches: keep every part of a guided batch, each by itself, instead of the conditional one alone. The words
            of all parts are those of the prompt; a part whose text has another length, as in Lumina 2, has no map.
        prompt: the prompt, or a list of them, for a pipeline that is given embeddings instead.
        branches: names of the equal parts of the denoiser's batch, in order; None finds them out, as in
            `EntropyRecorder`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument has no meaning; the message names it, its value and what is expected.
    """

    def __init__(
        self,
        tokens: str | int | Sequence[str | int] | None = None,
        size: Size | None = None,
        *,
        steps: Iterable[int] | None = None,
        special: bool = False,
        all_branches: bool = False,
        prompt: str | Sequence[str] | None = None,
        branches: tuple[str, ...] | None = None,
    ):
        self.selection = TokenSelection(tokens, special)
        self.size = checked_token_size("size", size)
        super().__init__(self.selection, steps, all_branches, prompt, branches)

    def observe(self, info: CallInfo, latent_size: Size) -> None:
        """Choose the positions, note the properties of the call, and settle the size of the maps.

        Args:
            info: the call.
            latent_size: (rows, columns) of the image in latent cells.

        Raises:
            ValueError: the latents have another size than those whose maps the recorder holds.
        """
        if info.kind == "self" or not info.text_tokens:
            return
        self._seen.steps.add(info.step)
        if self.steps is not None and info.step not in self.steps:
            return
        self._text.observe(info.text_tokens)
        self._seen.lengths.add(info.text_tokens)
        if info.text_tokens != self._text.length:
            return
        self._check_latents(latent_size)
        size = image_grid(info.picture_queries, latent_size)
        if size is None:
            self._seen.misfits[info.picture_queries] = latent_size
        else:
            self._sums.observe(info.layer, size, info.step, latent_size)

    def wants(self, info: CallInfo, latent_size: Size) -> Request:
        """The chosen range of positions, for a call whose map is added.

        Args:
            info: the call.
            latent_size: (rows, columns) of the image in latent cells.

        Returns:
            (start, stop) of the text positions, or None.
        """
        # Keys of another number than the text's are not the text, such as the image of an IP-Adapter.
        if info.kind == "self" or not info.text_tokens or info.text_tokens != self._text.length:
            return None
        if self.steps is not None and info.step not in self.steps:
            return None
        size = image_grid(info.picture_queries, latent_size)
        return self._text.keys() if size is not None and self._sums.wants(size) else None

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
            measured: the map (B, queries, stop - start).
            branches: names of the equal parts of B, in order.
            latent_size: (rows, columns) of the image in latent cells.

        Raises:
            ValueError: the batch or the queries do not fit the call, the text or the maps that the recorder holds.
        """
        generation = self._check_generation(info, len(measured), branches, latent_size)
        size = _grid(info.picture_queries, latent_size)
        for branch, maps in self._kept(generation, measured, branches):
            self._sums.add(size, info.step, branch, maps)

    def check_call(self) -> None:
        """Raise after the first call, rather than after the last, if there will be no map."""
        if self._seen.lengths:
            self._require_recorded()

    def _start(self, prompts: list[Prompt] | None) -> None:
        self._sums = MapSums(self.size, apart=self.steps is not None)
        self._seen = SeenCalls()
        super()._start(prompts)


_grid = functools.lru_cache(maxsize=1024)(token_grid)  # the same few in every call
