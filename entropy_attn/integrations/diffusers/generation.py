"""The account of a generation: which step a denoiser call is of, and which rows of its batch are of which branch.

Both are read from the call itself: its timestep tells the step, and its texts, compared with what the pipeline has
encoded, tell the branches. What the pipeline says of itself (that it is guided, in which order, how far its scheduler
is) is believed only where the calls leave a choice. Where rows cannot be known they are refused, before the first layer
runs: a mean over rows that do not belong together would look like any other.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline

from entropy_attn.integrations.diffusers.batch_parts import Known, parts_of
from entropy_attn.integrations.diffusers.callers import calling_pipeline, embeddings_given
from entropy_attn.integrations.diffusers.models.table import Model
from entropy_attn.integrations.diffusers.row_texts import (
    Encoded,
    Remembered,
    States,
    as_states,
    label_matches,
    matches,
    same_rows,
    same_text,
)
from entropy_attn.recorders.base import Parts, UnknownParts


class Account:
    """Of the generations that run through one denoiser, one after the other.

    pipe: the pipeline that was routed, whose texts are heard; None for a denoiser alone.
    """

    def __init__(self, model: Model, pipe: DiffusionPipeline | None, null_label: int | None = None):
        self._model = model
        self._pipe = weakref.ref(pipe) if pipe is not None else lambda: None
        self._null_label = null_label
        self._caller: Any = None  # weak reference to the pipeline of this generation
        self._timesteps: Any = None  # as its scheduler laid them out
        self._known = Known()
        self.reset()

    def reset(self) -> None:
        """The next call begins a generation."""
        self._step = -1
        self._timestep: Any = None
        self._scheduler_step: int | None = None
        self._calls: list[_Call] = []  # of this step
        self._matches = Remembered()

    # -- what is heard ------------------------------------------------------------------------------------------------

    def hear(self, encoded: Encoded) -> str | None:
        """A text was encoded; returns its role: "cond" for the prompt, "uncond", or what else the pipeline calls it.

        None is a call from outside of any generation.
        """
        if not encoded.names:
            return None
        if self._step >= 0 or self._known.closed:
            self.reset()
            self._known = Known()
        return self._known.add(encoded)

    # -- what a call shows --------------------------------------------------------------------------------------------

    def call(self, arguments: Mapping[str, Any]) -> Place:
        """The denoiser is called with these arguments."""
        caller = calling_pipeline()
        scheduler = getattr(caller, "scheduler", None)
        timesteps = getattr(scheduler, "timesteps", None)
        begins = self._step < 0
        same = self._caller is None if caller is None else self._caller is not None and self._caller() is caller
        timestep = arguments.get(self._model.timestep)
        if not same or (timesteps is not self._timesteps and not _one_storage(timestep, self._timestep)):
            # Every generation has its scheduler lay out new timesteps. A panorama exchanges them within one, for each
            # of its views, but goes on along those that it began with.
            if not begins:
                self.reset()
            if self._known.closed or caller is None or caller is not self._pipe():
                self._known = Known()  # what was heard is another generation's
            begins = True
        heard = bool(self._known.texts)
        self._caller = None if caller is None else weakref.ref(caller)
        self._timesteps = timesteps
        if begins and caller is not None and caller is self._pipe() and not self._known.texts:
            own, negative = map(as_states, embeddings_given(caller))
            guided = getattr(caller, "do_classifier_free_guidance", negative is not None)
            self._known.add(Encoded(("prompt_embeds",), None, guided, own, negative))
        self._known.closed = True
        if self._is_new_step(timestep, getattr(scheduler, "step_index", None)):
            self._step += 1
            self._calls = []
        return Place(self, caller, begins and not heard, arguments)

    def _is_new_step(self, timestep: Any, scheduler_step: int | None) -> bool:
        before, self._timestep = self._timestep, timestep
        moved, self._scheduler_step = scheduler_step != self._scheduler_step, scheduler_step
        if self._step < 0 or timestep is None:
            return True
        if not isinstance(timestep, torch.Tensor) or not isinstance(before, torch.Tensor):
            return moved or timestep != before
        # Mostly a view of the scheduler's timesteps, whose place in memory tells without waiting for the device.
        if _one_storage(timestep, before):
            return timestep.storage_offset() != before.storage_offset()
        return moved or timestep.shape != before.shape or not bool((timestep == before).all())

    # -- the branches -------------------------------------------------------------------------------------------------

    def _parts(self, caller: DiffusionPipeline | None, arguments: Mapping[str, Any]) -> Parts:
        states = arguments.get(self._model.text) if self._model.text is not None else None
        latents = arguments.get(self._model.latents)
        if states is None:
            return Parts(("all",))
        found = self._match(states)
        if not any(found):
            return self._unknown(caller, states)
        parts = parts_of(found, self._known, self._model.guidance.removeprefix("calls: ").split(", "), self._seen())
        call = _Call(parts, latents, states)
        repeats = [name for name in parts.names if name in self._seen()]
        if repeats == list(parts.names):
            if all(self._is_repeat(call, name) for name in repeats):
                return Parts(())  # perturbed: the same latents and the same text once more
            if not hasattr(caller, "get_views"):
                raise UnknownParts(
                    f"{_named(caller)} calls its denoiser several times a step for the same text, with other latents, "
                    "and does not say what for"
                )
        self._calls.append(call)
        return parts

    def _match(self, states: States) -> list[frozenset]:
        if self._matches.holds(states):
            return self._matches.value
        if self._null_label is not None and isinstance(states, torch.Tensor) and states.dim() == 1:
            found = label_matches(states, self._null_label)
            self._known.guided = any(match.role == "uncond" for row in found for match in row)
        else:
            found = matches(states, self._known.texts)
        return self._matches.keep(states, found)

    def _unknown(self, caller: DiffusionPipeline | None, states: States) -> Parts:
        """Nothing of this batch was heard of: then it has to be of one text, and be the only call of its step.

        Who calls the denoiser by hand knows what the batch is: it is one part, unless the recorder is told others.
        """
        if caller is None:
            return Parts(("all",))
        alone = all(same_rows(states, call.states) for call in self._calls)
        if alone and same_text(states):
            self._calls.append(_Call(Parts(("all",)), None, states))
            return Parts(("all",))
        where = "a batch whose rows are" if alone else "several calls a step, which are"
        own = self._pipe()
        if caller is not own:
            why = f"its caller, {_named(caller)}, is not the pipeline that was routed: apply to that one"
        else:
            why = f"{_named(caller)} does not show which texts it encodes"
        raise UnknownParts(f"{where} of different texts, and {why}")

    def _seen(self) -> set[str]:
        return {name for call in self._calls for name in call.parts.names}

    def _is_repeat(self, call: _Call, name: str) -> bool:
        return any(name in before.parts.names and before.same_latents(call, name) for before in self._calls)


class _Call:
    """One call of the present step."""

    def __init__(self, parts: Parts, latents: Any, states: States):
        self.parts = parts
        self.latents = latents
        self.states = states

    def of(self, name: str) -> list[torch.Tensor]:
        """The latents of one branch."""
        return [self.latents[row] for row in self.parts.rows_of(name, len(self.latents))]

    def same_latents(self, other: _Call, name: str) -> bool:
        if self.latents is None or other.latents is None:
            return False
        own, others = self.of(name), other.of(name)
        return len(own) == len(others) and all(map(torch.equal, own, others))


class Place:
    """Where one call of the denoiser stands in its generation.

    unheard: it is the first one, of a generation whose prompts were not heard. caller: the pipeline that makes it.
    """

    def __init__(self, account: Account, caller: DiffusionPipeline | None, unheard: bool, arguments: Mapping[str, Any]):
        self.step = account._step
        self.unheard = unheard
        self.caller = caller
        self._account = account
        self._arguments = arguments

    def parts(self) -> Parts:
        """The branches of the batch; raises UnknownParts. To be asked once a call."""
        return self._account._parts(self.caller, self._arguments)

    def check_stated(self, branches: tuple[str, ...] | None, parts: Parts) -> None:
        """Raise where a user says "cond" of rows that are of the negative prompt, or the other way round."""
        told = ("cond", "uncond")
        if branches is None or not set(parts.names) <= set(told) or not parts.names:
            return
        batch = len(self._arguments[self._account._model.text])
        if batch % len(branches):
            return  # the recorder says so, with the layer
        stated = Parts(branches)
        for row in range(batch):
            name, own = stated.name_of(row, batch), parts.name_of(row, batch)
            if name in told and name != own:
                raise ValueError(f"branches={branches!r}: row {row} of the batch of {batch} is {own!r}, by its text")


def _one_storage(one: Any, other: Any) -> bool:
    """Whether both are views of the same memory."""
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return False
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _named(caller: DiffusionPipeline | None) -> str:
    return "the caller" if caller is None else type(caller).__name__
