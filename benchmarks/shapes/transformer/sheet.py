"""Progress of a model in training: a sheet of samples, and scores of a few fixed captions."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from PIL import Image

from benchmarks.shapes.transformer.model import IMAGE_SIZE, pipeline
from entropy_attn.shapes.checker import check
from entropy_attn.shapes.scenes import training_request


def glance(autoencoder, denoiser, path: Path, captions: int = 48, steps: int = 16) -> str:
    """Write the sheet to `path`; returns a line with presence, exact count and mean count error."""
    rng = random.Random("glance")
    requests = [training_request(rng) for _ in range(captions)]
    pipe = pipeline(autoencoder, denoiser.eval())
    images = pipe([r.caption() for r in requests], height=IMAGE_SIZE, width=IMAGE_SIZE, num_inference_steps=steps,
                  generator=torch.Generator().manual_seed(0)).images  # fmt: skip
    scores = [check(image, request) for image, request in zip(images, requests, strict=True)]
    cell = IMAGE_SIZE + 4
    sheet = Image.new("RGB", (8 * cell, captions // 8 * cell), "black")
    for i, image in enumerate(images):
        sheet.paste(image, (i % 8 * cell + 2, i // 8 * cell + 2))
    sheet.save(path)
    error = sum(abs(len(s.found) - r.total) for s, r in zip(scores, requests, strict=True)) / captions
    presence, count = (sum(getattr(s, name) for s in scores) / captions for name in ("presence", "count"))
    return f"{path.name}: presence {presence:.2f}  exact count {count:.2f}  count error {error:.2f}"
