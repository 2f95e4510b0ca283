"""What the commands share: reading option values, refusing bad ones, and loading the pipeline that they name."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from entropy_attn.cli import Refused
from entropy_attn.cli.loading import DEVICE_HELP, DTYPES, MODEL_HELP, Loading
from entropy_attn.cli.seeds import check_seed

__all__ = [
    "DEVICE_HELP",
    "DTYPES",
    "GUIDANCE_HELP",
    "MODEL_HELP",
    "SCALE_HELP",
    "SIZE_HELP",
    "Size",
    "check_at_least",
    "check_prompts",
    "guidance",
    "load",
    "output_folder",
    "output_picture",
    "output_table",
    "parse_arguments",
    "parse_device",
    "parse_guidance",
    "parse_list",
    "parse_scale",
    "parse_seeds",
    "parse_size",
    "refusals",
    "versions",
]

Size = tuple[int, int]

SHAPES_GUIDANCE = 4.0  # what the embedded model is evaluated with; the pipeline's own default is 7.5
SIZE_HELP = "one number for a square, or HEIGHTxWIDTH"
SCALE_HELP = (
    "'off' (1/sqrt(d)), 'logn' (sqrt(log_T N / d)), 'lognoroot', 'power', 'yarn', 'constant' or 'adaptive' (per head), "
    "with options: 'logn:strength=0.5:direction=up', 'power:p=0.25:clamp=0.8..1.5', "
    "'adaptive:profile=entropy.csv:policy=off'; each for some steps or layers alone: "
    "'yarn:steps=0..10', 'logn:layers=up_blocks'"
)

GUIDANCE_HELP = (
    "'tsam' (text self-attention maps) or with options: 'tsam:alpha=10:variant=paper', "
    "'tsam:steps=0..12:refine_at=0+10' (12 steps, refined at two of them); off by default"
)


@contextlib.contextmanager
def refusals(loading: Loading | None = None, pictures: int = 1) -> Iterator[None]:
    """Turn what the library refuses into the one-line error; anything else is a bug and keeps its traceback.

    Its warnings become lines of the same kind. How the pipeline was loaded, and how many pictures are made at once, say
    what to try where memory runs out.
    """
    import torch

    from entropy_attn import Unsupported

    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"entropy-attn: warning: {message}", file=sys.stderr)
            yield
    except (ValueError, Unsupported) as error:
        raise Refused(str(error)) from error
    except ImportError as error:
        if "pip install" in str(error):
            raise Refused(str(error)) from error
        if not isinstance(error, ModuleNotFoundError) or (error.name or "").startswith("entropy_attn"):
            raise
        raise Refused(f"this needs {error.name}: pip install 'entropy-attn[cli,diffusers]'") from error
    except torch.OutOfMemoryError as error:
        raise Refused((loading or Loading()).out_of_memory(pictures)) from error


def parse_size(text: str, name: str = "size") -> Size:
    found = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text.strip())
    if not found:
        raise ValueError(f"{name} {text!r}: give {SIZE_HELP}, such as 64 or 48x96")
    height = int(found[1])
    return height, int(found[2]) if found[2] else height


def parse_list(option: str, text: str) -> list[str]:
    """Split at commas; an empty list or a repeated entry is refused."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ValueError(f"{option} {text!r}: at least one value is needed")
    repeated = next((part for part in parts if parts.count(part) > 1), None)
    if repeated is not None:
        raise ValueError(f"{option}: {repeated!r} is given twice")
    return parts


def parse_seeds(text: str) -> list[int]:
    parts = parse_list("--seeds", text)
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--seeds {text!r}: give whole numbers from 0, such as 0,1,2")
    return [check_seed("--seeds", int(part)) for part in parts]


def parse_scale(text: str) -> Any:
    """'off', 'logn:strength=0.5' and the like to a scale policy."""
    from entropy_attn.scale.parsing import parse_scale as parse  # torch is not imported for --help

    return parse(text)


def parse_guidance(text: str | None) -> Any:
    """The same to a guidance; None, or 'off', for none."""
    from entropy_attn.guidance import TSAM
    from entropy_attn.scale.parsing import parse_choice

    if text is None or text == "off":
        return None
    read = {"steps": _range, "refine_at": _steps, "map_size": lambda value: parse_size(value, "map_size")}
    return parse_choice("guidance", text, {"tsam": TSAM}, leave_out={"target"}, read=read)[0]


def _range(text: str) -> range:
    found = re.fullmatch(r"(\d*)\.\.(\d+)", text)
    if not found:
        raise ValueError(f"steps={text} is not START..STOP, such as 0..12 for the first 12 steps")
    return range(int(found[1] or 0), int(found[2]))


def _steps(text: str) -> list[int]:
    if not all(part.isdecimal() for part in text.split("+")):
        raise ValueError(f"refine_at={text}: give steps with + between them, such as 0+10+20")
    return [int(part) for part in text.split("+")]


def parse_arguments(pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE, where the value is a Python literal or else the text itself."""
    from entropy_attn.scale.parsing import literal

    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--argument {pair!r}: give NAME=VALUE, such as num_frames=9")
        if name in found:
            raise ValueError(f"--argument: {name!r} is given twice")
        found[name] = literal(value)
    return found


def check_at_least(option: str, value: float | None, least: float) -> None:
    if value is not None and not value >= least:
        raise ValueError(f"{option} {value}: at least {least} is needed")


def check_prompts(prompts: list[str]) -> None:
    if any(not prompt.strip() for prompt in prompts):
        raise ValueError("--prompt is empty: give the text of a picture")


def output_folder(path: Path, option: str = "--out") -> Path:
    """Make the folder and prove that it can be written to, before anything long runs."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"{option} {str(path)!r} cannot be written to: {error.strerror or error}") from error
    return path


def output_picture(path: Path, option: str = "--out") -> Path:
    from PIL import Image

    known = Image.registered_extensions()
    if known.get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"{option} {str(path)!r}: the name must end in a picture format, such as .png or .jpg")
    return _output_file(option, path)


def output_table(path: Path) -> Path:
    if path.suffix.lower() != ".csv":
        raise ValueError(f"--csv {str(path)!r}: the name must end in .csv")
    return _output_file("--csv", path)


def _output_file(option: str, path: Path) -> Path:
    if path.is_dir():
        raise ValueError(f"{option} {str(path)!r} is a folder: give a file name")
    output_folder(path.parent, option)
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{option} {str(path)!r} cannot be written to: Permission denied")
    return path


def load(model: str, device: str, dtype: str) -> tuple[Any, dict[str, Any]]:
    """The pipeline and what it runs on, as {"model", "device", "dtype"}."""
    return Loading(model=model, device=device, dtype=dtype).load()


def parse_device(device: str) -> str:
    """The device by torch's name for it, which is there."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"--device {device!r}: give auto, cpu, cuda or cuda:INDEX") from error
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"--device {device!r}: give auto, cpu, cuda or cuda:INDEX")
    index = torch.device(device).index or 0
    if kind == "cuda" and index >= torch.cuda.device_count():
        raise ValueError(f"--device {device!r}: this machine has {torch.cuda.device_count()} such devices")
    return device


def guidance(model: str, given: float | None) -> float | None:
    """The guidance to sample with: as given, else what suits the embedded model, else None for the pipeline's own."""
    return SHAPES_GUIDANCE if given is None and model == "shapes" else given


def versions() -> dict[str, str | None]:
    """Of Python, this package and what it stands on; None for what is not installed."""
    from entropy_attn import __version__

    found: dict[str, str | None] = {"python": platform.python_version(), "entropy_attn": __version__}
    for package in ("torch", "triton", "diffusers", "transformers"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found
