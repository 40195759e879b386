"""What this machine has, what runs an engine on it, and what would make it faster."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import features

from . import backends, cuda, nvimagecodec, tensorrt_library
from .cache import Cache
from .engine_file import EngineFile
from .errors import BackendError, CacheError
from .machine import describe_machine
from .quiet import import_onnxruntime

_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
_INT8 = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}  # without them INT8 is no faster than FP32
_DRIVER = Path("/proc/driver/nvidia/version")  # of the kernel's module, on Linux


@dataclass(frozen=True)
class Diagnosis:
    """Facts as texts by name, what ``Scorer`` would take for an engine (or why nothing), and advice in sentences.

    ``backends`` maps each name to None where it can be used, else to the reason.
    """

    machine: dict[str, str]
    gpus: tuple[cuda.Gpu, ...]
    libraries: dict[str, str]
    backends: dict[str, str | None]
    chosen: dict[str, str]
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready form."""
        return asdict(self)


def diagnose(engine: EngineFile) -> Diagnosis:
    """Look at everything; nothing is compiled, written or sent. Takes as long as importing the vendors' libraries."""
    usable, chosen = backend_states(), chosen_here(engine)
    facts = {name: str(value) for name, value in describe_machine().items()}
    return Diagnosis(
        machine={name: facts[name] for name in ("system", "cpu", "cpus", "instruction sets", "versions")} | _cache(),
        gpus=tuple(cuda.gpu(index) for index in range(cuda.gpu_count())),
        libraries=_libraries(usable),
        backends=usable,
        chosen=chosen,
        advice=tuple(_advice(engine, usable, chosen, set(facts["instruction sets"].split()))),
    )


def backend_states() -> dict[str, str | None]:
    """Every backend with None where users can choose it, else the reason."""
    return {**backends.available(), "fake": "made for tests: its scores are made up"}


def chosen_here(engine: EngineFile) -> dict[str, str]:
    """What ``Scorer`` would take (backend, device, precision), or ``error`` with the reasons why nothing."""
    try:
        return asdict(backends.resolve(engine, component=engine.manifest.main))
    except BackendError as error:
        return {"error": str(error)}


def has_driver() -> bool:
    """Whether NVIDIA's driver is installed, which is there before any package of ours that could use it."""
    with suppress(OSError):
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        return True
    return False


def _cache() -> dict[str, str]:
    try:
        cache = Cache()
        return {"cache": f"{cache.location}, {cache.size / 1e6:,.0f} of at most {cache.limit / 1e6:,.0f} MB"}
    except CacheError as error:
        return {"cache": str(error)}


def _libraries(usable: dict[str, str | None]) -> dict[str, str]:
    """Versions, with what decides about speed beside them."""
    found = {}
    with suppress(ImportError, OSError):
        found["TensorRT"] = tensorrt_library.version() + (" (lean runtime)" if tensorrt_library.is_lean() else "")
    if usable["onnxruntime"] is None:
        library = import_onnxruntime()
        found["ONNX Runtime"] = f"{library.__version__}, {', '.join(library.get_available_providers())}"
    if number := _installed("openvino"):
        found["OpenVINO"] = number
    if number := _installed("cuda-bindings"):
        found["cuda-bindings"] = number
    if number := _nvimagecodec():
        found["nvImageCodec"] = number
    if stated := _driver_version():
        found["NVIDIA driver"] = stated
    newest = cuda.versions()
    if "driver" in newest:
        found["CUDA of the driver"] = f"{newest['driver']} and older"
    if "runtime" in newest:
        found["CUDA runtime"] = newest["runtime"]
    turbo = features.check("libjpeg_turbo")
    found["JPEG decoder"] = "libjpeg-turbo" if turbo else "plain libjpeg"
    return found


def _advice(
    engine: EngineFile, usable: dict[str, str | None], chosen: dict[str, str], instruction_sets: set[str]
) -> Iterator[str]:
    backend = chosen.get("backend")
    if has_driver() and backend != "tensorrt":
        yield f"This machine has NVIDIA's driver, but TensorRT is not used: {_refused(engine, 'tensorrt')}"
        if _refused(engine, "onnxruntime", device="cuda") is None:
            yield 'ONNX Runtime can use the GPU: Scorer(backend="onnxruntime", device="cuda").'
    if cuda.gpu_count() and not _nvimagecodec() and not _is_linux_on_arm():
        yield f'The GPU could decode JPEGs (decode="gpu", --gpu-decode). {nvimagecodec.INSTALL}'
    if backend != "tensorrt" and usable["openvino"] is not None and not _is_linux_on_arm():
        yield f"On this CPU OpenVINO would be faster: {usable['openvino']}"
    slow = backend == "openvino" and not instruction_sets & _BF16
    if slow and instruction_sets & _INT8 and "int8" not in engine.manifest.graphs:
        yield (
            "This CPU multiplies no bf16, so the model computes in fp32. An engine with an INT8 graph is faster:"
            " declip export --int8 PHOTOS"
        )
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        yield (
            "onnxruntime and onnxruntime-gpu are both installed and shadow each other."
            " Run: pip uninstall -y onnxruntime onnxruntime-gpu, then install the one that is wanted."
        )
    if not features.check("libjpeg_turbo"):
        yield "This Pillow decodes JPEG without libjpeg-turbo. Run: pip install --force-reinstall pillow"
    allowed, present = int(describe_machine()["cpus"]), os.cpu_count() or 1
    if allowed < present:
        yield f"This process may use {allowed} of {present} CPUs (affinity or container limit). Allow it more."
    try:
        if not Cache().limit:
            yield "The cache of compiled models is off, so that every start compiles. Unset DECLIP_CACHE_LIMIT."
    except CacheError as error:
        yield f"Every start compiles the model anew: {error}"


def _refused(engine: EngineFile, backend: str, *, device: str | None = None) -> str | None:
    """Why ``backend`` does not run ``engine`` here; None where it does."""
    try:
        backends.resolve(engine, backend, component=engine.manifest.main, device=device)
    except BackendError as error:
        return str(error)
    return None


def _driver_version() -> str | None:
    """The number of NVIDIA's kernel module, as 580.95.05; None where the system does not show one."""
    with suppress(OSError):
        match = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", _DRIVER.read_text(encoding="utf-8", errors="replace"))
        return match[1] if match else None
    return None


def _nvimagecodec() -> str | None:
    return _installed("nvidia-nvimgcodec-cu12") or _installed("nvidia-nvimgcodec-cu13")


def _is_linux_on_arm() -> bool:
    return sys.platform == "linux" and os.uname().machine == "aarch64"


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
