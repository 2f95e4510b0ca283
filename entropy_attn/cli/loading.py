"""The options of every command that loads a pipeline, declared once, and what becomes of them."""

from __future__ import annotations

import functools
import inspect
import typing
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

DTYPES = ("auto", "float32", "float16", "bfloat16")
OFFLOADS = ("model", "sequential")
MODEL_HELP = "'shapes' (the embedded model), a diffusers folder, a Hub id, or a single .safetensors file."
DEVICE_HELP = "auto, cpu, cuda or cuda:INDEX."
DTYPE_HELP = f"{', '.join(DTYPES)}; auto is what the checkpoint was published in, and on a GPU no more than 16 bits."


@dataclass(frozen=True)
class Loading:
    """Which pipeline, how loaded, and on what; the fields are the options."""

    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "shapes"
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto"
    dtype: Annotated[str, typer.Option(help=DTYPE_HELP)] = "auto"
    variant: Annotated[str | None, typer.Option(help="Which files of the checkpoint, such as fp16.")] = None
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None
    config: Annotated[
        str | None, typer.Option(help="For a single file: the diffusers folder or Hub id with its configuration.")
    ] = None
    offload: Annotated[
        str | None,
        typer.Option(help="Keep on the GPU only the 'model' that runs, or with 'sequential' only its layer that runs."),
    ] = None
    vae_tiling: Annotated[bool, typer.Option("--vae-tiling", help="Decode pictures in tiles, with less memory.")] = (
        False
    )
    scheduler: Annotated[
        str | None, typer.Option(help="Scheduler by its name in diffusers, such as EulerDiscreteScheduler.")
    ] = None
    lora: Annotated[
        list[str] | None,
        typer.Option(
            help="LoRA file, folder or Hub id, with a weight if wanted: PATH:0.8. May be given several times."
        ),
    ] = None

    def load(self, anything: bool = False) -> tuple[Any, dict[str, Any]]:
        """The pipeline, and how it was loaded; `anything` also takes those without text, or of videos."""
        import torch

        from entropy_attn.cli.options import parse_device
        from entropy_attn.pipelines import load_pipeline, quiet_libraries

        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype {self.dtype!r}: give one of {', '.join(DTYPES)}")
        if self.offload is not None and self.offload not in OFFLOADS:
            raise ValueError(f"--offload {self.offload!r}: give one of {', '.join(OFFLOADS)}")
        device = parse_device(self.device)
        if self.offload is not None and not device.startswith("cuda"):
            raise ValueError(f"--offload {self.offload}: it moves weights off a GPU, and the device is {device}")
        loras = [_lora(text) for text in self.lora or ()]
        quiet_libraries()
        with warnings.catch_warnings():
            # what the libraries below will rename some day is of no use to someone at the command line
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
        from entropy_attn.integrations.diffusers.target import denoiser_of

        dtype = str(denoiser_of(pipe).dtype).removeprefix("torch.")
        given = {name: getattr(self, name) for name in OTHERS if getattr(self, name)}
        return pipe, {"model": self.model, "device": device, "dtype": dtype, **given}

    def out_of_memory(self, pictures: int = 1) -> str:
        """What is left to try, the least costly first; nothing that is set already."""
        ways = []
        if self.dtype == "float32":
            ways.append("--dtype bfloat16 or float16")
        if not self.vae_tiling:
            ways.append("--vae-tiling")
        if pictures > 1:
            ways.append("fewer prompts")
        if self.offload is None:
            ways.append("--offload model")
        elif self.offload == "model":
            ways.append("--offload sequential, which is slow")
        ways.append("a smaller size")
        return f"out of device memory: try {', then '.join(ways)}"


OTHERS = ("variant", "revision", "config", "offload", "vae_tiling", "scheduler", "lora")


def takes_loading(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every option of `Loading`, in the place of its parameter `loading`."""
    hints = typing.get_type_hints(Loading, include_extras=True)
    declared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(Loading)
    ]
    own = typing.get_type_hints(command, include_extras=True)
    own.pop("loading")
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name == "loading":
            parameters += declared
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(annotation=own.get(parameter.name, Any), kind=kind))

    @functools.wraps(command)
    def with_loading(**given: Any) -> None:
        loading = Loading(**{field.name: given.pop(field.name) for field in fields(Loading)})
        command(loading=loading, **given)

    del with_loading.__wrapped__
    with_loading.__signature__ = inspect.Signature(parameters)
    with_loading.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_loading


def _lora(text: str) -> tuple[str, float]:
    """'PATH' or 'PATH:WEIGHT'."""
    path, colon, weight = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        return path, float(weight)
    except ValueError:
        raise ValueError(f"--lora {text!r}: {weight!r} is no weight: give PATH or PATH:0.8") from None
