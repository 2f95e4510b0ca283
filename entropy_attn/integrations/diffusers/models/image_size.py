"""The size of the image that a denoiser is called with, read from its arguments, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True)
class ImageSize:
    """The image, or the video, of one denoiser call.

    size: (rows, columns) in latent cells.
    tokens: what a layer sees of it; None where that differs from layer to layer.
    frames: the length of a video in tokens; 1 for an image.
    references: how many of the last tokens belong to reference images.
    """

    size: tuple[int, int]
    tokens: int | None = None
    frames: int = 1
    references: int = 0


# The arguments of the denoiser's call by name, and its configuration -> ImageSize
ImageReader = Callable[[Mapping[str, Any], Mapping[str, Any]], ImageSize]


def unet(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> ImageSize:
    """(B, C, H, W), halved from layer to layer."""
    return ImageSize(tuple(arguments["sample"].shape[-2:]))


def patches(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> ImageSize:
    """(B, C, H, W), cut into patches."""
    height, width = arguments["hidden_states"].shape[-2:]
    return ImageSize((height, width), tokens_of((height, width), patch_of(config)))


def video(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> ImageSize:
    """(B, C, F, H, W), cut into patches."""
    frames, height, width = arguments["hidden_states"].shape[-3:]
    return _video(frames, height, width, config)


def video_frames_first(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> ImageSize:
    """(B, F, C, H, W), cut into patches."""
    frames, _, height, width = arguments["hidden_states"].shape[-4:]
    return _video(frames, height, width, config)


def padded_list(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> ImageSize:
    """A list of (C, F, H, W), their patches padded to a multiple of 32."""
    shapes = [tuple(image.shape[-3:]) for image in arguments["x"]]
    patch, frame_patch = arguments.get("patch_size", 2), arguments.get("f_patch_size", 1)
    frames, height, width = max(shapes, key=math.prod)
    frames //= frame_patch
    return ImageSize((height, width), padded(frames * tokens_of((height, width), patch)), frames)


def packed_with_ids(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> ImageSize:
    """(B, tokens, C), of 2 x 2 latent cells each; the last columns of the ids are the position of every token.

    Reference images for editing follow with another first id. The ids are read once, because reading waits for the
    device: all calls of a generation get the same ones.
    """
    size, generated = _of_ids(arguments["img_ids"])
    tokens = arguments["hidden_states"].shape[1]
    return ImageSize(size, tokens, references=tokens - generated)


def packed_with_shapes(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> ImageSize:
    """(B, tokens, C), of 2 x 2 latent cells each, with (frames, rows, columns) of each image, generated one first."""
    shapes = arguments["img_shapes"]
    while not isinstance(shapes[0], int):
        shapes = shapes[0]
    tokens = arguments["hidden_states"].shape[1]
    return ImageSize((2 * shapes[1], 2 * shapes[2]), tokens, references=tokens - math.prod(shapes))


def packed_with_size(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> ImageSize:
    """(B, tokens, C) with num_frames, height and width, in latent cells, as arguments."""
    tokens = arguments["hidden_states"].shape[1]
    size = arguments["height"], arguments["width"]
    return ImageSize(size, tokens, tokens // tokens_of(size, patch_of(config)))


def patch_of(config: Mapping[str, Any]) -> int:
    """Side of a token in latent cells."""
    patch = config["patch_size"]
    return patch if isinstance(patch, int) else patch[-1]


def tokens_of(size: tuple[int, int], patch: int) -> int:
    """Tokens of one image or frame of this many latent cells."""
    return (size[0] // patch) * (size[1] // patch)


def padded(tokens: int) -> int:
    return math.ceil(tokens / 32) * 32


def _video(frames: int, height: int, width: int, config: Mapping[str, Any]) -> ImageSize:
    patch = config["patch_size"]
    frame_patch = patch[0] if isinstance(patch, (tuple, list)) else config.get("patch_size_t") or 1
    frames = math.ceil(frames / frame_patch)
    return ImageSize((height, width), frames * tokens_of((height, width), patch_of(config)), frames)


def _of_ids(ids: torch.Tensor) -> tuple[tuple[int, int], int]:
    """Size in latent cells and number of tokens of the image that the ids begin with."""
    if (known := _known_ids.get(ids)) is not None:
        return known
    positions = ids[0] if ids.dim() == 3 else ids
    generated = positions[positions[:, 0] == positions[0, 0]]
    # (…, row, column) with three ids; Flux 2 has a fourth at the end, the position in the text
    rows, columns = generated[:, 1], generated[:, 2]
    low, high = torch.stack([rows.amin(), columns.amin()]), torch.stack([rows.amax(), columns.amax()])
    sides = (2 * (high - low + 1)).tolist()
    found = (int(sides[0]), int(sides[1])), len(generated)
    _known_ids[ids] = found
    return found


_known_ids = WeakTensorKeyDictionary()  # ids -> size and token count
