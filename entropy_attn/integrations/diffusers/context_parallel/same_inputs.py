"""Whether the devices of one sequence were given the same inputs: parts of different images give finite nonsense."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_same_inputs(
    denoiser: str, names: Sequence[str], arguments: Mapping[str, Any], settings: Mapping[str, Any], group: Any
) -> None:
    """Compare a checksum of every tensor among the arguments of a call, and settings. Waits for the devices once.

    Args:
        denoiser: its class, for the message.
        names: of all arguments that there may be, the same on every device.
        arguments: those that are there.
        settings: of the routing. With others a device would wait for what the rest does not send.
        group: the process group of the sequence.

    Raises:
        ValueError: on every device, where one has another tensor or setting.
    """
    tensors = [arguments.get(name) for name in names]
    device = next(each.device for each in tensors if isinstance(each, Tensor))
    checksums = [*map(_checksum, tensors), *map(_checksum_of_text, settings.values())]
    sums = torch.stack([each.to(device) for each in checksums])
    extremes = torch.cat([sums, ~sums])  # ~x falls as x rises: one collective finds both ends
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=group)
    highest, lowest = extremes[: len(sums)], ~extremes[len(sums) :]
    if torch.equal(highest, lowest):
        return
    pairs = zip([*names, *settings], highest.tolist(), lowest.tolist(), strict=True)
    different = [name for name, high, low in pairs if high != low]
    raise ValueError(
        f"{denoiser}: {', '.join(different)}: expected the same on all devices that share a sequence, and it differs: "
        "give every process the same prompts, recorders and settings, and a generator with the same seed"
    )


def _checksum(value: Any) -> Tensor:
    """A sum of the bits, each element's with a weight of its own; 0 for what is no tensor."""
    if not isinstance(value, Tensor):
        return torch.zeros((), dtype=torch.int64)
    flat = value.detach().reshape(-1).contiguous()
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    bits = flat.view(_BITS[flat.element_size()]).to(torch.int64)
    weights = torch.arange(1, 2 * len(bits) + 1, 2, device=bits.device)
    return (bits * weights).sum() + len(bits)


def _checksum_of_text(value: Any) -> Tensor:
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(value))  # where in memory a function is differs between processes
    return torch.tensor(zlib.crc32(text.encode()), dtype=torch.int64)
