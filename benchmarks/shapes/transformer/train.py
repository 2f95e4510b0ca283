"""Train the transformer of the second embedded pipeline, on a CPU in the background.

Stages: autoencoder, latents of the training scenes, transformer. The same command resumes where the last one stopped,
and ends with the weights that it would have had without a stop; Ctrl-C and kill -TERM finish the step and write a
checkpoint first. `--steps` can change between runs: the learning rate is constant, and falls to zero over the last part
of `--steps`.

    python -m benchmarks.shapes.transformer.train --work runs/transformer --steps 8000
    python -m benchmarks.shapes.transformer.train --work runs/more --from-state runs/state
"""

from __future__ import annotations

import argparse
import random
import signal
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.common import new_parser
from benchmarks.shapes.transformer.autoencoder import train_autoencoder
from benchmarks.shapes.transformer.fast import accelerate
from benchmarks.shapes.transformer.files import Log, load_state, rate, save, stop_requests
from benchmarks.shapes.transformer.latents import Shards
from benchmarks.shapes.transformer.model import AXES, HEAD_DIM, text_encoder, tokenizer, transformer
from benchmarks.shapes.transformer.optimizer import Muon, split
from benchmarks.shapes.transformer.positions import randomize
from benchmarks.shapes.transformer.sheet import glance

EMPTY = 0.1  # share of captions dropped, for guidance
ALLOWED_GRADIENT = 1.0


class Words:
    """Token ids to word vectors and mask, cut after the longest caption of the batch."""

    def __init__(self, tok, device: str):
        self.table = text_encoder(len(tok))
        self.device = device

    @torch.no_grad()
    def __call__(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mask = (ids != 0).long()
        cut = int(mask.sum(1).max())
        ids, mask = ids[:, :cut], mask[:, :cut]
        states = self.table(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
        return states.to(self.device), mask.to(self.device)


def train(args, autoencoder, log: Log):
    """The transformer, resumed from its checkpoint or from a committed state; returns the averaged weights."""
    tok = tokenizer()
    words, shards = Words(tok, args.device), Shards(args.work, autoencoder, tok, args.device)
    net, averaged = (
        transformer(args.width, args.layers, head_dim=args.head_dim).to(args.device) for _ in ("net", "averaged")
    )
    averaged.load_state_dict(net.state_dict())
    hidden, rest = split(net)
    optimizers = (Muon(hidden, args.muon_lr), torch.optim.AdamW(rest, args.lr, betas=(0.9, 0.98), weight_decay=0.01))
    path, start = args.work / "transformer.pt", 0
    if path.exists():
        state = torch.load(path, map_location=args.device)
        for optimizer, saved in zip(optimizers, state["optimizers"] or (), strict=bool(state["optimizers"])):
            optimizer.load_state_dict(saved)
    elif args.from_state:
        state = load_state(args.from_state)
    else:
        state = None
    if state is not None:
        net.load_state_dict(state["net"])
        averaged.load_state_dict(state["averaged"])
        start = state["step"]
    accelerate(net)
    if args.spread:
        randomize(net, args.spread, args.extent)

    def checkpoint(step: int) -> None:
        save(path, {"net": net.state_dict(), "averaged": averaged.state_dict(), "step": step,
                    "optimizers": [o.state_dict() for o in optimizers]})  # fmt: skip

    peaks = (args.muon_lr, args.lr)
    running, began, since = [], time.time(), start
    with stop_requests() as stop:
        for step in range(start, args.steps):
            torch.manual_seed(step)
            x, ids = shards.batch(args.batch, step)
            x = x.to(args.device)
            ids[torch.rand(len(ids)) < EMPTY, 1:] = 0
            states, mask = words(ids)
            # Positions and kinds of objects are decided at high noise, so more samples are drawn there. In this
            # model, time runs from noise (0) to image (1).
            t = 1 - torch.rand(len(x), device=args.device) ** args.noise_power
            noise = torch.randn_like(x)
            mixed = torch.lerp(noise, x, t.view(-1, 1, 1, 1))
            out = net(mixed, t, states, mask).sample
            loss = F.mse_loss(out, x - noise)
            for optimizer, peak in zip(optimizers, peaks, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate(step, args.steps, peak)
                optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), ALLOWED_GRADIENT)
            for optimizer in optimizers:
                optimizer.step()
            keep = min(args.ema, (step + 1) / (step + 10))
            with torch.no_grad():
                for mean, now in zip(averaged.parameters(), net.parameters(), strict=True):
                    mean.lerp_(now, 1 - keep)
            running.append(loss.item())
            done = step + 1
            if done % 50 == 0:
                speed = (done - since) * args.batch / (time.time() - began)
                log("transformer", done, args.steps, float(np.mean(running)), speed, args.batch)
                running, began, since = [], time.time(), done
            if done % args.every == 0 or done == args.steps:
                checkpoint(done)
            if done % args.look == 0 or done == args.steps:
                print(glance(autoencoder, averaged, args.work / f"samples-{done:06d}.png"), flush=True)
            if stop.requested:
                checkpoint(done)
                print(f"stopped at step {done}; the same command continues from there", flush=True)
                raise SystemExit(130)
    return averaged


def parser() -> argparse.ArgumentParser:
    options = new_parser(__doc__)
    options.add_argument("--work", type=Path, required=True, help="folder of checkpoints, sample sheets and loss.csv")
    options.add_argument("--steps", type=int, default=8000, help="steps in all (default %(default)s)")
    options.add_argument("--autoencoder-steps", type=int, default=1500, help="default %(default)s")
    options.add_argument("--width", type=int, default=192, help="multiple of --head-dim (default %(default)s)")
    options.add_argument("--head-dim", type=int, default=HEAD_DIM, choices=list(AXES), help="default %(default)s")
    options.add_argument("--layers", type=int, default=6, help="joint blocks (default %(default)s)")
    options.add_argument("--batch", type=int, default=64, help="default %(default)s")
    options.add_argument("--lr", type=float, default=2e-3, help="peak of AdamW (default %(default)s)")
    options.add_argument("--muon-lr", type=float, default=0.01, help="peak of Muon (default %(default)s)")
    options.add_argument("--ema", type=float, default=0.998, help="decay of the weight average (default %(default)s)")
    options.add_argument(
        "--noise-power", type=float, default=0.75, help="noise level = u ** this (default %(default)s)"
    )
    options.add_argument(
        "--spread", type=float, default=0.0, help="share of images with randomized positions (default %(default)s)"
    )
    options.add_argument(
        "--extent", type=int, default=24, help="tokens a side that --spread covers (default %(default)s)"
    )
    options.add_argument("--every", type=int, default=100, help="steps between checkpoints (default %(default)s)")
    options.add_argument("--look", type=int, default=500, help="steps between sample sheets (default %(default)s)")
    options.add_argument("--from-state", type=Path, help="start from these fp16 weights if --work has no checkpoint")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return options


def main() -> None:
    args = parser().parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    torch.manual_seed(0)
    random.seed(0)
    log = Log(args.work / "loss.csv")
    path = args.work / "autoencoder.pt"
    if args.from_state and not path.exists():
        save(path, torch.load(args.from_state / "autoencoder.pt"))
    try:
        autoencoder = train_autoencoder(path, args.autoencoder_steps, log, args.device)
        train(args, autoencoder, log)
    except KeyboardInterrupt:  # in the autoencoder, which has written its checkpoints
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
