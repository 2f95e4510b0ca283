"""Which step a denoiser call belongs to, and which rows of its batch belong to which branch.

Both are derived from the call itself: its timestep gives the step, and its texts, compared with those that the pipeline
encoded, give the branches. The pipeline's arrangement in the table only decides what the calls leave open. Unknown rows
are refused before the first layer runs: a mean over rows that do not belong together would look like any other.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline

from entropy_attn.integrations.diffusers.batch_parts import GenerationTexts, parts_of
from entropy_attn.integrations.diffusers.models import Model
from entropy_attn.integrations.diffusers.pipeline_calls import PipelineRun, running
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
from entropy_attn.integrations.diffusers.steps import StepCounter, number_of_steps
from entropy_attn.recorders.base import Parts, UnknownParts

_ALL = Parts(("all",))


class GenerationTracker:
    """Follows the generations that run through one denoiser, one after the other.

    pipe: the pipeline that was routed; None for a denoiser alone.
    null_label: the class label that stands for no class.
    """

    def __init__(self, model: Model, pipe: DiffusionPipeline | None, null_label: int | None = None):
        self.model = model
        self._pipe = weakref.ref(pipe) if pipe is not None else lambda: None
        self._null_label = null_label
        self._run_key: object = None  # the call of the pipeline that this generation is part of
        self._texts = GenerationTexts()
        self._steps = StepCounter()
        self.num_steps: int | None = None  # of this generation, if it is known
        self._step_calls: list[_Call] = []  # of this step
        self._matches = Remembered()

    def reset(self) -> None:
        """The next call begins a generation."""
        self._steps.reset()
        self._step_calls = []
        self._matches = Remembered()

    def add_text(self, encoded: Encoded) -> str | None:
        """The pipeline encoded a text. Returns its role: "cond" for the prompt, "uncond", or its name in the pipeline.

        None is a text that was encoded outside of any generation.
        """
        if not encoded.names:
            return None
        if self._steps.step >= 0 or self._texts.closed:
            self.reset()
            self._texts = GenerationTexts()
        return self._texts.add(encoded)

    def begin_call(self, arguments: Mapping[str, Any], may_wait: bool = False) -> TrackedCall:
        """The denoiser is called with these arguments.

        may_wait: for the device, to find the number of steps.
        """
        pipe, timestep = self._pipe(), arguments.get(self.model.timestep)
        scheduler, run = getattr(pipe, "scheduler", None), running(pipe)
        begins = self._steps.step < 0
        run_key = None if run is None else run.key
        new_schedule = self._steps.is_new_schedule(scheduler, timestep)
        if run_key is not self._run_key or new_schedule:
            if not begins:
                self.reset()
            if self._texts.closed or run is None:
                self._texts = GenerationTexts()  # those of another generation
            begins = True
        self._run_key = run_key
        if begins:
            self.num_steps = self._number_of_steps(run, timestep, may_wait)
        texts_seen = bool(self._texts.texts)
        if begins and run is not None and not texts_seen:
            self._add_embeddings(run)
        self._texts.closed = True
        if self._steps.count(scheduler, timestep):
            self._step_calls = []
        return TrackedCall(self, run, self._steps.step, begins and not texts_seen, arguments)

    def _number_of_steps(self, run: PipelineRun | None, timestep: Any, may_wait: bool) -> int | None:
        pipe = self._pipe()
        number = number_of_steps(getattr(pipe, "scheduler", None), timestep, self.model.timesteps, may_wait)
        if run is not None:  # it may stop before the end of the table
            stated = getattr(run.pipe, "num_timesteps", None)
            return min(number, stated) if number and isinstance(stated, int) and stated > 0 else number
        return number if getattr(pipe, "denoising_end", None) is None else None

    def _add_embeddings(self, run: PipelineRun) -> None:
        """Embeddings that a pipeline takes without `encode_prompt`."""
        prompt, negative = (as_states(run.arguments.get(name)) for name in ("prompt_embeds", "negative_prompt_embeds"))
        guided = getattr(run.pipe, "do_classifier_free_guidance", negative is not None)
        self._texts.add(Encoded(("prompt_embeds",), None, guided, prompt, negative))

    def parts(self, run: PipelineRun | None, arguments: Mapping[str, Any]) -> Parts:
        """The parts of a call's batch, see `TrackedCall.parts`."""
        states = arguments.get(self.model.text) if self.model.text is not None else None
        if states is None:
            return _ALL
        found = self._match(states)
        if not any(found):
            return self._unmatched(run, states)
        seen = {name for call in self._step_calls for name in call.parts.names}
        parts = parts_of(found, self._texts, self.model.guidance.branches, seen)
        call = _Call(parts, arguments.get(self.model.latents), states)
        repeats = [name for name in parts.names if name in seen]
        if repeats == list(parts.names):
            if all(self._is_repeat(call, name) for name in repeats):
                return Parts(())  # perturbed: the same latents and the same text again
            if run is None or not hasattr(run.pipe, "get_views"):
                caller = "the caller" if run is None else type(run.pipe).__name__
                raise UnknownParts(
                    f"{caller} calls its denoiser several times a step for the same text, with other latents, and does "
                    "not say what for"
                )
        self._step_calls.append(call)
        return parts

    def _match(self, states: States) -> list[frozenset]:
        if self._matches.holds(states):
            return self._matches.value
        if self._null_label is not None and isinstance(states, torch.Tensor) and states.dim() == 1:
            found = label_matches(states, self._null_label)
            self._texts.guided = any(match.role == "uncond" for row in found for match in row)
        else:
            found = matches(states, self._texts.texts)
        return self._matches.keep(states, found)

    def _unmatched(self, run: PipelineRun | None, states: States) -> Parts:
        """No row of this batch is of a known text: it must be of one text, and the only call of its step.

        A denoiser that was routed without a pipeline has no known texts: each of its batches is one part.
        """
        if (pipe := self._pipe()) is None:
            return _ALL
        alone = all(same_rows(states, call.states) for call in self._step_calls)
        if alone and same_text(states):
            self._step_calls.append(_Call(_ALL, None, states))
            return _ALL
        what = "a batch whose rows are" if alone else "several calls a step, which are"
        if run is not None:
            why = f"{type(pipe).__name__} does not show which texts it encodes"
        else:
            why = (
                f"the denoiser is not called by {type(pipe).__name__}, the pipeline that was routed: apply to the "
                "pipeline that calls it"
            )
        raise UnknownParts(f"{what} of different texts, and {why}")

    def _is_repeat(self, call: _Call, name: str) -> bool:
        return any(name in before.parts.names and before.same_latents(call, name) for before in self._step_calls)


class _Call:
    """One call of the present step."""

    def __init__(self, parts: Parts, latents: Any, states: States):
        self.parts = parts
        self.latents = latents
        self.states = states

    def latents_of(self, name: str) -> list[torch.Tensor]:
        return [self.latents[row] for row in self.parts.rows_of(name, len(self.latents))]

    def same_latents(self, other: _Call, name: str) -> bool:
        if self.latents is None or other.latents is None:
            return False
        these, others = self.latents_of(name), other.latents_of(name)
        return len(these) == len(others) and all(map(torch.equal, these, others))


class TrackedCall:
    """One call of the denoiser within its generation.

    unknown_prompt: it is the first call of a generation whose prompts are not known.
    """

    def __init__(
        self,
        tracker: GenerationTracker,
        run: PipelineRun | None,
        step: int,
        unknown_prompt: bool,
        arguments: Mapping[str, Any],
    ):
        self.step = step
        self.unknown_prompt = unknown_prompt
        self._tracker = tracker
        self._run = run
        self._arguments = arguments

    def parts(self) -> Parts:
        """The branches of the batch; raises UnknownParts. To be called once."""
        return self._tracker.parts(self._run, self._arguments)

    def check_stated(self, branches: tuple[str, ...] | None, parts: Parts) -> None:
        """Raise where a recorder's `branches` calls rows "cond" that are of the negative prompt, or vice versa."""
        both = ("cond", "uncond")
        text = self._tracker.model.text
        if branches is None or text is None or not set(parts.names) <= set(both) or not parts.names:
            return
        batch = len(self._arguments[text])
        if batch % len(branches):
            return  # the recorder refuses it, with the name of the layer
        stated = Parts(branches)
        for row in range(batch):
            name, found = stated.name_of(row, batch), parts.name_of(row, batch)
            if name in both and name != found:
                raise ValueError(f"branches={branches!r}: row {row} of the batch of {batch} is {found!r}, by its text")
