"""Where the image attends to the words of the prompt, in models with the text of CLIP, Stable Diffusion up to XL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from entropy_attn.prompts import Text, TextPart
from entropy_attn.recorders.maps import MapRecorder

from .chain import Tap, extended
from .families import NAMES, UNET, family_of
from .tracker import Pass

# Keys of what CLIP.tokenize returns. With "l" and "g", as in SDXL, both have the same words at the same positions.
TEXTS = ({"l"}, {"h"}, {"g"}, {"l", "g"})
NO_TOKEN = -1  # the id of a position that holds a textual inversion


class PromptTokens:
    """The tokenizer of a ComfyUI CLIP, called as entropy_attn calls one of transformers.

    The positions are those of ComfyUI: weights as in (word:1.2) are no words, a text of more than 75 tokens is several
    blocks with marks of their own, and a text that is shorter than that of another branch is repeated to its length, as
    ComfyUI's sampler repeats it.

    Args:
        clip: the CLIP.

    Raises:
        ValueError: its text is none of those in `TEXTS`.
    """

    bos_token_id = eos_token_id = cls_token_id = sep_token_id = None  # attention_mask says which positions are words

    def __init__(self, clip: Any):
        names = set(clip.tokenize(""))
        if names not in TEXTS:
            raise ValueError(
                "clip: expected the text encoder of Stable Diffusion 1, 2 or XL, got one whose tokens are "
                f"{', '.join(sorted(names))}"
            )
        self._clip, self._name = clip, "l" if "l" in names else next(iter(names))
        self._words = getattr(clip.tokenizer, f"clip_{self._name}").tokenizer
        self.model_max_length = len(self._blocks("")[0])

    def __call__(
        self,
        text: str,
        padding: Any = False,
        max_length: int | None = None,
        truncation: bool = False,
        add_special_tokens: bool = True,
    ) -> dict[str, list[int]]:
        """{"input_ids", "attention_mask"}; of a word alone without special tokens, of a prompt with a `max_length`.

        Raises:
            ValueError: the layers attend to a text whose length is no multiple of the prompt's.
        """
        if not add_special_tokens:
            ids = list(self._words(text, add_special_tokens=False)["input_ids"])
            return {"input_ids": ids, "attention_mask": [1] * len(ids)}
        positions = [position for block in self._blocks(text) for position in block]
        length = len(positions) if max_length is None else max_length
        if length % len(positions):
            raise ValueError(
                f"text: expected the prompt that the sampler is given, with {length} positions, got one with "
                f"{len(positions)}: {text!r}"
            )
        positions *= length // len(positions)
        ids = [NO_TOKEN if isinstance(token, Tensor) else int(token) for token, _, _ in positions]
        return {
            "input_ids": ids,
            "attention_mask": [
                int(word != 0 and token != NO_TOKEN) for token, (_, _, word) in zip(ids, positions, strict=True)
            ],
        }

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The pieces of words."""
        return self._words.convert_ids_to_tokens(list(ids))

    def decode(self, ids: Sequence[int], clean_up_tokenization_spaces: bool = False) -> str:
        """The text of tokens that are words."""
        return self._words.decode(list(ids), clean_up_tokenization_spaces=clean_up_tokenization_spaces)

    def _blocks(self, text: str) -> list[list[tuple[Any, float, int]]]:
        return self._clip.tokenize(text, return_word_ids=True)[self._name]


class WordMaps(Tap):
    """Maps of the words of one prompt, in the latest sampling of one model.

    Args:
        clip: the CLIP that encodes the prompt.
        text: the prompt.
        words: words of it, or words in a row; empty for every word.

    Raises:
        TypeError: `text` is no string.
        ValueError: the CLIP is of another model, or a word is not in the prompt.
    """

    recorder: MapRecorder

    def __init__(self, clip: Any, text: str, words: Sequence[str]):
        if not isinstance(text, str):
            raise TypeError(f"text: expected the prompt, got {text!r}")
        self.text, self._tokens = text, PromptTokens(clip)
        self._length = len(self._tokens(text)["input_ids"])
        every = Text(text, self._tokens, self._length).words
        if not every:
            raise ValueError(f"text: expected a prompt with words, got {text!r}")
        super().__init__(MapRecorder(tokens=list(words) or list(dict.fromkeys(word.label for word in every))))
        self.begin()  # refuses a word that is not in the prompt
        self.conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        if len(self.conditioning) != 1:
            raise ValueError(f"clip: expected one that encodes a prompt once, got {len(self.conditioning)} encodings")
        self._encoded: Tensor = self.conditioning[0][0]

    def begin(self) -> None:
        self.sampled = False
        self.recorder.reset()
        self.recorder.attach((TextPart(self._tokens, self._length),))
        self.recorder.begin([self.text])

    def check_pass(self, current: Pass) -> None:
        """The conditional rows were made from this prompt.

        Raises:
            ValueError: they were made from another one, or from several.
        """
        conditional = [name for name in current.branches if name.startswith("cond")]
        if current.context is None or "all" in current.branches or len(conditional) > 1:
            raise ValueError(
                f"word maps: expected one conditional prompt in a pass, got the branches {current.branches}"
            )
        if not conditional:
            return
        context = current.context[list(current.parts.rows_of("cond", current.batch))]
        encoded = self._encoded = self._encoded.to(context)
        times, rest = divmod(context.shape[1], encoded.shape[1])
        if rest or not torch.allclose(context, encoded.repeat(1, times, 1).expand_as(context), rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"word maps: expected the sampler's positive prompt to be {self.text!r}; connect the conditioning that "
                "this node gives, or one that the same CLIP makes of the same text"
            )
        if context.shape[1] != self._length and current.step == 0:  # beside a longer negative prompt
            self._length = context.shape[1]
            self.begin()
        self.sampled = True

    def finish_pass(self, current: Pass) -> None:
        if "cond" in current.branches:
            self.recorder.check_call()


def mapped(model: Any, clip: Any, text: str, words: str) -> tuple[Any, Any, WordMaps]:
    """A clone of a ModelPatcher whose maps are recorded, the conditioning of the prompt, and the maps.

    words: separated by commas; empty for every word.

    Raises:
        TypeError, ValueError: as `WordMaps` and `extended`.
    """
    if (family := family_of(model)).name != UNET:
        raise ValueError(f"model: word maps are for {NAMES[UNET]}, got {NAMES[family.name]}")
    maps = WordMaps(clip, text, [word.strip() for word in words.split(",") if word.strip()])
    return extended(model, tap=maps), maps.conditioning, maps


def overlays(maps: WordMaps, images: Tensor, strength: float) -> tuple[Tensor, str]:
    """Every word's map over every image: image after image, word after word.

    Args:
        maps: with a recorded sampling.
        images: (images, height, width, 3), from 0 to 1, as many as were sampled.
        strength: 0 is the image alone, 1 the map alone.

    Returns:
        The overlays, (images * words, height, width, 3), and a table: image, word, its highest and mean probability.

    Raises:
        ValueError: nothing was recorded, or another number of images.
    """
    recorder = maps.recorder
    if not maps.sampled:
        raise ValueError("maps: expected a recorded sampling, got none: sample with the model that Word maps gives")
    images_of_maps = recorder.maps().shape[1]
    if len(images) != images_of_maps:
        raise ValueError(f"images: expected the {images_of_maps} images that were sampled, got {len(images)}")
    drawn, lines = [], ["image,word,highest,mean"]
    for at, image in enumerate(images):
        picture = _picture(image)
        for index, label in enumerate(recorder.labels(at)):
            found = recorder.heat_map(index, picture=at)
            lines.append(f'{at},"{label}",{float(found.max()):.6g},{float(found.mean()):.6g}')
            drawn.append(_tensor(recorder.overlay(picture, index, picture=at, strength=strength)))
    return torch.stack(drawn), "\n".join(lines) + "\n"


def _picture(image: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((image[..., :3].detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def _tensor(picture: Any) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)
