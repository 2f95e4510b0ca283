"""Where in its generation a call of the denoiser is, by its timestep and the scheduler's tables."""

from __future__ import annotations

import math
from typing import Any, cast

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


def number_of_steps(scheduler: Any, timestep: Any, factor: float | None, may_wait: bool) -> int | None:
    """How many timesteps the scheduler has from this one on, the first of a generation; None if that is not known.

    timestep, factor: see `scheduler_timestep`. may_wait: for the device, where nothing on the host says it.
    """
    table = _table(scheduler)
    if table is None:
        return None
    index = _index_on_host(scheduler, timestep)
    if index is None and may_wait:
        index = _nearest(table, _common_value(timestep, factor))
    return None if index is None else len(table) - index


def scheduler_timestep(pipe: Any, timestep: Any, factor: float | None) -> float | None:
    """The timestep of the scheduler, from 1000 to 0, of a call of the denoiser; the host waits for the device.

    pipe: None for a denoiser alone.
    timestep: as the denoiser gets it, perhaps rounded to its dtype.
    factor: see `Model.timesteps`. None is returned without it, and for samples at different timesteps.
    """
    value = _common_value(timestep, factor)
    table = _table(getattr(pipe, "scheduler", None))
    if value is None or table is None:
        return value
    return float(table[cast(int, _nearest(table, value))])  # which has it exactly


def scheduler_sigma(pipe: Any, timestep: Any, factor: float | None) -> float | None:
    """The noise level of the scheduler at a call of the denoiser; None if it is not known. The host may wait.

    pipe, timestep, factor: as for `scheduler_timestep`.
    """
    scheduler = getattr(pipe, "scheduler", None)
    table = _table(scheduler)
    if table is None or hasattr(scheduler, "sigmas_interpol"):  # every other sigma is then in another table
        return None
    sigmas = getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, torch.Tensor) and len(sigmas) >= len(table):
        index = _index_on_host(scheduler, timestep)
        if index is None:
            index = _nearest(table, _common_value(timestep, factor))
        return None if index is None or index >= len(sigmas) else float(sigmas[index])
    signals, value = getattr(scheduler, "alphas_cumprod", None), scheduler_timestep(pipe, timestep, factor)
    if not isinstance(signals, torch.Tensor) or value is None or not 0 <= value < len(signals):
        return None
    return _sigma_of(float(signals[int(value)]))


def first_sigma(scheduler: Any) -> float:
    """The noise level at which a generation begins: 1 for flow matching, and where it is not known."""
    signals = getattr(scheduler, "alphas_cumprod", None)
    return _sigma_of(float(signals[-1])) if isinstance(signals, torch.Tensor) and len(signals) else 1.0


def _sigma_of(signal: float) -> float:
    """As the schedulers with sigmas compute them; infinite for noise alone."""
    return math.sqrt((1.0 - signal) / signal) if signal > 0.0 else math.inf


def _table(scheduler: Any) -> torch.Tensor | None:
    table = getattr(scheduler, "timesteps", None)
    return table if isinstance(table, torch.Tensor) and table.dim() == 1 and len(table) else None


def _index_on_host(scheduler: Any, timestep: Any) -> int | None:
    """The index of a timestep in the scheduler's table, found without waiting for the device."""
    table = scheduler.timesteps
    if _is_picked(timestep) and _share_storage(timestep, table):
        return (timestep.storage_offset() - table.storage_offset()) // table.stride(0)
    index = getattr(scheduler, "step_index", None)
    index = getattr(scheduler, "begin_index", None) if index is None else index
    return index if isinstance(index, int) and index < len(table) else None


def _nearest(table: torch.Tensor, value: float | None) -> int | None:
    return None if value is None else int((table.detach().double().cpu() - value).abs().argmin())


def _common_value(timestep: Any, factor: float | None) -> float | None:
    """The timestep of all samples on the scale of the scheduler; None if they differ, or the scale is not known."""
    if factor is None or timestep is None:
        return None
    values = torch.as_tensor(timestep).detach().double().flatten().cpu() / factor
    if not values.numel() or values.min() != values.max():
        return None
    return float(values[0])
