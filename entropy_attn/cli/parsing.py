"""Reading the values of options: text in, checked values out; a bad value is a `ValueError` that names the option."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from typing import Any

from entropy_attn.cli import is_one_of_several

Size = tuple[int, int]  # (height, width)

DTYPES = ("auto", "float32", "float16", "bfloat16")
MAX_SEED = 2**64 - 1  # as in profiling/plan.py, which is not imported here because --help must be quick
SIZE_HELP = "one number for a square, or HEIGHTxWIDTH"
SCALE_HELP = (
    "'off' (1/sqrt(d)), 'logn' (sqrt(log_T N / d)), 'lognoroot', 'power', 'yarn', 'constant', 'adaptive' (per head), "
    "'factors' (per layer; the path of a profile's hold-entropy.json is enough), 'target' (holds the entropy, step by "
    "step), 'dype' (falls with the noise) or 'taca' (more attention of the image to the text). Settings follow the "
    "name: 'logn:strength=0.5:direction=up', 'power:p=0.25:clamp=0.8..1.5', 'adaptive:profile=entropy.csv:policy=off'. "
    "Any policy can be limited to some steps, layers or a branch of guidance: 'yarn:steps=0..10', "
    "'logn:layers=up_blocks', 'constant:factor=0.5:of_branch=uncond'."
)
GUIDANCE_HELP = (
    "'tsam' (text self-attention maps). Settings follow the name: 'tsam:alpha=10:variant=paper', "
    "'tsam:steps=0..12:refine_at=0+10' (guide the first 12 steps, refine at steps 0 and 10). Default: off."
)


def parse_size(text: str, name: str = "--size") -> Size:
    found = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text.strip())
    if not found:
        raise ValueError(f"{name}: expected {SIZE_HELP}, such as 64 or 48x96, got {text!r}")
    height = int(found[1])
    return height, int(found[2]) if found[2] else height


def parse_list(option: str, text: str) -> list[str]:
    """Split at commas; an empty list or a repeated entry is refused."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ValueError(f"{option}: expected at least one value, got {text!r}")
    repeated = next((part for part in parts if parts.count(part) > 1), None)
    if repeated is not None:
        raise ValueError(f"{option}: expected different values, got {repeated!r} twice")
    return parts


def parse_choices(option: str, text: str | None, known: Sequence[str]) -> tuple[str, ...] | None:
    """Some of the known names, separated by commas; None where the option is not given."""
    if text is None:
        return None
    parts = parse_list(option, text)
    unknown = next((part for part in parts if part not in known), None)
    if unknown is not None:
        raise ValueError(f"{option}: expected some of {', '.join(known)}, got {unknown!r}")
    return tuple(parts)


def parse_seeds(text: str) -> list[int]:
    parts = parse_list("--seeds", text)
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--seeds: expected whole numbers from 0, such as 0,1,2, got {text!r}")
    return [check_seed("--seeds", int(part)) for part in parts]


def parse_steps(text: str, count: int) -> list[int]:
    """Denoising steps of a run of `count` steps."""
    parts = parse_list("--at-steps", text)
    if not all(part.isdecimal() and int(part) < count for part in parts):
        raise ValueError(
            f"--at-steps: expected steps from 0 to {count - 1}, such as 0,{count - 1}, got {text!r}"
        )  # fmt: skip
    return [int(part) for part in parts]


def parse_words(text: str) -> list[str | int]:
    """Words of a prompt, or positions in it."""
    return [int(part) if part.isdecimal() else part for part in parse_list("--words", text)]


def parse_scale(text: str) -> Any:
    """A scale policy from 'off', 'logn:strength=0.5' and the like."""
    from entropy_attn.scale.parsing import parse_scale as parse  # torch is not imported for --help

    return parse(text)


def parse_guidance(text: str | None) -> Any:
    """A guidance from 'tsam:alpha=10' and the like; None for None and 'off'."""
    from entropy_attn.guidance import TSAM

    if text is None or text == "off":
        return None
    return _parse_guidance(text, {"tsam": TSAM}, {"target"})


def parse_method(text: str) -> Any:
    """A guidance whose words come from the prompts, from 'attend-and-excite:alpha=20' and the like."""
    from entropy_attn.evaluation.methods import METHODS, NOT_OPTIONS

    return _parse_guidance(text, METHODS, NOT_OPTIONS)


def _parse_guidance(text: str, methods: dict[str, Any], leave_out: Collection[str]) -> Any:
    from entropy_attn.scale.parsing import parse_choice

    read = {"steps": _step_range, "refine_at": _step_list, "map_size": lambda value: parse_size(value, "map_size")}
    return parse_choice("guidance", text, methods, leave_out=leave_out, read=read)[0]


def _step_range(text: str) -> range:
    found = re.fullmatch(r"(\d*)\.\.(\d+)", text)
    if not found:
        raise ValueError(f"steps: expected START..STOP, such as 0..12 for the first 12 steps, got {text!r}")
    return range(int(found[1] or 0), int(found[2]))


def _step_list(text: str) -> list[int]:
    if not all(part.isdecimal() for part in text.split("+")):
        raise ValueError(f"refine_at: expected steps joined by +, such as 0+10+20, got {text!r}")
    return [int(part) for part in text.split("+")]


def parse_arguments(pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE, where the value is a Python literal or else the text itself."""
    from entropy_attn.scale.parsing import literal

    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--argument: expected NAME=VALUE, such as num_frames=9, got {pair!r}")
        if name in found:
            raise ValueError(f"--argument: expected different names, got {name!r} twice")
        found[name] = literal(value)
    return found


def parse_device(device: str) -> str:
    """The device by its name in torch; it exists on this machine.

    Without an index, each process of torchrun or `accelerate launch` has the device of its number on its machine.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"--device: expected auto, cpu, cuda or cuda:INDEX, got {device!r}") from error
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected auto, cpu, cuda or cuda:INDEX, got {device!r}")
    count = torch.cuda.device_count()
    if device == "cuda" and is_one_of_several():
        number = int(os.environ.get("LOCAL_RANK", "0"))
        if number >= count:
            raise ValueError(
                f"--device: expected a CUDA device for each process of this machine, got LOCAL_RANK={number} and "
                f"{count} visible: start fewer processes, or give each the first one that it sees, with cuda:0"
            )
        return f"cuda:{number}"
    if kind == "cuda" and (torch.device(device).index or 0) >= count:
        raise ValueError(f"--device: expected one of the {count} CUDA devices of this machine, got {device!r}")
    return device


def check_dtype(dtype: str) -> str:
    return check_choice("--dtype", dtype, DTYPES)


def check_choice(option: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{option}: expected one of {', '.join(known)}, got {value!r}")
    return value


def check_seed(option: str, seed: int) -> int:
    """The seed, if torch's generators accept it."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"{option}: expected a whole number from 0 to {MAX_SEED}, got {seed}")
    return seed


def check_at_least(option: str, value: float | None, least: float) -> None:
    if value is not None and not value >= least:  # NaN is not
        raise ValueError(f"{option}: expected at least {least}, got {value}")


def check_prompts(prompts: list[str]) -> None:
    empty = next((prompt for prompt in prompts if not prompt.strip()), None)
    if empty is not None:
        raise ValueError(f"--prompt: expected the text of an image, got {empty!r}")
