"""The training set: scaled latents and token ids of scenes, computed in shards when needed, and kept on disk."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from benchmarks.shapes.transformer.files import save
from benchmarks.shapes.transformer.model import IMAGE_SIZE
from entropy_attn.shapes.scenes import scene, to_array

SCENES = 8192  # per shard
SHARDS = 8
EPOCHS = 3  # over a shard before the next one is added
LONGEST = 24  # tokens of a caption, with the start token


class Shards:
    """Random batches; the first steps draw from one shard, later ones from up to eight."""

    def __init__(self, work: Path, autoencoder, tok, device: str):
        self.work, self.autoencoder, self.tok, self.device = work, autoencoder, tok, device
        self.latents, self.ids = [], []

    def batch(self, count: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (count, C, 8, 8) float32 and ids (count, 24), padded with 0."""
        wanted = min(SHARDS, 1 + step * count // (EPOCHS * SCENES))
        while len(self.latents) < wanted:
            self._add(len(self.latents))
        pick = torch.randint(wanted * SCENES, (count,))
        latents = torch.stack([self.latents[i // SCENES][i % SCENES] for i in pick.tolist()]).float()
        return latents, torch.stack([self.ids[i // SCENES][i % SCENES] for i in pick.tolist()]).long()

    def _add(self, index: int) -> None:
        path = self.work / f"latents-{index}.pt"
        if not path.exists():
            save(path, self._made(index))
        state = torch.load(path)
        self.latents.append(state["latents"])
        self.ids.append(state["ids"])

    @torch.no_grad()
    def _made(self, index: int) -> dict:
        rng = random.Random(f"latents-{index}")
        captions, latents = [], []
        for _ in range(SCENES // 128):
            made = [scene(rng, (IMAGE_SIZE, IMAGE_SIZE)) for _ in range(128)]
            captions += [caption for caption, _ in made]
            arrays = torch.from_numpy(np.stack([to_array(image) for _, image in made])).permute(0, 3, 1, 2)
            x = arrays.to(self.device).float() / 127.5 - 1.0
            scale = self.autoencoder.config.scaling_factor
            latents.append((self.autoencoder.encode(x).latent_dist.mean * scale).half().cpu())
        ids = self.tok(captions, padding="max_length", max_length=LONGEST, return_tensors="pt").input_ids
        if int((ids[:, -1] != 0).sum()):
            raise ValueError(
                f"captions: expected fewer than {LONGEST} tokens, got at least {LONGEST}: increase LONGEST"
            )
        return {"latents": torch.cat(latents), "ids": ids.short()}
