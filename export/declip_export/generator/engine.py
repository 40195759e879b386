"""The whole way from a Stable Diffusion, an IP-Adapter and a DeCLIP to an engine file, in one function."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from declip_export.onnx_graph import OnnxGraph, trace_images
from declip_export.photos import sample_images
from declip_export.precision import with_fp32_outputs
from declip_export.range_audit import RangeAudit, audit_feeds
from declip_export.vit import ExportViT
from declip_export.weights import WEIGHTS, StorageDtype, WeightStore, head
from declip_runtime.engine_file import EngineFile
from declip_runtime.engine_writer import Content, write_engine
from declip_runtime.errors import ExportError, UsageError
from declip_runtime.generator_manifest import GeneratorManifest, TextInput
from declip_runtime.manifest import License
from declip_runtime.signature import Range
from declip_runtime.version import __version__

from .adapter import Adapter
from .base import Base
from .components import Component, Sizes, components_of, fix_sizes
from .embedder import Embedder, ImageEncoder
from .emission import emit
from .feeds import Feeds, clean_latents, denoising_feeds
from .library import reason
from .parity import GeneratorParity, Kind, measure_backends, measure_emulated, require_parity
from .references import Case, reference_cases
from .sizes import PixelSize, picture_sizes
from .tokenizers import tokenizers_of

Progress = Callable[[str], None]
"""Told what is done next, in a few words."""

_TRIED = 2  # times the granularity: latents of the range audit and of parity, whatever size the engine is for
_AUDITED = 8  # synthetic pictures that the range audit of the image encoder looks at
_LIBRARIES = ("torch", "onnx", "diffusers", "transformers", "open_clip_torch")


def export_generator(
    base: Base,
    adapter: Adapter,
    embedder: Embedder,
    path: str | Path,
    *,
    weights_dtype: StorageDtype = "float16",
    fp16: bool = True,
    height: PixelSize | None = None,
    width: PixelSize | None = None,
    steps: int = 30,
    guidance: float = 7.5,
    parity: bool = True,
    name: str | None = None,
    license: License | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress = lambda _: None,
) -> EngineFile:
    """Export ``base`` with ``adapter`` in it and ``embedder`` to an engine file at ``path``, five models in one file.

    ``fp16`` adds the graphs that GPUs run; what FP16 cannot hold stays FP32 there, as far as plausible inputs show it.
    ``height`` and ``width`` of pictures in pixels are fixed, by default to what the UNet was trained on, or free in a
    range. ``steps`` and ``guidance`` are the defaults of generating. ``parity`` compares every graph with diffusers, on
    every CPU backend here and as a GPU would compute it, keeps the rows in the provenance, and raises for a miss; it
    runs them with free sizes and small pictures, whatever size the engine is fixed to. ``name`` defaults to the file's
    stem. ``provenance`` is kept as given, together with where the models came from and what exported them. No weight is
    changed.

    Raises ExportError for models that cannot be exported or miss parity, UsageError for sizes that cannot be.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise UsageError(f"the folder {target.parent} does not exist. Create it or choose another output.")
    if target.is_dir():
        raise UsageError(f"{target} is a folder. Name a file to write.")
    if weights_dtype == "float32" and any(p.dtype != torch.float32 for p in _weights(base, embedder)):
        raise UsageError("models were loaded in FP16 that FP32 storage is asked for. Load them with dtype='float32'.")
    components = {component.name: component for component in components_of(base, adapter, embedder)}
    granularity, pixels = components["unet"].granularity, _pixels_a_latent(components["vae_decoder"])
    sizes = picture_sizes(base, granularity, pixels, height, width)
    tokenizers = tokenizers_of(base)
    progress("asking diffusers what is right")
    tried = (_TRIED * granularity,) * 2
    cases = reference_cases(base, adapter, embedder, weights_dtype, tried)
    heads: dict[str, bytes] = {}
    audits: dict[str, RangeAudit] = {}
    rows: list[GeneratorParity] = []
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        work = Path(folder)
        with WeightStore(work / WEIGHTS, weights_dtype) as store:
            for component in components.values():
                progress(f"tracing {component.name} to ONNX")
                graph = _graph(component, work, weights_dtype)
                typed: dict[Kind, OnnxGraph] = {"fp32": graph}
                if fp16:
                    progress(f"looking for values of {component.name} beyond FP16")
                    feeds = _feeds(component, cases, embedder, tried, pixels)
                    typed["fp16"] = _half(component, graph, feeds, base, audits)
                chosen = [case for case in cases if case.component == component.name] if parity else []
                progress(f"writing {component.name}")
                for kind, each in typed.items():
                    heads[f"{component.name}-{kind}"] = head(each, store)
                    rows += measure_emulated(each, kind, chosen)
                require_parity(rows)
                del graph, typed, each
        texts = {text: TextInput(f"tokenizers/{text}.json", pad) for text, (_, pad) in tokenizers.items()}
        manifest = GeneratorManifest(
            name=name or target.stem,
            graphs={graph: f"graphs/{graph}.onnx" for graph in heads},
            weights_dtype=weights_dtype,
            producer=f"declip-sdk {__version__}",
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            license=license,
            provenance={
                **_origin(base, adapter, embedder),
                **(provenance or {}),
                "versions": {library: version(library) for library in _LIBRARIES},
                "range_audit": {component: audit.summary() for component, audit in audits.items()},
            },
            family=base.family,
            components=_signatures(components, sizes.latents),
            preprocess=embedder.preprocess,
            embedding_dim=embedder.dim,
            layers=components["unet"].module.layers,  # type: ignore[arg-type]
            text_inputs=texts,
            scheduler=_scheduler(base.pipeline.scheduler),
            height=sizes.height,
            width=sizes.width,
            steps=steps,
            guidance=guidance,
            vae_scale=pixels,
            zero_negative=bool(base.pipeline.config.get("force_zeros_for_empty_prompt", False)),
        )
        files: dict[str, Content] = {WEIGHTS: work / WEIGHTS}
        files |= {texts[text].entry: content for text, (content, _) in tokenizers.items()}
        if parity:
            progress("comparing with diffusers on this machine")
            free = {side: Range(granularity, tried[0], 8 * tried[0]) for side in ("height", "width")}
            draft = replace(manifest, components=_signatures(components, free))
            rows += measure_backends(
                write_engine(work / "draft.engine", draft, files | _entries(draft, heads, work)), cases
            )
            (work / "draft.engine").unlink()
            require_parity(rows)
            manifest = replace(manifest, provenance={**manifest.provenance, "parity": [asdict(row) for row in rows]})
        progress("writing the engine")
        return write_engine(target, manifest, files | _entries(manifest, heads, work))


def _weights(base: Base, embedder: Embedder) -> Iterator[Tensor]:
    for module in (embedder.encoder, *base.pipeline.components.values()):
        if isinstance(module, nn.Module):
            yield from module.parameters()


def _graph(component: Component, folder: Path, storage: StorageDtype) -> OnnxGraph:
    module = component.module
    if isinstance(module, ImageEncoder) and not isinstance(module.tower, ExportViT):
        side = int(component.inputs["images"].shape[1])
        return trace_images(module, side, [*component.outputs], folder)
    return emit(module, component.inputs, component.outputs, storage)


def _half(
    component: Component, graph: OnnxGraph, feeds: Sequence[Feeds], base: Base, audits: dict[str, RangeAudit]
) -> OnnxGraph:
    """The FP16-typed graph of a component; the audit that it rests on joins ``audits``."""
    if component.name == "vae_decoder" and base.family == "sdxl" and base.pipeline.vae.config.force_upcast:
        return graph  # SDXL's decoder overflows on real pictures, which no made-up latents show, and says so itself
    audits[component.name] = audit_feeds(graph, feeds)
    return with_fp32_outputs(audits[component.name].to_fp16(graph))


def _feeds(
    component: Component, cases: Sequence[Case], embedder: Embedder, size: tuple[int, int], pixels: int
) -> list[Feeds]:
    """What the range audit looks at."""
    found = {case.component: case for case in cases}
    if component.name == "image_encoder":
        images = sample_images(embedder.preprocess.size, _AUDITED)
        return [{"images": images[start : start + 4]} for start in range(0, _AUDITED, 4)]
    if component.name == "vae_decoder":
        channels = int(component.inputs["latents"].shape[1])
        return [{"latents": clean_latents(2, channels, *size, np.random.default_rng(seed))} for seed in range(2)]
    if component.name == "unet":
        text, tokens = found["text_encoder"].wanted, found["image_tokens"].wanted["tokens"]
        channels, layers = (int(component.inputs[name].shape[axis]) for name, axis in (("sample", 1), ("scale", 2)))
        return [*denoising_feeds(text, tokens, channels, layers, size, pixels)]
    return [found[component.name].feeds]


def _entries(manifest: GeneratorManifest, heads: Mapping[str, bytes], folder: Path) -> dict[str, Content]:
    """Each graph with the sizes that the manifest states; ``folder`` holds the weights, and gets the graphs too.

    Raises ExportError for what ONNX's own checker finds, types and shapes included.
    """
    entries: dict[str, Content] = {}
    for graph, data in heads.items():
        path = folder / f"{graph}.onnx"
        path.write_bytes(fix_sizes(data, manifest.components[graph.rpartition("-")[0]]))
        entries[manifest.graphs[graph]] = path
        try:
            onnx.checker.check_model(str(path), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(
                f"the graph {graph} of this model is not valid ONNX: {reason(error)}. Give another model, and report "
                "this one."
            ) from error
    return entries


def _signatures(components: Mapping[str, Component], sizes: Sizes) -> dict[str, Any]:
    return {name: component.signature(sizes) for name, component in components.items()}


def _pixels_a_latent(decoder: Component) -> int:
    return int(decoder.module.scale)  # type: ignore[arg-type]


def _scheduler(scheduler: Any) -> dict[str, Any]:
    """Its configuration as JSON has it, with its class, and without the other notes that diffusers keeps for itself."""
    plain = {k: v for k, v in dict(scheduler.config).items() if not k.startswith("_")}
    config = {k: np.asarray(v).tolist() if isinstance(v, list | tuple | np.ndarray) else v for k, v in plain.items()}
    return {"_class_name": type(scheduler).__name__, **config}


def _origin(base: Base, adapter: Adapter, embedder: Embedder) -> dict[str, Any]:
    """Where the models came from: ids, or names of files and folders, whose paths are nobody's business."""

    def named(source: str) -> str:
        return Path(source).name if Path(source).exists() else source

    return {
        "base": named(base.source),
        "loras": [{**lora, "source": named(str(lora["source"]))} for lora in base.loras],
        "adapter": named(adapter.source),
        "tower": embedder.tower,
        "pretrained": embedder.pretrained,
        "projector_sha256": embedder.projectors_sha256,
        "projectors": "trained" if embedder.projected else "identity: perceptual and semantic are the tower's own",
    }
