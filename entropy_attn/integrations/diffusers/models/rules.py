"""What routing has to know of a model: the types of the rows of `table.MODELS`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from entropy_attn.integrations.diffusers.models import image_size
from entropy_attn.integrations.diffusers.models.image_size import ImageReader
from entropy_attn.integrations.diffusers.models.train_size import TrainSize

# "text": the text attends to itself. "call": self or cross, as the arguments of the call say.
LayerKind = Literal["self", "cross", "joint", "text", "call"]


@dataclass(frozen=True)
class GuidanceLayout:
    """How a pipeline usually runs the branches of classifier-free guidance.

    branches: in their order; () without such guidance.
    separate_calls: one call of the denoiser per branch, instead of one batch with all of them.
    """

    branches: tuple[Literal["cond", "uncond"], ...]
    separate_calls: bool = False

    @property
    def batch_parts(self) -> int:
        """Parts of one guided batch."""
        return 1 if self.separate_calls else max(1, len(self.branches))

    def __str__(self) -> str:
        branches = ", ".join(self.branches) or "none"
        return f"calls: {branches}" if self.separate_calls else branches


UNCOND_FIRST = GuidanceLayout(("uncond", "cond"))
COND_FIRST = GuidanceLayout(("cond", "uncond"))
SEPARATE_CALLS = GuidanceLayout(("cond", "uncond"), separate_calls=True)
NO_GUIDANCE = GuidanceLayout(())


@dataclass(frozen=True)
class LayerRule:
    """The layers whose names match a regular expression.

    pattern: is searched for in the layer's name.
    kind: what the layers attend to; None for layers that are not routed, for the reason in `note`.
    text: position of the text among the keys of joint attention, and among its queries if they include text.
    ragged: the text of a shorter prompt leaves room to the image, so the images of one batch begin at different
        positions. What is left at the end is masked; a call without a mask has texts of one length.
    per_sample: the model makes one attention call per sample of the batch.
    image_prompt_first: a layer with extra keys for an image prompt attends to those before it attends to the text.
    """

    pattern: str
    kind: LayerKind | None
    text: Literal["first", "last"] | None = None
    ragged: bool = False
    per_sample: bool = False
    image_prompt_first: bool = False
    note: str = ""


@dataclass(frozen=True)
class RowArguments:
    """How a denoiser with joint attention gets a further row of its batch, with another text.

    repeated: arguments of which the row has what its sample has.
    pooled: name of the argument with the pooled text; None without one.
    refused: arguments whose part for the row is not known.
    """

    repeated: tuple[str, ...]
    pooled: str | None = None
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """One denoiser class of diffusers.

    denoiser: name of the class.
    served: the name under which users know it.
    route: how its attention reaches torch's.
    layers: the first rule that matches decides.
    image: reads the image size from the arguments of a call.
    train_size, train_size_from: the size at training, and where it comes from, in words.
    guidance: how its pipelines run their branches.
    text_tokens: the usual length of the text.
    tokenizers: attributes of the pipeline whose texts are concatenated; () where that does not describe the text.
    prefix: what the pipeline puts before the prompt, with the system prompt of its call or its attribute.
    pack: latent cells per side that the pipeline packs into one, before the patches of the model.
    pad: image tokens are padded to a multiple of 32.
    halves: layers see the image halved, each a different number of times (UNets).
    refused: arguments of the call that cannot be served, and why.
    timesteps: what its pipelines multiply a timestep of the scheduler (1000 to 0) with for the denoiser; None where it
        is another function, or was not looked up.
    text, timestep, latents: names of the arguments that a generation is followed by; `text` is None without text.
    second_text: each token of the text reaches the keys of cross-attention by itself, so that the tokens of a second
        text may follow it (`ea.mix.OwnText`).
    text_rows: how a second text is carried through joint attention in further rows; None where it is not.
    text_mask: name of the argument that masks the text, in a model with `second_text`; None where it has none.
    note: for docs/models.md.
    """

    denoiser: str
    served: str
    route: Literal["sdpa", "dispatch"]
    layers: tuple[LayerRule, ...]
    image: ImageReader
    train_size: TrainSize
    train_size_from: str
    guidance: GuidanceLayout
    text_tokens: int = 0
    tokenizers: tuple[str, ...] = ()
    prefix: str = ""
    pack: int = 1
    pad: bool = False
    halves: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    timesteps: float | None = None
    text: str | None = "encoder_hidden_states"
    timestep: str = "timestep"
    latents: str = "hidden_states"
    second_text: bool = False
    text_rows: RowArguments | None = None
    text_mask: str | None = None
    note: str = ""

    def rule(self, layer: str) -> LayerRule | None:
        return next((rule for rule in self.layers if re.search(rule.pattern, layer)), None)

    @property
    def joint(self) -> bool:
        """Whether text and image attend to both."""
        return any(rule.kind == "joint" for rule in self.layers)

    def cells_a_token(self, config: Any) -> int:
        """Latent cells per side of one token, in a model whose layers all see the image alike."""
        return self.pack if self.pack > 1 else image_size.patch_of(config)

    def image_tokens(self, config: Any, latent_size: tuple[int, int], frames: int = 1) -> int:
        """What every layer sees of an image of this size, in a model whose layers all see it alike."""
        tokens = frames * image_size.tokens_of(latent_size, self.cells_a_token(config))
        return image_size.padded(tokens) if self.pad else tokens
