"""Loading a Stable Diffusion: a folder of diffusers' form, a checkpoint file, or a repository on the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from declip_export.weights import StorageDtype
from declip_runtime.errors import ExportError
from declip_runtime.generator_manifest import Family

from .library import library, quiet, reason
from .tensors import tensor_names

_SUPPORTED = "Supported are Stable Diffusion 1.x, 2.x and SDXL with a UNet2DConditionModel"
_PIPELINES: dict[Family, str] = {"sd": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
_PARTS = {"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel", "vae": "AutoencoderKL"}
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
_DTYPES: dict[StorageDtype, torch.dtype] = {"float16": torch.float16, "float32": torch.float32}
# What only the checkpoints of one family hold, in the naming of their training code.
_MARKS: tuple[tuple[str, Family | None], ...] = (
    ("conditioner.embedders.1.", "sdxl"),
    ("conditioner.embedders.0.", None),  # the refiner, which has no second text encoder
    ("cond_stage_model.", "sd"),
)


@dataclass(frozen=True)
class Base:
    """A loaded pipeline and where it came from; ``loras`` are those that were fused into it."""

    pipeline: Any
    family: Family
    source: str
    loras: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def text_width(self) -> int:
        """Width of the text states that the UNet's cross attention takes."""
        width = self.pipeline.unet.config.cross_attention_dim
        widths = {width} if isinstance(width, int) else set(width)
        if len(widths) != 1:
            raise ExportError(f"the UNet takes text states of several widths, {sorted(widths)}. {_SUPPORTED}.")
        return int(widths.pop())

    def with_lora(self, record: Mapping[str, Any]) -> Base:
        """The same pipeline, with a note of what was fused into it."""
        return replace(self, loras=(*self.loras, record))


def load_base(
    source: str | Path, *, dtype: StorageDtype = "float16", variant: str | None = None, config: str | None = None
) -> Base:
    """Load the pipeline at ``source``: a folder, a checkpoint file (.safetensors or .ckpt), or an id on the hub.

    ``dtype`` float16 holds the weights in FP16, which an engine with FP16 storage keeps of them anyway, and halves
    the memory. ``variant`` chooses among the files of a repository, as "fp16" does. ``config`` is a folder or id
    whose configuration a checkpoint file is read with; without it diffusers takes it from the hub.

    Raises ExportError for a base model that is missing, gated, damaged or of another kind.
    """
    path = Path(source)
    with quiet(), _explained(str(source)):
        if path.is_file():
            return _from_file(path, _DTYPES[dtype], config)
        if config is not None:
            raise ExportError(f"{source} is no checkpoint file, and only those need a configuration. Leave it out.")
        family, unused = _recognised(str(source))
        chosen = {} if variant is None else {"variant": variant}
        pipeline = _class(family).from_pretrained(str(source), torch_dtype=_DTYPES[dtype], **unused, **chosen)
    return Base(pipeline, family, str(source))


def _class(family: Family) -> Any:
    return getattr(library("diffusers"), _PIPELINES[family])


def _recognised(source: str) -> tuple[Family, dict[str, None]]:
    """The family of a pipeline of diffusers' form, by its parts, and those parts that are not needed."""
    index = library("diffusers").DiffusionPipeline.load_config(source)
    parts = {name: value[1] for name, value in index.items() if isinstance(value, list | tuple) and len(value) == 2}
    name = index.get("_class_name", "an unnamed pipeline")
    if any(parts.get(part) != kind for part, kind in _PARTS.items()):
        raise ExportError(f"{source} is a {name}. {_SUPPORTED}, CLIP text encoders and an AutoencoderKL.")
    if "controlnet" in parts:
        raise ExportError(
            f"{source} is a {name}, whose ControlNet would be left out. {_SUPPORTED}; give its base model."
        )
    second = parts.get("text_encoder_2")
    if second not in (None, "CLIPTextModelWithProjection"):
        raise ExportError(f"{source} is a {name}, whose second text encoder is a {second}. {_SUPPORTED}.")
    return "sd" if second is None else "sdxl", {name: None for name in _UNUSED if name in index}


def _from_file(path: Path, dtype: torch.dtype, config: str | None) -> Base:
    family = _family_of(tensor_names(path), path)
    options: dict[str, Any] = {} if config is None else {"config": config}
    if family == "sd":
        options["safety_checker"] = None
    return Base(_class(family).from_single_file(str(path), torch_dtype=dtype, **options), family, str(path))


def _family_of(names: Sequence[str], path: Path) -> Family:
    for mark, family in _MARKS:
        if any(name.startswith(mark) for name in names):
            if family is None:
                raise ExportError(f"{path} is the refiner of SDXL. Give the base model.")
            return family
    raise ExportError(
        f"{path} is no whole Stable Diffusion: its text encoder is missing. {_SUPPORTED}; give a checkpoint that holds "
        "UNet, VAE and text encoder, or a folder of diffusers' form."
    )


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """What diffusers and the hub raise, as one ExportError each."""
    try:
        yield
    except ExportError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{_what_failed(source, error)}") from error
    except Exception as error:
        # Unpickling and HTTP libraries have exceptions of their own, which no common class unites.
        if type(error).__module__.partition(".")[0] in ("pickle", "_pickle", "httpx", "requests", "huggingface_hub"):
            raise ExportError(_what_failed(source, error)) from error
        raise


def _what_failed(source: str, error: BaseException) -> str:
    raised = set(_classes(error))
    if "GatedRepoError" in raised:
        return (
            f"{source} is gated: its licence must be accepted. Accept it at https://huggingface.co/{source} and log in "
            "with `hf auth login`, or give a folder."
        )
    if Path(source).exists():
        return f"{source} cannot be loaded as a Stable Diffusion: {reason(error)}. Copy or download it again."
    return (
        f"there is no base model {source}: {reason(error)}. Give a folder of diffusers' form, a checkpoint file, or "
        "the id of a repository on huggingface.co that this machine can reach."
    )


def _classes(error: BaseException | None) -> Iterator[str]:
    """Names of the classes of an error and of everything that it came from."""
    while error is not None:
        yield from (cls.__name__ for cls in type(error).__mro__)
        error = error.__cause__ or error.__context__
