"""Train the autoencoder of the second embedded pipeline: one level deeper than the first, starting from its weights.

Half of the batches are canvases of 128 pixels, made of scenes and empty ground. The norms are over the whole image, so
larger images would not decode well without them.
"""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from benchmarks.shapes.transformer.files import rate, save
from benchmarks.shapes.transformer.model import IMAGE_SIZE, vae
from entropy_attn.shapes import MODEL_DIR
from entropy_attn.shapes.scenes import GROUND, scene, to_array

BATCH = 8


def images_of(rng: random.Random, count: int) -> torch.Tensor:
    """Images (count, 3, 64, 64) in -1..1."""
    arrays = [to_array(scene(rng, (IMAGE_SIZE, IMAGE_SIZE))[1]) for _ in range(count)]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def canvases(rng: random.Random, count: int) -> torch.Tensor:
    """Images (count, 3, 128, 128) of four scenes each; about half of the scenes are empty ground."""
    tiles = images_of(rng, 4 * count)
    empty = torch.tensor([rng.random() < 0.5 for _ in range(4 * count)])
    tiles[empty] = (torch.tensor(GROUND).float() / 127.5 - 1.0).view(1, 3, 1, 1)
    tiles = tiles.view(count, 2, 2, 3, IMAGE_SIZE, IMAGE_SIZE)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(count, 3, 2 * IMAGE_SIZE, 2 * IMAGE_SIZE)


def warm_start(model: AutoencoderKL) -> None:
    """Copy the blocks that the first autoencoder has, too; those of its decoder are one level deeper here."""
    old = AutoencoderKL.from_pretrained(MODEL_DIR / "vae", torch_dtype=torch.float32).state_dict()
    old = {
        re.sub(r"^decoder\.up_blocks\.(\d)", lambda m: f"decoder.up_blocks.{int(m[1]) + 1}", name): value
        for name, value in old.items()
    }
    state = model.state_dict()
    model.load_state_dict({n: old[n] if n in old and old[n].shape == v.shape else v for n, v in state.items()})


def train_autoencoder(path: Path, steps: int, log, device: str = "cpu"):
    """The trained model; loaded from `path` if it is complete there, else resumed."""
    model = vae()
    warm_start(model)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
    start = 0
    if path.exists():
        state = torch.load(path, map_location=device)
        model.load_state_dict(state["model"])
        model.register_to_config(scaling_factor=state["scaling_factor"])
        start = state["step"]
        if start < steps:
            optimizer.load_state_dict(state["optimizer"])

    def checkpoint(step: int) -> None:
        with torch.no_grad():
            latents = model.encode(images_of(random.Random(1), 512).to(device)).latent_dist.mean
        model.register_to_config(scaling_factor=float(1.0 / latents.std()))
        save(path, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
                    "scaling_factor": model.config.scaling_factor})  # fmt: skip

    began, running = time.time(), []
    for step in range(start, steps):
        rng = random.Random(f"autoencoder-{step}")
        torch.manual_seed(step)  # a resumed run draws what one that was not stopped draws
        x = (images_of(rng, BATCH) if step % 2 == 0 else canvases(rng, BATCH // 4)).to(device)
        posterior = model.encode(x).latent_dist
        y = model.decode(posterior.sample()).sample
        # Most pixels are ground; the L1 loss keeps the few edges sharp.
        loss = F.l1_loss(y, x) + F.mse_loss(y, x) + 3e-4 * posterior.kl().sum() / x.numel()
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, 1.5e-3)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running.append(loss.item())
        if (step + 1) % 50 == 0:
            log(
                "autoencoder",
                step + 1,
                steps,
                np.mean(running),
                (step + 1 - start) * BATCH / (time.time() - began),
                BATCH,
            )
            running.clear()
        if (step + 1) % 250 == 0:
            checkpoint(step + 1)
    if start < steps:
        checkpoint(steps)
    return model.eval().requires_grad_(False)
