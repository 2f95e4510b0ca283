"""How a pipeline is loaded: the options of every command that loads one, and what becomes of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from entropy_attn.cli import is_one_of_several
from entropy_attn.cli.parsing import DTYPES, check_choice, check_dtype, parse_device

OFFLOADS = ("model", "sequential")
MODEL_HELP = (
    "'shapes' (the embedded model) or 'shapes:NAME' (one of them by name), a diffusers folder, a Hub id, or a single "
    ".safetensors file."
)
DEVICE_HELP = "auto, cpu, cuda or cuda:INDEX. Without an index, each process of torchrun has its own GPU."
DTYPE_HELP = (
    f"One of {', '.join(DTYPES)}. auto is the dtype in which the checkpoint was published; on a GPU, a 16-bit one."
)
RECORDED = ("variant", "revision", "config", "offload", "vae_tiling", "scheduler", "lora")  # in the output, if given
MAY_CHANGE = ("device", "offload", "vae_tiling")  # between the parts of a profile or an evaluation that is continued


@dataclass(frozen=True)
class Loading:
    """Which pipeline to load, how, and on which device. The fields are options of a command."""

    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "shapes"
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto"
    dtype: Annotated[str, typer.Option(help=DTYPE_HELP)] = "auto"
    variant: Annotated[str | None, typer.Option(help="Variant of the checkpoint's files, such as fp16.")] = None
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None
    config: Annotated[
        str | None, typer.Option(help="For a single file: the diffusers folder or Hub id that has its configuration.")
    ] = None
    offload: Annotated[
        str | None,
        typer.Option(
            help="Keep on the GPU only the model that runs ('model'), or only the layer that runs ('sequential')."
        ),
    ] = None
    vae_tiling: Annotated[
        bool, typer.Option("--vae-tiling", help="Decode images in tiles, which takes less memory.")
    ] = False
    scheduler: Annotated[
        str | None, typer.Option(help="Class name of a diffusers scheduler, such as EulerDiscreteScheduler.")
    ] = None
    lora: Annotated[
        list[str] | None,
        typer.Option(
            help="LoRA file, folder or Hub id, with an optional weight: PATH:0.8. Can be given several times."
        ),
    ] = None

    def load(self, anything: bool = False) -> tuple[Any, dict[str, Any]]:
        """The pipeline, and {"model", "device", "dtype", ...} for the output.

        Args:
            anything: also accept pipelines that take no text, or make videos.
        """
        import torch

        from entropy_attn.integrations.diffusers.target import denoiser_of
        from entropy_attn.pipelines import load_pipeline, quiet_libraries

        check_dtype(self.dtype)
        if self.offload is not None:
            check_choice("--offload", self.offload, OFFLOADS)
        device = parse_device(self.device)
        if self.offload is not None and not device.startswith("cuda"):
            raise ValueError(f"--offload {self.offload}: expected a CUDA device to move weights off, got {device}")
        if device.startswith("cuda") and is_one_of_several():
            torch.cuda.set_device(device)  # else every process also has a context on the first device
        loras = [_lora(text) for text in self.lora or ()]
        quiet_libraries()
        with warnings.catch_warnings():
            # Deprecations inside the libraries are no use to a user of the command line
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", UserWarning)
            pipe = load_pipeline(
                self.model,
                device=device,
                dtype=None if self.dtype == "auto" else getattr(torch, self.dtype),
                variant=self.variant,
                revision=self.revision,
                config=self.config,
                offload=self.offload,
                vae_tiling=self.vae_tiling,
                scheduler=self.scheduler,
                loras=loras,
                anything=anything,
            )
        dtype = str(denoiser_of(pipe).dtype).removeprefix("torch.")
        given = {name: getattr(self, name) for name in RECORDED if getattr(self, name)}
        return pipe, {"model": self.model, "device": device, "dtype": dtype, **given}

    def out_of_memory(self, images: int = 1) -> str:
        """The message for an out-of-memory error: what can still be tried, the cheapest first."""
        ways = []
        if self.dtype == "float32":
            ways.append("--dtype bfloat16 or float16")
        if not self.vae_tiling:
            ways.append("--vae-tiling")
        if images > 1:
            ways.append("fewer prompts")
        if self.offload is None:
            ways.append("--offload model")
        elif self.offload == "model":
            ways.append("--offload sequential, which is slow")
        ways.append("a smaller size")
        return f"out of device memory: try {', then '.join(ways)}"


def _lora(text: str) -> tuple[str, float]:
    """(path, weight) from 'PATH' or 'PATH:WEIGHT'."""
    path, colon, weight = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        return path, float(weight)
    except ValueError:
        raise ValueError(f"--lora: expected PATH, or PATH:WEIGHT such as PATH:0.8, got {text!r}") from None
