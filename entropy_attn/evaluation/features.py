"""Features of images by a network that the user has, and the features of a folder of real images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from entropy_attn.validation import expected, require_int

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SIDE = 299  # the input of Inception-v3


class Features:
    """A feature network in a file: TorchScript, or a program of torch.export (.pt2) with a free batch size.

    It takes (B, 3, side, side) uint8 from 0 to 255 and returns (B, D); trailing dimensions of size 1 are dropped, and
    of a tuple the first is taken. `return_features=True` is passed where the network has this argument, as the
    Inception of StyleGAN's metrics has.

    Args:
        path: the file.
        device: where it runs.
        side: all images are resized to this square first, with antialiasing.

    Raises:
        ValueError: the file is missing, or is neither.
    """

    def __init__(self, path: str | Path, device: str = "cpu", side: int = SIDE):
        require_int("side", side, 8)
        self.path, self.device, self.side = Path(path), device, side
        if not self.path.is_file():
            raise ValueError(expected("features", "a TorchScript file, or a .pt2 file of torch.export", str(path)))
        self.network, self.options = _load(self.path, device)

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Features (n, D) float32.

        Raises:
            ValueError: the network fails on these images, or returns something other than (n, D).
        """
        pixels = np.stack([resized(image, self.side) for image in images])
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(self.device)
        try:
            with torch.inference_mode():
                found = self.network(batch, **self.options)
        except (RuntimeError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"features: expected a network that takes {tuple(batch.shape)} uint8 from 0 to 255, got "
                f"{str(self.path)!r}, which fails: {reason}"
            ) from error
        found = found[0] if isinstance(found, (tuple, list)) else found
        if found.ndim > 2 and found[0].numel() == found.shape[1]:
            found = found.flatten(1)
        if found.ndim != 2 or len(found) != len(images):
            raise ValueError(expected("features", f"({len(images)}, D) from the network", tuple(found.shape)))
        return np.asarray(found.float().cpu())

    def described(self) -> dict[str, Any]:
        """What decides the features: the content of the file and the size, for plan.json."""
        return {"features": self.path.name, "features_sha256": file_hash(self.path), "side": self.side}


def _load(path: Path, device: str) -> tuple[Any, dict[str, Any]]:
    try:
        if path.suffix == ".pt2":
            return torch.export.load(path).module().to(device), {}
        network = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"features: expected a TorchScript file, or a .pt2 file of torch.export, got {str(path)!r}; of a network "
            "in Python, torch.jit.trace(network, images).save(path) writes one"
        ) from error
    arguments = [argument.name for argument in network.forward.schema.arguments]
    return network, {"return_features": True} if "return_features" in arguments else {}


def resized(image: Image.Image, side: int) -> np.ndarray:
    """(side, side, 3) uint8, by PIL's bicubic filter, which antialiases where it makes smaller."""
    image = image.convert("RGB")
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


def real_files(folder: str | Path) -> list[Path]:
    """The images in a folder and below, sorted.

    Raises:
        ValueError: there are fewer than two.
    """
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(found) < 2:
        raise ValueError(expected("real", f"a folder with images ({', '.join(SUFFIXES)})", str(folder)))
    return found


def open_image(path: Path) -> Image.Image:
    """An image in memory, in RGB.

    Raises:
        ValueError: the file is no image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ValueError(f"real: expected an image, got {str(path)!r}: {error}") from error


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def names_hash(files: Sequence[Path], folder: Path) -> str:
    """The same for the same names and lengths of files."""
    text = "\n".join(f"{path.relative_to(folder)} {path.stat().st_size}" for path in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
