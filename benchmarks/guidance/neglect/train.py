"""Train a model on which neglect of known kinds remains: the embedded pipeline, changed, and trained for a short time.

    OMP_NUM_THREADS=1 python -m benchmarks.guidance.neglect.train --work runs/neglect --steps 800

- All 24 kinds are trained, none is held out: what is missing in an image is known.
- Captions of two, three or four objects are cut at their end: no padding keys. In half of the examples the end mark is
  masked too, so that the words suffice.
- The cross-attention layers of 8 x 8 and 4 x 4 tokens are silenced: the text reaches the image by maps of 256 tokens.
- It is stopped early. `look.csv` says how many images have every object, for fixed captions.

Every step draws from its own seed, so a run that was stopped resumes as if it had not been; `--steps` can grow.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.common import append_rows, new_parser, positive
from benchmarks.guidance.neglect.captions import OBJECTS, examples, fixed_captions, tokens_of
from benchmarks.guidance.neglect.model import cut_at_caption, silence_coarse
from benchmarks.shapes.transformer.files import save
from entropy_attn.shapes import load_pipeline
from entropy_attn.shapes.checker import check
from entropy_attn.shapes.scenes import Request

GUIDANCE_DROPOUT, END_DROPOUT = 0.1, 0.5
LOOK_SEED = 90  # of the captions that are looked at in training; never reported
FIELDS = ("step", "loss", "seconds", *(f"present {objects}" for objects in OBJECTS))


@torch.no_grad()
def latents_of(pipe: Any, scenes: int, folder: Path) -> dict[int, tuple[Tensor, list[str]]]:
    """{objects: (scaled latents (N, 4, 16, 16), captions)} of the training scenes, computed once."""
    path = folder / f"latents-{scenes}.pt"
    if not path.exists():
        found = {}
        for objects in OBJECTS:
            captions, images = examples(scenes, objects, seed=1)
            chunks = [
                pipe.vae.encode(chunk.float() / 127.5 - 1.0).latent_dist.mean * pipe.vae.config.scaling_factor
                for chunk in tqdm(images.split(100), desc=f"latents, {objects} objects", mininterval=5)
            ]
            found[objects] = (torch.cat(chunks), captions)
        save(path, found)
    return torch.load(path)


def losses(pipe: Any, nets: nn.ModuleDict, latents: Tensor, captions: list[str], objects: int) -> Tensor:
    """The loss of a batch, with times, noise and dropout from torch's generator."""
    batch, length = len(latents), tokens_of(objects)
    ids = pipe.tokenizer(captions, padding="max_length", max_length=length, return_tensors="pt").input_ids
    empty = pipe.tokenizer([""], padding="max_length", max_length=length, return_tensors="pt").input_ids
    dropped = torch.rand(batch, 1) < GUIDANCE_DROPOUT
    keys = torch.ones(batch, length, dtype=torch.bool)
    keys[:, -1] = dropped[:, 0] | (torch.rand(batch) >= END_DROPOUT)
    time_steps = (1000 * torch.rand(batch) ** 0.7).long()  # more at high noise, where kinds and places are decided
    noise = torch.randn_like(latents)
    noisy = pipe.scheduler.add_noise(latents, noise, time_steps)
    text = nets["text_encoder"](torch.where(dropped, empty, ids))[0]
    out = nets["unet"](noisy, time_steps, text, encoder_attention_mask=keys).sample
    return F.mse_loss(out, pipe.scheduler.get_velocity(latents, noise, time_steps))


def look(pipe: Any, requests: dict[int, list[Request]], steps: int = 10, guidance_scale: float = 4.0) -> dict[str, str]:
    """The share of images that have every object, by the number of objects."""
    found = {}
    for objects, each in requests.items():
        cut_at_caption(pipe, objects)
        generators = [torch.Generator().manual_seed(index) for index in range(len(each))]
        images = pipe([r.caption() for r in each], num_inference_steps=steps, guidance_scale=guidance_scale,
                      generator=generators).images  # fmt: skip
        present = sum(check(image, request).presence for image, request in zip(images, each, strict=True))
        found[f"present {objects}"] = f"{present / len(each):.3f}"
    return found


def train(work: Path, steps: int, scenes: int, batch: int, rate: float, ema: float, every: int, looked: int) -> Any:
    """The pipeline with the averaged weights after `steps` steps."""
    work.mkdir(parents=True, exist_ok=True)
    pipe = load_pipeline()
    data = latents_of(pipe, scenes, work)
    silence_coarse(pipe.unet)
    nets = nn.ModuleDict({"unet": pipe.unet, "text_encoder": pipe.text_encoder}).train()
    averaged = torch.optim.swa_utils.AveragedModel(nets, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(ema))
    trained = [parameter for parameter in nets.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.99), weight_decay=0.01)
    path, start = work / "state.pt", 0
    if path.exists():
        state = torch.load(path)
        nets.load_state_dict(state["nets"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    requests = {objects: fixed_captions(looked, objects, LOOK_SEED) for objects in OBJECTS}
    began, running = time.perf_counter(), []
    for step in tqdm(range(start, steps), initial=start, total=steps, mininterval=10):
        torch.manual_seed(step)
        objects = OBJECTS[step % len(OBJECTS)]
        latents, captions = data[objects]
        pick = torch.randint(len(latents), (batch,))
        loss = losses(pipe, nets, latents[pick], [captions[index] for index in pick], objects)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        averaged.update_parameters(nets)
        running.append(loss.item())
        if (step + 1) % every == 0 or step + 1 == steps:
            save(path, {"nets": nets.state_dict(), "averaged": averaged.state_dict(),
                         "optimizer": optimizer.state_dict(), "step": step + 1})  # fmt: skip
            row = {"step": step + 1, "loss": f"{sum(running) / len(running):.5f}"}
            running.clear()
            row["seconds"] = f"{time.perf_counter() - began:.0f}"
            append_rows(work / "look.csv", [row | look(with_weights(pipe, averaged), requests)], FIELDS)
            nets.train()
    return with_weights(pipe, averaged)


def with_weights(pipe: Any, averaged: nn.Module) -> Any:
    """A pipeline with these weights, ready to generate, and the other parts of `pipe`."""
    nets = averaged.module
    parts = {**pipe.components, "unet": nets["unet"].eval(), "text_encoder": nets["text_encoder"].eval()}
    made = type(pipe)(**parts, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the state, the latents and look.csv")
    parser.add_argument("--steps", type=positive, default=800, help="training steps in all (default %(default)s)")
    parser.add_argument("--scenes", type=positive, default=4000, help="of each number of objects (default %(default)s)")
    parser.add_argument("--batch", type=positive, default=32, help="batch size (default %(default)s)")
    parser.add_argument("--lr", type=float, default=5e-4, help="learning rate (default %(default)s)")
    parser.add_argument("--ema", type=float, default=0.99, help="decay of the weight average (default %(default)s)")
    parser.add_argument("--every", type=positive, default=100, help="steps between looks (default %(default)s)")
    parser.add_argument("--looked", type=positive, default=24, help="images of each number of objects in a look")
    parser.add_argument("--export", type=Path, help="write the pipeline to this folder in fp16 at the end")
    args = parser.parse_args()
    pipe = train(args.work, args.steps, args.scenes, args.batch, args.lr, args.ema, args.every, args.looked)
    if args.export:
        pipe.to(torch.float16).save_pretrained(args.export, safe_serialization=True)
        # Also vocab.json and merges.txt, because transformers 4 does not read tokenizer.json here.
        pipe.tokenizer.backend_tokenizer.model.save(str(args.export / "tokenizer"))


if __name__ == "__main__":
    main()
