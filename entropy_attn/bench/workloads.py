"""The attention calls of real diffusion models, by model and image size; and a sweep over head dims and lengths.

A workload is one shape of call, with how often it occurs in a denoising step. Shapes follow from the configuration of
the model, which is named with it; batch 2 is classifier-free guidance in pipelines that stack both halves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

Size = tuple[int, int]  # (height, width) of the image in pixels

SIZES = (256, 512, 768, 1024, 1536, 2048, 3072, 4096)  # pixels of a side
HEAD_DIMS = (40, 64, 72, 80, 96, 128, 160, 256)
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
SWEEP = "sweep"
SWEEP_TOKENS = (
    32_768  # batch x length in the sweep: longer sequences have smaller batches, so that a GPU is always full
)
SWEEP_HEADS = 8


@dataclass(frozen=True)
class Workload:
    """One shape of attention call. `map_keys` is the range of text tokens among the keys; None if there are none."""

    model: str
    size: str
    kind: str  # self | cross | joint
    batch: int
    heads: int
    seqlen: int
    seqlen_k: int
    head_dim: int
    layers: int = 1  # calls of this shape in one denoising step
    map_keys: tuple[int, int] | None = None

    @property
    def flops(self) -> float:
        """Useful floating-point operations of a forward pass, without padding; with backward 3.5 times as many."""
        return 4.0 * self.batch * self.heads * self.seqlen * self.seqlen_k * self.head_dim

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that make sense: entropy if image tokens are among the keys, maps if text tokens are."""
        of_kind = {"self": ("plain", "lse", "entropy"), "cross": ("plain", "map")}
        return of_kind.get(self.kind, ("plain", "lse", "entropy", "map")[: 4 if self.map_keys else 3])

    @property
    def label(self) -> str:
        keys = "" if self.seqlen_k == self.seqlen else f"x{self.seqlen_k}"
        where = f"{self.model} {self.size}".strip()
        return f"{where} {self.kind} B{self.batch} H{self.heads} N{self.seqlen}{keys} d{self.head_dim}"


@dataclass(frozen=True)
class Model:
    """The attention calls of a model as a function of the image size."""

    name: str
    train_size: Size
    source: str
    at: Callable[[Size], list[Workload]]


def sweep(
    head_dims: Iterable[int] = HEAD_DIMS,
    lengths: Iterable[int] = LENGTHS,
    *,
    tokens: int = SWEEP_TOKENS,
    heads: int = SWEEP_HEADS,
) -> Iterator[Workload]:
    """Self-attention over head dim and length."""
    for head_dim in head_dims:
        for n in lengths:
            yield Workload(SWEEP, "", "self", max(1, tokens // n), heads, n, n, head_dim)


def workloads(model: str, size: Size | None = None) -> list[Workload]:
    """The attention calls of a model.

    Args:
        model: a name in `MODELS`.
        size: (height, width) in pixels; None is the training size.

    Raises:
        ValueError: the model is unknown, or cannot generate this size.
    """
    if model not in MODELS:
        raise ValueError(f"model: expected one of {', '.join(MODELS)}, got {model!r}")
    size = size or MODELS[model].train_size
    if any(side < 64 or side % 64 for side in size):
        raise ValueError(f"size: expected multiples of 64 px, got {size_name(size)}")
    return MODELS[model].at(size)


def size_name(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _unet(model: str, levels: list[tuple[int, int, int, int]], text: int = 77) -> Callable[[Size], list[Workload]]:
    """`levels`: (side of a token in pixels, heads, head dim, layers); each layer has self- and cross-attention."""

    def at(size: Size) -> list[Workload]:
        found = []
        for pixels, heads, head_dim, layers in levels:
            n = -(-size[0] // pixels) * -(-size[1] // pixels)
            about = (model, size_name(size))
            found.append(Workload(*about, "self", 2, heads, n, n, head_dim, layers))
            found.append(Workload(*about, "cross", 2, heads, n, text, head_dim, layers, (0, text)))
        return found

    return at


def _transformer(
    model: str, kinds: dict[str, tuple[int, int]], heads: int, head_dim: int, *, batch: int, frames: int = 1
) -> Callable[[Size], list[Workload]]:
    """`kinds`: {kind of attention: (layers, text tokens)}; a token is 16 x 16 px of one of `frames`.

    Text comes first in the joint attention of Flux, and last in that of SD3.
    """

    def at(size: Size) -> list[Workload]:
        n, found = frames * (size[0] // 16) * (size[1] // 16), []
        for kind, (layers, text) in kinds.items():
            q, k = {"self": (n, n), "cross": (n, text), "joint": (n + text, n + text)}[kind]
            first = 0 if kind == "cross" or model.startswith("flux") else n
            map_keys = None if kind == "self" else (first, first + text)
            found.append(
                Workload(model, size_name(size), kind, batch, heads, q, k, head_dim, layers, map_keys)
            )  # fmt: skip
        return found

    return at


MODELS = {
    model.name: model
    for model in (
        Model(
            "sd15", (512, 512), "diffusers UNet2DConditionModel of SD 1.5, counted on the meta device",
            _unet("sd15", [(8, 8, 40, 5), (16, 8, 80, 5), (32, 8, 160, 5), (64, 8, 160, 1)]),
        ),
        Model(
            "sd21", (768, 768), "as sd15; SD 2.1 has 5, 10, 20 and 20 heads of 64",
            _unet("sd21", [(8, 5, 64, 5), (16, 10, 64, 5), (32, 20, 64, 5), (64, 20, 64, 1)]),
        ),
        Model(
            "sdxl", (1024, 1024), "as sd15; no attention at the first level, 2 and 10 blocks at the others",
            _unet("sdxl", [(16, 10, 64, 10), (32, 20, 64, 60)]),
        ),
        Model(
            "pixart", (1024, 1024),
            "PixArt-Sigma-XL-2-1024-MS: defaults of diffusers PixArtTransformer2DModel, 300 tokens of T5; no mask here",
            _transformer("pixart", {"self": (28, 0), "cross": (28, 300)}, 16, 72, batch=2),
        ),
        Model(
            "sd3", (1024, 1024), "SD3-medium transformer/config.json: 24 layers, 24 heads of 64; text 77 CLIP + 256 T5",
            _transformer("sd3", {"joint": (24, 333)}, 24, 64, batch=2),
        ),
        Model(
            "sd35-large", (1024, 1024), "SD3.5-large transformer/config.json: 38 layers, 38 heads of 64; text as sd3",
            _transformer("sd35-large", {"joint": (38, 333)}, 38, 64, batch=2),
        ),
        Model(
            "flux", (1024, 1024),
            "FLUX.1-dev: defaults of diffusers FluxTransformer2DModel, 19 + 38 layers, 512 T5 tokens; no CFG",
            _transformer("flux", {"joint": (57, 512)}, 24, 128, batch=1),
        ),
        Model(
            "wan-1.3b", (512, 832),
            "Wan2.1-T2V-1.3B transformer/config.json: 30 layers, 12 heads of 128; 81 frames are 21 latents, "
            "512 tokens of umT5; the two halves of guidance are separate calls",
            _transformer("wan-1.3b", {"self": (60, 0), "cross": (60, 512)}, 12, 128, batch=1, frames=21),
        ),
        Model(
            "wan-14b", (512, 832), "Wan2.1-T2V-14B: defaults of diffusers WanTransformer3DModel; else as wan-1.3b",
            _transformer("wan-14b", {"self": (80, 0), "cross": (80, 512)}, 40, 128, batch=1, frames=21),
        ),
    )
}  # fmt: skip
