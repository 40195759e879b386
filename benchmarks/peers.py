"""Models for the benchmarks, and everything they are compared with. Needs the extra ``benchmark``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from photos import originals
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from declip_export.engine import export_engine
from declip_runtime import backends
from declip_runtime.backends.base import Backend
from declip_runtime.benchmark import Workload
from declip_runtime.engine_file import EngineFile, bundled_engine
from declip_runtime.errors import PrecisionError
from declip_runtime.manifest import Preprocess
from declip_runtime.preprocess import prepare
from declip_runtime.quiet import import_onnxruntime, import_openvino
from declip_training.model.declip import DeCLIP
from declip_training.model.projector import Projector
from declip_training.model.prompts import PromptSet
from declip_training.model.tower import load_clip
from declip_training.recipes.nano import MODEL_CONFIG

NANO = "declip-nano"
Peer = Callable[[Tensor], Workload]


@dataclass(frozen=True)
class Model:
    """The same network in torch and as an engine; of the bundled engine torch has the form, not the weights."""

    name: str
    declip: DeCLIP
    preprocess: Preprocess
    engine: EngineFile


def load_model(name: str, folder: Path, *, int8: bool = False) -> Model:
    """``declip-nano`` is the bundled engine; any other name an open_clip tower with random weights, exported here."""
    clip, tokenizer, preprocess = load_clip(str(MODEL_CONFIG) if name == NANO else name, "random")
    prompts = PromptSet.default()
    projector = Projector(prompts.encode(clip, tokenizer).pairs.shape[2]).randomize(torch.Generator().manual_seed(0))
    declip = DeCLIP.from_clip(clip, tokenizer, prompts, projector).eval()
    # As open_clip hands it out: with frozen weights torch can take slower paths.
    declip.requires_grad_(True)
    if name == NANO:
        return Model(name, declip, preprocess, EngineFile.open(bundled_engine()))
    photos = np.concatenate([prepare(photo, preprocess, views=8) for photo in originals(None)])
    engine = export_engine(
        declip, preprocess, prompts.specs(), folder / f"{name}.engine", int8_images=photos if int8 else None
    )
    return Model(name, declip, preprocess, engine)


def our_backends(model: Model) -> list[Backend]:
    """Ours on every backend, at every precision that it and the engine have."""
    found: list[Backend] = []
    for name in ("openvino", "onnxruntime"):
        for precision in ("bf16", "fp32", "int8"):
            with suppress(PrecisionError):
                found.append(backends.choose(model.engine, name, precision=precision))
    return found


def normalized(pixels: np.ndarray[Any, Any], preprocess: Preprocess) -> Tensor:
    """What open_clip's transform would have handed to torch: float32 [B, 3, S, S]."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (preprocess.mean, preprocess.std))
    images: Tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    normal: Tensor = ((images - mean) / std).contiguous()
    return normal


def torch_peer(model: Model, images: Tensor, dtype: torch.dtype = torch.float32) -> Workload:
    """open_clip eager, as a user would write it; a tower of another ``dtype`` holds its weights in it.

    Autocast is not used for bf16: its copies of the weights send attention's inputs down a path slower than FP32's.
    """
    declip = model.declip if dtype == torch.float32 else copy.deepcopy(model.declip)
    declip.visual.to(dtype)
    images = images.to(dtype)

    @torch.inference_mode()
    def run() -> Tensor:
        scores: Tensor = declip(images).scores
        return scores

    return run


def plain_export(model: Model, path: Path) -> Path:
    """``torch.onnx.export(dynamo=True)`` of the same module, nothing changed but a free batch size."""
    size = model.preprocess.size
    torch.onnx.export(
        model.declip,
        (torch.zeros(2, 3, size, size),),
        path,
        dynamo=True,
        input_names=["images"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    return path


def plain_onnxruntime(path: Path) -> Peer:
    """The plain export on ONNX Runtime with its defaults."""
    session = import_onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: lambda: session.run(None, {"images": images.numpy()})


def plain_openvino(path: Path) -> Peer:
    """The plain export on OpenVINO with its defaults, which are bf16 where the CPU has it."""
    request = import_openvino().Core().compile_model(str(path), "CPU").create_infer_request()
    return lambda images: lambda: request.infer({"images": images.numpy()})


class _Products(TorchDispatchMode):
    """Records [M, K] x [K, N] of every linear layer, and of every convolution the product it stands for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: list[tuple[int, int, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in ("mm", "addmm"):
            a, b = args[-2:]
            self.shapes.append((a.shape[0], a.shape[1], b.shape[1]))
        elif name == "bmm" and args[1].stride(0) == 0:  # a linear layer on a transposed input, as attention has it
            self.shapes.append((args[0].shape[0] * args[0].shape[1], *args[1].shape[1:]))
        elif name == "convolution":
            kernel = args[1]
            self.shapes.append((result.numel() // result.shape[1], kernel[0].numel(), kernel.shape[0]))
        return result


def gemm_ceiling(model: Model, images: Tensor, dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> Workload:
    """Nothing but the matrix products of the network, one after another; on a CPU by oneDNN, which OpenVINO uses too.

    ``images`` are float32 on the CPU; the model is where its parameters are.
    """
    torch.backends.mha.set_fastpath_enabled(False)  # it would hide the products of attention from the recorder
    with torch.no_grad(), _Products() as products:
        parameter = next(model.declip.visual.parameters())
        model.declip(images.to(parameter.device, parameter.dtype))
    torch.backends.mha.set_fastpath_enabled(True)
    place: dict[str, Any] = {"dtype": dtype, "device": device}
    operands = {(m, k, n): (torch.randn(m, k, **place), torch.randn(n, k, **place).T) for m, k, n in products.shapes}
    outputs = {(m, k, n): torch.empty(m, n, **place) for m, k, n in products.shapes}

    def run() -> None:
        for shape in products.shapes:
            torch.mm(*operands[shape], out=outputs[shape])
        if device != "cpu":
            torch.cuda.synchronize()

    return run
