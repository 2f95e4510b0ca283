"""Train the embedded text-to-image pipeline from scratch: VAE, latent cache, then UNet and text encoder together.

Every stage resumes where it stopped, and `--steps` can change between runs: the learning rate is constant, and falls to
zero over the last quarter of `--steps`.

    python -m benchmarks.shapes.train --work runs/shapes --steps 6000
    python -m benchmarks.shapes.train --work runs/shapes --steps 6000 --export entropy_attn/shapes/model
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from benchmarks.common import append_rows, new_parser
from benchmarks.shapes.model import IMAGE_SIZE, pipeline, scheduler, text_encoder, tokenizer, unet, vae
from entropy_attn.shapes.scenes import scene, to_array

GUIDANCE_DROPOUT = 0.1
SAMPLE_PROMPTS = (
    "a red circle", "a blue cross", "two green squares", "a yellow triangle and a purple circle",
    "a green cross above a red square", "a cyan circle to the left of a blue triangle",
    "a red circle, a green square and a blue cross", "three yellow triangles",
)  # fmt: skip


def examples(count: int, seed: int) -> tuple[list[str], torch.Tensor]:
    """Captions and images (N, 3, 64, 64) uint8."""
    rng = random.Random(seed)
    captions, arrays = [], np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for i in tqdm(range(count), desc="scenes", mininterval=5):
        caption, image = scene(rng, (IMAGE_SIZE, IMAGE_SIZE))
        captions.append(caption)
        arrays[i] = to_array(image)
    return captions, torch.from_numpy(arrays).permute(0, 3, 1, 2)


def to_model(images: torch.Tensor, device: str) -> torch.Tensor:
    return images.to(device).float() / 127.5 - 1.0


class Log:
    """A CSV file of losses, with a row for every hundred steps."""

    FIELDS = ("stage", "step", "loss", "learning_rate", "seconds")

    def __init__(self, path: Path):
        self.path = path

    def write(self, *values) -> None:
        append_rows(self.path, [dict(zip(self.FIELDS, values, strict=True))], self.FIELDS)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200, decay: float = 0.25) -> float:
    """Warm-up, constant, then linear to zero over the last `decay` of the run."""
    return peak * min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / (decay * steps)))


def save(path: Path, state: dict) -> None:
    """Write a new file, then replace the old one: a run that is stopped here loses nothing."""
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def train_vae(args, log: Log):
    path = args.work / "vae.pt"
    model = vae().to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
    start = 0
    if path.exists():
        state = torch.load(path, map_location=args.device)
        model.load_state_dict(state["model"])
        model.register_to_config(scaling_factor=state["scaling_factor"])
        start = state["step"]
        if start < args.vae_steps:
            optimizer.load_state_dict(state["optimizer"])
    if start >= args.vae_steps:
        return model.eval()
    _, images = examples(8192, seed=1)
    began, running = time.time(), []

    def checkpoint(step: int) -> None:
        with torch.no_grad():
            latents = model.encode(to_model(images[:1024], args.device)).latent_dist.mean
        model.register_to_config(scaling_factor=float(1.0 / latents.std()))
        save(path, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
                    "scaling_factor": model.config.scaling_factor})  # fmt: skip

    for step in tqdm(range(start, args.vae_steps), desc="vae", initial=start, total=args.vae_steps, mininterval=5):
        x = to_model(images[torch.randint(len(images), (32,))], args.device)
        posterior = model.encode(x).latent_dist
        y = model.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / x[0].numel()
        loss = F.l1_loss(y, x) + F.mse_loss(y, x) + 1e-3 * kl
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.vae_steps, 2e-3)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running.append(loss.item())
        if (step + 1) % 100 == 0:
            log.write("vae", step + 1, f"{np.mean(running):.5f}", f"{group['lr']:.2e}", f"{time.time() - began:.0f}")
            running.clear()
        if (step + 1) % args.every == 0:
            checkpoint(step + 1)
    checkpoint(args.vae_steps)
    return model.eval()


@torch.no_grad()
def latent_cache(args, model, tok):
    """Scaled latents (N, 4, 16, 16) and token ids (N, 77) of the training scenes, computed once."""
    path = args.work / f"latents-{args.scenes}.pt"
    if not path.exists():
        captions, images = examples(args.scenes, seed=2)
        latents = torch.cat([
            (model.encode(to_model(chunk, args.device)).latent_dist.mean * model.config.scaling_factor).half().cpu()
            for chunk in tqdm(images.split(256), desc="latents", mininterval=5)
        ])  # fmt: skip
        ids = tok(captions, padding="max_length", max_length=77, return_tensors="pt").input_ids
        save(path, {"latents": latents, "ids": ids})
    state = torch.load(path)
    return state["latents"], state["ids"]


def train_denoiser(args, autoencoder, tok, log: Log):
    latents, ids = latent_cache(args, autoencoder, tok)
    empty = tok([""], padding="max_length", max_length=77, return_tensors="pt").input_ids
    noise_schedule = scheduler()
    nets = torch.nn.ModuleDict({"unet": unet(), "text_encoder": text_encoder(tok)}).to(args.device)
    averaged = torch.optim.swa_utils.AveragedModel(
        nets, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(args.ema), use_buffers=False
    )
    optimizer = torch.optim.AdamW(nets.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    path, start = args.work / "denoiser.pt", 0
    if path.exists():
        state = torch.load(path, map_location=args.device)
        nets.load_state_dict(state["nets"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    nets["unet"].to(memory_format=torch.channels_last)
    began, running = time.time(), []

    def checkpoint(step: int) -> None:
        save(path, {"nets": nets.state_dict(), "averaged": averaged.state_dict(),
                    "optimizer": optimizer.state_dict(), "step": step})  # fmt: skip

    bar = tqdm(range(start, args.steps), desc="denoiser", initial=start, total=args.steps, mininterval=5)
    for step in bar:
        pick = torch.randint(len(latents), (args.batch,))
        x = latents[pick].float().to(args.device)
        tokens = torch.where(torch.rand(args.batch, 1) < GUIDANCE_DROPOUT, empty, ids[pick]).to(args.device)
        # Positions and kinds of objects are decided at high noise, so more samples are drawn there.
        t = (1000 * torch.rand(args.batch, device=args.device) ** 0.7).long()
        noise = torch.randn_like(x)
        noisy = noise_schedule.add_noise(x, noise, t)
        target = noise_schedule.get_velocity(x, noise, t)
        with torch.autocast(torch.device(args.device).type, dtype=torch.bfloat16):
            text = nets["text_encoder"](tokens)[0]
            out = nets["unet"](noisy, t, text).sample
        loss = F.mse_loss(out.float(), target)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(nets.parameters(), 1.0)
        optimizer.step()
        averaged.update_parameters(nets)
        running.append(loss.item())
        if (step + 1) % 100 == 0:
            log.write("denoiser", step + 1, f"{np.mean(running):.5f}", f"{group['lr']:.2e}",
                      f"{time.time() - began:.0f}")  # fmt: skip
            bar.set_postfix(loss=f"{np.mean(running):.4f}", refresh=False)
            running.clear()
        if (step + 1) % args.every == 0:
            checkpoint(step + 1)
            grid(assemble(autoencoder, tok, averaged.module), args.work / f"samples-{step + 1:06d}.png")
            nets.train()
    if start < args.steps:
        checkpoint(args.steps)
    return averaged.module


def assemble(autoencoder, tok, nets):
    """The pipeline with the averaged weights."""
    return pipeline(
        {
            "vae": autoencoder,
            "tokenizer": tok,
            "unet": nets["unet"].eval(),
            "text_encoder": nets["text_encoder"].eval(),
        }
    )


def grid(pipe, path: Path, per_prompt: int = 4) -> None:
    """A sheet of samples: a row for each prompt."""
    images = pipe(list(SAMPLE_PROMPTS), num_images_per_prompt=per_prompt, num_inference_steps=20, guidance_scale=4.0,
                  height=IMAGE_SIZE, width=IMAGE_SIZE, generator=torch.Generator().manual_seed(0)).images  # fmt: skip
    cell = IMAGE_SIZE + 4
    sheet = Image.new("RGB", (per_prompt * cell, len(SAMPLE_PROMPTS) * cell), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % per_prompt * cell, i // per_prompt * cell))
    sheet.save(path)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints, samples and the loss log")
    parser.add_argument("--steps", type=int, default=20_000, help="denoiser steps in all (default %(default)s)")
    parser.add_argument("--vae-steps", type=int, default=1_500, help="VAE steps (default %(default)s)")
    parser.add_argument("--scenes", type=int, default=50_000, help="training scenes (default %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="batch size (default %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (default %(default)s)")
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the weight average (default %(default)s)")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--export", type=Path, help="write the pipeline to this folder in fp16 when training is done")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    log = Log(args.work / "loss.csv")
    tok = tokenizer()
    autoencoder = train_vae(args, log)
    nets = train_denoiser(args, autoencoder, tok, log)
    pipe = assemble(autoencoder, tok, nets)
    grid(pipe, args.work / "samples-final.png")
    if args.export:
        pipe.to(torch.float16).save_pretrained(args.export, safe_serialization=True)
        # Also vocab.json and merges.txt, because transformers 4 does not read tokenizer.json here.
        tok.backend_tokenizer.model.save(str(args.export / "tokenizer"))


if __name__ == "__main__":
    main()
