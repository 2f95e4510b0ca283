"""`Handle`: the routing of one denoiser, installed and undone."""

from __future__ import annotations

import inspect
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import nn

from entropy_attn.display import facts
from entropy_attn.errors import Unroutable
from entropy_attn.integrations.diffusers.branches import parts_for
from entropy_attn.integrations.diffusers.compiled import NUMBER, number_of, trace_layer
from entropy_attn.integrations.diffusers.generation import GenerationTracker
from entropy_attn.integrations.diffusers.layers import attend_of, kind_of, layer_call_of, of_diffusers, run_layer
from entropy_attn.integrations.diffusers.models import LayerRule, model_of
from entropy_attn.integrations.diffusers.module_calls import unwrap_call, wrap_call, wrapper_of
from entropy_attn.integrations.diffusers.own_text import check_own_text, refuse, with_own_text
from entropy_attn.integrations.diffusers.own_text_rows import with_text_rows, without_rows
from entropy_attn.integrations.diffusers.pipeline_calls import follow, unfollow
from entropy_attn.integrations.diffusers.private import AttentionLayer, has_some_heads, parallel_config_of
from entropy_attn.integrations.diffusers.processors import COPY, SwappedProcessor, forget_copy, has_copy
from entropy_attn.integrations.diffusers.prompt_hook import add_prompt_hook
from entropy_attn.integrations.diffusers.row_texts import Encoded
from entropy_attn.integrations.diffusers.steps import scheduler_sigma, scheduler_timestep
from entropy_attn.mix import Mix
from entropy_attn.recorders.base import Parts, Recorder
from entropy_attn.routing.calls import DenoiserCall, LayerCall, TwoTexts
from entropy_attn.routing.policy_recorder import PolicyRecorder
from entropy_attn.routing.router import Router
from entropy_attn.routing.shards import Shards
from entropy_attn.routing.text_rows import TextRows
from entropy_attn.scale import Kind

_ALL = Parts(("all",))


class Handle:
    """The routing of one denoiser, as `apply` returns it; `remove()`, or leaving it as a context manager, undoes it.

    Attributes:
        layers: names of the routed attention layers, within the denoiser.
        recorders: those that were given to `apply`, and those by which a policy follows the pipeline.
        active: False once removed, or replaced by a later `apply` to the same denoiser.
        mix: that of `apply`, or None.
    """

    def __init__(self, denoiser: ModelMixin, pipe: DiffusionPipeline | None, router: Router):
        self.denoiser = denoiser
        self.model = model_of(denoiser)
        self.router = router
        self.modules: dict[str, AttentionLayer] = {}
        self.rules: dict[str, LayerRule] = {}
        for name, module in denoiser.named_modules():
            rule = self.model.rule(name) if isinstance(module, AttentionLayer) else None
            if rule is not None and rule.kind is not None:
                self.modules[name], self.rules[name] = module, rule
        self.layers = tuple(self.modules)
        self._names = {module: name for name, module in self.modules.items()}
        self._number = number_of(self)
        self._by_call = any(rule.kind == "call" for rule in self.rules.values())
        self._per_sample = any(rule.per_sample for rule in self.rules.values())
        self._traceable = True
        # In the graphs of torch.compile an attention call is one operator where there is more to it than a scale.
        self._watches = bool(router.recorders)
        self._whole = self._watches or router.rows != "all" or router.needs_whole_calls
        self._records = any(not isinstance(each, PolicyRecorder) for each in router.recorders)
        self._parameters = tuple(inspect.signature(type(denoiser).forward).parameters)[1:]
        self._pipe = weakref.ref(pipe) if pipe is not None else lambda: None
        null_label = getattr(denoiser.config, "num_embeds_ada_norm", None)
        self._generation = GenerationTracker(self.model, pipe, null_label)
        self._remove_prompt_hook: Callable[[], None] = lambda: None
        self._isolated_step: int | None = None
        self._active = False
        self._entered = False

    @property
    def active(self) -> bool:
        return self._active

    @property
    def entered(self) -> bool:
        """Whether a `with` block over this handle is open."""
        return self._entered

    @property
    def recorders(self) -> tuple[Recorder, ...]:
        return self.router.recorders

    @property
    def mix(self) -> Mix | None:
        return None if self.router.mixing is None else self.router.mixing.mix

    def remove(self) -> None:
        """Undo the routing: the denoiser, and the pipeline if it was followed, are as before. Does nothing twice."""
        if self._active:
            self._uninstall()
            if self.recorders and (pipe := self._pipe()) is not None:
                self._remove_prompt_hook()
                unfollow(pipe)

    def reset_steps(self) -> None:
        """Count the next call of the denoiser as step 0.

        Needed only where the denoiser is called by something else than the pipeline that was given to `apply`: by hand,
        or by another pipeline. Each call of the routed pipeline begins at step 0.
        """
        self._generation.reset()

    def __enter__(self) -> Handle:
        """The handle itself.

        Raises:
            RuntimeError: it was removed, or replaced by a later `apply`.
        """
        if not self._active:
            raise RuntimeError("this routing was removed or replaced: call apply again")
        self._entered = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._entered = False
        self.remove()

    def __repr__(self) -> str:
        state = f"{len(self.layers)} layers" if self._active else "removed"
        mix = "" if self.mix is None else f", mix={self.mix!r}"
        return f"<Handle on {type(self.denoiser).__name__}, scale={self.router.policy!r}{mix}, {state}>"

    def _repr_html_(self) -> str:
        kinds = Counter("self or cross" if rule.kind == "call" else rule.kind for rule in self.rules.values())
        recorders = [type(each).__name__ for each in self.recorders]
        values = {
            "denoiser": type(self.denoiser).__name__,
            "scale": repr(self.router.policy),
            "layers": ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
            "recorders": ", ".join(recorders) or "none",
        }
        if self.mix is not None:
            values["mix"] = repr(self.mix)
        return facts(type(self).__name__, values, "routing" if self._active else "removed")

    # -- install and undo ---------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Route the denoiser, and follow the pipeline if there are recorders."""
        self._install()
        if self.recorders and (pipe := self._pipe()) is not None:
            follow(pipe)
            self._remove_prompt_hook = add_prompt_hook(pipe, self._add_text, self.model.tokenizers)

    def _install(self) -> None:
        self._active = True  # from the first wrapped module on, there is something to undo
        wrap_call(self.denoiser, self._call_denoiser)
        around = self._call_layer  # one for all layers, so that torch.compile takes them for alike
        for number, module in enumerate(self.modules.values()):
            wrap_call(module, around, SwappedProcessor)
            module.__dict__[NUMBER] = torch.tensor(number)
        self._make_copies()

    def _uninstall(self) -> None:
        self._active = False
        for module in (self.denoiser, *self.modules.values()):
            unwrap_call(module)
            forget_copy(module)
            module.__dict__.pop(NUMBER, None)

    def pause(self) -> None:
        """Take the denoiser's wrapping away for a while; the pipeline stays followed."""
        if self._active:
            self._uninstall()

    def resume(self) -> None:
        """End of `pause`."""
        if not self._active:
            self._install()

    def _make_copies(self) -> None:
        for module in self.modules.values():
            has_copy(module)

    @contextmanager
    def isolated_pass(self, recorder: Recorder, step: int) -> Iterator[None]:
        """Denoiser calls in this block belong to no generation: all are at `step`, and only `recorder` sees them.

        A handle that is not installed is installed while the block lasts.
        """
        installed, outer, traceable = self._active, self._isolated_step, self._traceable
        try:
            self._traceable = False
            if not installed:
                self._install()
            self._isolated_step = step
            with self.router.recorded_by(recorder):
                yield
        finally:
            self._isolated_step, self._traceable = outer, traceable
            if not installed:
                self._uninstall()

    def check_own_text(self) -> None:
        """Refuse a mix with a text of its own for a denoiser that takes one text.

        Raises:
            Unroutable: with the reason.
        """
        if self.mix is not None:
            check_own_text(self.mix, self.denoiser, self.model, self.modules)

    # -- what happens in a call ---------------------------------------------------------------------------------------

    def _add_text(self, encoded: Encoded) -> None:
        if self._generation.add_text(encoded) == "cond":
            for recorder in self.recorders:
                recorder.begin(encoded.prompts)

    @torch.compiler.disable(recursive=False)
    def _call_denoiser(
        self, denoiser: ModelMixin, call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        self._make_copies()  # processors may have been exchanged
        arguments = dict(zip(self._parameters, args, strict=False)) | kwargs
        config = self.denoiser.config
        for name, reason in self.model.refused.items():
            if arguments.get(name) is not None:
                raise Unroutable(type(self.denoiser).__name__, [f"{name}: {reason}"])
        self.check_heads()  # tensor parallelism may have been enabled since
        image = self.model.image(arguments, config)
        isolated = self._isolated_step
        step, parts = self._step_and_parts(arguments) if isolated is None else (isolated, _ALL)
        train_tokens = None
        if image.tokens is not None and self.router.train_size is not None:
            train_tokens = self.model.image_tokens(config, self.router.train_size, image.frames)
        latents = arguments.get(self.model.latents)
        batch = None if latents is None else len(latents)
        timestep, sigma = self._time(arguments)
        parallel = parallel_config_of(self.denoiser)  # context parallelism may have been enabled since
        args, kwargs, texts = self._with_own_text(args, kwargs, step, parts, batch, parallel is not None)
        shards = None if parallel is None else self._shards(parallel, arguments, step)
        running = DenoiserCall(
            step,
            image.size,
            parts,
            image.tokens,
            train_tokens,
            image.references,
            batch,
            timestep,
            sigma,
            self._generation.num_steps,
            shards,
            texts,
        )
        with self.router.denoiser_call(running):
            result = call(*args, **kwargs)
        if isinstance(texts, TextRows):
            result = without_rows(result, running.batch)
        if isolated is None:
            for recorder in self.recorders:
                recorder.check_call()
        return result

    def check_heads(self) -> None:
        """Refuse to record, or to mix, some of the heads as if they were all.

        Raises:
            Unroutable: there are recorders or a mix, and the heads are spread over devices.
        """
        if not has_some_heads(self.denoiser):
            return
        if self.mix is not None:
            reason = (
                f"its heads are spread over devices (tensor parallel), and mix={type(self.mix).__name__} counts all of "
                "them; give no mix, or run it on one device"
            )
            raise Unroutable(type(self.denoiser).__name__, [reason])
        followers = [each for each in self.recorders if isinstance(each, PolicyRecorder)]
        names = [type(each.policy).__name__ for each in followers if each.learns]
        names += [type(each).__name__ for each in self.recorders if each not in followers]
        if names:
            reason = (
                f"its heads are spread over devices (tensor parallel), so {', '.join(names)} would see those of one "
                "device; record on one device, or with ContextParallelConfig(ulysses_degree=...) in its place"
            )
            raise Unroutable(type(self.denoiser).__name__, [reason])

    @torch.compiler.disable
    def _with_own_text(
        self, args: tuple, kwargs: dict[str, Any], step: int, parts: Parts, batch: int | None, spread: bool
    ) -> tuple[tuple, dict[str, Any], TwoTexts | TextRows | None]:
        """The arguments of a call with the text of the mix beside the prompt's, if a sample needs it at this step."""
        mixing = self.router.mixing
        if mixing is None or mixing.mix.own_text is None or batch is None or not mixing.mix.takes_step(step):
            return args, kwargs, None
        known = parts if self.router.knows_branches else None
        samples = mixing.samples(None if known is None else known.names_of(batch), batch)
        if not samples:
            return args, kwargs, None
        if spread:
            reason = "its tokens are spread over devices (context parallel); run it on one device"
            refuse(mixing.mix, self.denoiser, reason)
        known = known if self._isolated_step is None else None
        call = mixing.mix, self.denoiser, self.model, self._parameters, args, kwargs, known
        return with_own_text(*call) if self.model.text_rows is None else with_text_rows(*call, samples)

    @torch.compiler.disable
    def _shards(self, parallel: Any, arguments: dict[str, Any], step: int) -> Shards:
        """How the tokens of this call are spread over devices."""
        name = type(self.denoiser).__name__
        try:
            from entropy_attn.integrations.diffusers.context_parallel.same_inputs import check_same_inputs
            from entropy_attn.integrations.diffusers.context_parallel.shards import ContextParallel
        except ImportError as error:
            reason = (
                f"the context parallelism of this diffusers is none that is known ({error}): install diffusers 0.42"
            )
            raise Unroutable(name, [reason]) from error
        shards = ContextParallel(parallel)
        if step == 0:
            settings = {
                "scale": self.router.policy,
                "record": [type(each) for each in self.recorders],
                "rows": self.router.rows,
                "mix": self.mix,
                "gradients": torch.is_grad_enabled(),
            }
            check_same_inputs(name, self._parameters, arguments, settings, shards.layout.group)
        return shards

    @torch.compiler.disable  # else a graph would be made for every value
    def _time(self, arguments: dict[str, Any]) -> tuple[float | None, float | None]:
        """The scheduler's timestep and sigma, each if a policy asks for it and it is known."""
        at = self._pipe(), arguments.get(self.model.timestep), self.model.timesteps
        timestep = scheduler_timestep(*at) if self.router.needs_timestep else None
        return timestep, scheduler_sigma(*at) if self.router.needs_sigma else None

    @torch.compiler.disable
    def _step_and_parts(self, arguments: dict[str, Any]) -> tuple[int, Parts]:
        """The step, and the branches of this call for the recorders."""
        call = self._generation.begin_call(arguments, self.router.needs_num_steps)
        if not self.recorders:
            return call.step, _ALL
        if call.unknown_prompt:
            for recorder in self.recorders:
                recorder.begin(None)
        return call.step, parts_for(self.recorders, call)

    def _call_layer(self, module: AttentionLayer, call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        if not torch.compiler.is_compiling():
            name = self._names[module]
            return run_layer(self.router, name, module, self.rules[name], call, args, kwargs)
        traceable = self._traceable and parallel_config_of(self.denoiser) is None
        if traceable and module.__dict__[COPY][1] is not None and (not self._whole or self._has_operator(module)):
            how = self._by_call, self._per_sample, self._whole
            return trace_layer(self._number, *how, module, call, args, kwargs)
        return self._call_untraced(module, call, args, kwargs)

    def _has_operator(self, module: AttentionLayer) -> bool:
        """Whether the operator serves a layer: it records nothing with gradients, and not by the keys of a text."""
        if self._records and torch.is_grad_enabled():
            return False
        return not self._watches or of_diffusers(module.__dict__[COPY][1])

    @torch.compiler.disable  # the code between the layers is compiled
    def _call_untraced(self, *arguments: Any) -> Any:
        return self._call_layer(*arguments)

    def traced_attend(
        self, number: int, of_call: tuple[Kind, str | None] | None, index: int, samples: int, *, record: bool = True
    ) -> Callable[..., torch.Tensor]:
        """What takes an attention call of a layer that torch.compile has traced. of_call: see `attend_of`."""
        name = self.layers[number]
        watching = record and self.router.watching
        return attend_of(self.router, name, self.modules[name], self.rules[name], of_call, samples, index, watching)

    def layer_call(self, number: int, kind: tuple[Kind, str | None] | None, index: int) -> LayerCall:
        """An attention call of a layer that torch.compile has traced. kind: None where the rule states it."""
        name = self.layers[number]
        rule = self.rules[name]
        return layer_call_of(name, self.modules[name], rule, *(kind_of(rule) if kind is None else kind), index)


def handle_of(denoiser: nn.Module) -> Handle | None:
    """The routing of this denoiser."""
    handle = getattr(wrapper_of(denoiser), "__self__", None)
    return handle if isinstance(handle, Handle) else None
