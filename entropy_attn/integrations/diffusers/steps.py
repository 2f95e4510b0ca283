"""Counting the steps of a generation, by the timesteps of the denoiser's calls."""

from __future__ import annotations

from typing import Any

import torch


class StepCounter:
    """Counts from 0; `step` is -1 before the first call.

    A step is one timestep, however often the denoiser is called at it.
    """

    def __init__(self) -> None:
        self._timesteps: Any = None  # as the pipeline's scheduler laid them out
        self.reset()

    def reset(self) -> None:
        """The next call is step 0."""
        self.step = -1
        self._timestep: Any = None
        self._scheduler_step: int | None = None

    def is_new_schedule(self, scheduler: Any, timestep: Any) -> bool:
        """Whether this call has another schedule than the previous call: a scheduler makes one per generation.

        A panorama replaces the schedule within a generation, for each of its views, but uses the timesteps of the first
        one. Without a scheduler, a timestep that is an element of a new tensor of timesteps shows a new schedule.
        """
        same_table = _share_storage(timestep, self._timestep)
        if scheduler is None:
            return _is_picked(timestep) and _is_picked(self._timestep) and not same_table
        return getattr(scheduler, "timesteps", None) is not self._timesteps and not same_table

    def count(self, scheduler: Any, timestep: Any) -> bool:
        """Count one call of the denoiser; returns whether a step begins with it."""
        before, self._timestep = self._timestep, timestep
        self._timesteps = getattr(scheduler, "timesteps", None)
        index = getattr(scheduler, "step_index", None)
        moved, self._scheduler_step = index != self._scheduler_step, index
        begins = self.step < 0 or timestep is None or _differs(timestep, before, moved)
        self.step += begins
        return begins


def _differs(timestep: Any, before: Any, moved: bool) -> bool:
    """moved: the scheduler has made a step since."""
    if not isinstance(timestep, torch.Tensor) or not isinstance(before, torch.Tensor):
        return moved or timestep != before
    # Usually a view of the scheduler's timesteps: offsets in memory can be compared without waiting for the device.
    if _share_storage(timestep, before):
        return timestep.storage_offset() != before.storage_offset()
    return moved or timestep.shape != before.shape or not bool((timestep == before).all())


def _share_storage(one: Any, other: Any) -> bool:
    """Whether both are views of the same memory."""
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return False
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _is_picked(timestep: Any) -> bool:
    """Whether this is one element of a longer tensor, possibly expanded to a batch."""
    if not isinstance(timestep, torch.Tensor) or any(timestep.stride()):
        return False
    return timestep.untyped_storage().nbytes() > timestep.element_size()


def scheduler_timestep(pipe: Any, timestep: Any, factor: float | None) -> float | None:
    """The timestep of the scheduler, from 1000 to 0, of a call of the denoiser; the host waits for the device.

    pipe: None for a denoiser alone.
    timestep: as the denoiser gets it, perhaps rounded to its dtype.
    factor: see `Model.timesteps`. None is returned without it, and for samples at different timesteps.
    """
    if factor is None or timestep is None:
        return None
    values = torch.as_tensor(timestep).detach().double().flatten().cpu() / factor
    if not values.numel() or values.min() != values.max():
        return None
    table = getattr(getattr(pipe, "scheduler", None), "timesteps", None)
    if isinstance(table, torch.Tensor) and table.numel():  # which has it exactly
        exact = table.detach().double().flatten().cpu()
        return float(exact[(exact - values[0]).abs().argmin()])
    return float(values[0])
