"""Finds a checkpoint, the kind of its pipeline, and the dtype in which it was published."""

from __future__ import annotations

import inspect
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

SHAPES = "shapes"
INDEX = "model_index.json"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_STORED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True)
class Checkpoint:
    """A folder or Hub id with its index, or a single file with the index of its configuration."""

    model: str
    source: str
    index: dict[str, Any]
    variant: str | None = None
    revision: str | None = None
    config: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def single(self) -> bool:
        return self.source.endswith(".safetensors")

    @property
    def is_unet(self) -> bool:
        return bool((self.index.get("unet") or (None, None))[1])

    def load(self, dtype: torch.dtype) -> Any:
        from entropy_attn.integrations.diffusers.private import dtype_argument

        given: dict[str, Any] = {**dtype_argument(dtype)}
        try:
            if self.single:
                import diffusers

                kind = getattr(diffusers, self.index["_class_name"])
                if self.config is not None:
                    given["config"] = self.config
                return kind.from_single_file(self.source, **given)
            from diffusers import DiffusionPipeline

            return DiffusionPipeline.from_pretrained(self._fetched(), **given, **self._absent(), variant=self.variant)
        except (OSError, ValueError, KeyError) as error:
            if self.variant is not None and "variant" in str(error):
                raise ValueError(
                    f"variant: expected one of the files of {self.model!r}, got {self.variant!r}"
                ) from error
            raise ValueError(f"model: cannot load {self.model!r}: {_why(error, self.model)}") from error

    def stored_dtype(self) -> torch.dtype | None:
        """The dtype of most of the denoiser's weights; None if they are not in a .safetensors file."""
        from safetensors import safe_open

        if self.single:
            files = [Path(self.source)]
        else:
            folder = Path(self._fetched()) / ("unet" if self.is_unet else "transformer")
            files = sorted(folder.glob("*.safetensors"))
            of_variant = [file for file in files if self.variant and f".{self.variant}." in file.name]
            files = of_variant or [file for file in files if file.stem.count(".") == 0] or files
        if not files:
            return None
        with safe_open(files[0], framework="pt") as file:
            sizes: dict[str, int] = {}
            for name in file.keys():
                part = file.get_slice(name)
                count = 1
                for length in part.get_shape():
                    count *= length
                sizes[part.get_dtype()] = sizes.get(part.get_dtype(), 0) + count
        return _STORED.get(max(sizes, key=sizes.__getitem__)) if sizes else None

    def _fetched(self) -> str:
        """The local folder, downloaded if necessary."""
        if Path(self.source).is_dir():
            return self.source
        from diffusers import DiffusionPipeline

        try:
            return str(DiffusionPipeline.download(self.source, variant=self.variant, revision=self.revision))
        except (OSError, ValueError) as error:
            raise ValueError(f"model: cannot download {self.model!r}: {_why(error, self.model)}") from error

    def _absent(self) -> dict[str, None]:
        """The components that the index leaves out, often the third text encoder of Stable Diffusion 3."""
        return {
            name: None
            for name, entry in self.index.items()
            if isinstance(entry, (list, tuple))
            and list(entry) == [None, None]
            and name.startswith(("text_enc", "token"))
        }


def find_checkpoint(
    model: str,
    *,
    variant: str | None = None,
    revision: str | None = None,
    config: str | None = None,
    anything: bool = False,
) -> Checkpoint:
    """The checkpoint of a name, if it can be sampled and routed. Reads or downloads nothing large yet."""
    source = resolve(model)
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"model {model!r}: expected diffusers to be installed: pip install 'entropy-attn[diffusers]'"
        ) from error
    local = Path(source).exists()
    if revision is not None and local:
        raise ValueError(
            f"revision: expected None, because {model!r} is a local path and not a Hub id, got {revision!r}"
        )
    single = source.endswith(".safetensors")
    if config is not None and not single:
        raise ValueError(f"config: expected None, because {model!r} is not a single .safetensors file, got {config!r}")
    if single and variant is not None:
        raise ValueError(f"variant: expected None, because {model!r} is a single file, got {variant!r}")
    index = read_index(model, (config or _config_of(source)) if single else source, None if single else revision)
    _check_kind(model, index, anything)
    return Checkpoint(model, source, index, variant, revision, config)


def resolve(model: str) -> str:
    """The path of a local folder or .safetensors file, or the Hub id."""
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / INDEX).is_file():
            raise ValueError(f"model: expected a diffusers folder with {INDEX}, got {model!r}, a folder without it")
        return str(path)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(f"model: expected a .safetensors file, got {model!r}")
        return str(path)
    if model.startswith((".", "~", os.sep)) or path.suffix == ".safetensors" or not _HUB_ID.fullmatch(model):
        raise ValueError(
            f"model: expected {SHAPES!r}, a diffusers folder, a Hub id or a .safetensors file, got {model!r}, which is "
            "no such folder or file"
        )
    return model


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def read_index(model: str, source: str, revision: str | None = None) -> dict[str, Any]:
    """The index of a pipeline: the name of its class and of its parts. `source` is a folder or Hub id."""
    import json

    path = Path(source)
    if not path.is_dir():
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(source, INDEX, revision=revision)).parent
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model: expected {SHAPES!r}, a folder or a Hub id, got {model!r}: {_why(error, source)}"
            ) from error
    try:
        return json.loads((path / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"model: cannot read {INDEX} of {model!r}: {first_line(error)}") from error


def _why(error: BaseException, source: str) -> str:
    """The cause: the network, the repository, a revision or a file is missing."""
    from huggingface_hub import errors

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for kinds, words in (
        ((errors.OfflineModeIsEnabled,), "HF_HUB_OFFLINE is set, and there is no local copy"),
        ((errors.GatedRepoError,), f"the Hub requires you to accept the terms of {source} and to log in"),
        ((errors.RepositoryNotFoundError,), f"the Hub has no repository {source}, or it is private"),
        ((errors.RevisionNotFoundError,), f"the repository {source} has no such revision"),
    ):
        if any(isinstance(each, kinds) for each in chain):
            return words
    if any(_is_of_the_network(each) for each in chain):
        return "the Hub could not be reached, and there is no local copy: check the network"
    if any(isinstance(each, errors.EntryNotFoundError) for each in chain):
        return f"the repository {source} lacks a file ({first_line(error)})"
    return first_line(error)


def _is_of_the_network(error: BaseException) -> bool:
    """Compares class names, because the Hub's client changed its HTTP library."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"LocalEntryNotFoundError", "TransportError", "ConnectError", "ConnectTimeout", "gaierror"})


def _config_of(source: str) -> str:
    """The Hub id with the configuration of a single file, which diffusers infers from the names of its weights."""
    from safetensors import safe_open

    from entropy_attn.integrations.diffusers.private import config_of_single_file

    try:
        with safe_open(source, framework="pt") as file:
            return config_of_single_file({name: file.get_slice(name) for name in file.keys()})
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"config: expected a folder or Hub id, because diffusers does not recognize {source!r}, got None"
        ) from error
    except Exception as error:  # safetensors raises its exception class for any invalid bytes
        raise ValueError(f"model: expected a .safetensors file, got {source!r}: {first_line(error)}") from error


def _check_kind(model: str, index: dict[str, Any], anything: bool) -> None:
    from entropy_attn.integrations.diffusers.models import MODELS

    kind = index.get("_class_name", "pipeline of unknown kind")
    arguments = _call_arguments(kind)
    served = [row.denoiser for row in MODELS]
    part = index.get("unet") or index.get("transformer") or (None, None)
    two = (index.get("transformer_2") or (None, None))[1]
    reasons = {
        f"whose denoiser is not one of {', '.join(served)}": part[1] not in served,
        "which has two denoisers": two is not None,
    }
    if not anything:
        reasons = {
            "which has no VAE": not (index.get("vae") or index.get("vqvae")),
            **reasons,
            "which takes no prompt": "prompt" not in arguments,
            "which generates videos": "num_frames" in arguments,
        }
    wanted = "a pipeline that generates images" if anything else "a text-to-image pipeline"
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"model: expected {wanted}, got {model!r}, a {kind}, {reason}")


def _call_arguments(kind: str) -> list[str]:
    import diffusers

    pipeline = getattr(diffusers, kind, None)
    return [] if pipeline is None else list(inspect.signature(pipeline.__call__).parameters)
