"""OpenVINO on the CPU: the fastest way measured on Intel and AMD, and the default there."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from declip_runtime import onnx_head
from declip_runtime.cache import Cache
from declip_runtime.cpu import available_cpus
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import BackendExecutionError, BackendUnavailableError, CacheWarning, PrecisionError
from declip_runtime.quiet import import_openvino
from declip_runtime.signature import Array, Arrays, Sizes

from .base import Backend, Precision

if TYPE_CHECKING:
    from typing_extensions import Buffer

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVINOBackend(Backend):
    """An engine compiled by OpenVINO for the CPU.

    Precision "auto" is bf16 where the CPU multiplies bf16 natively, else fp32; fp32 gives equal scores on every
    machine. "int8" is the engine's int8 graph, with what is not quantised in the precision that "auto" takes.
    """

    name: ClassVar[str] = "openvino"
    graphs: ClassVar[Mapping[Precision, str]] = {"fp32": "fp32", "bf16": "fp32", "int8": "int8"}

    @classmethod
    def available(cls) -> str | None:
        """None where OpenVINO can be imported, else why not."""
        try:
            import_openvino()
        except ModuleNotFoundError:
            return "OpenVINO is not installed. Run: pip install openvino"
        except (ImportError, OSError) as error:
            return f"OpenVINO cannot be loaded ({error}). Run: pip install --force-reinstall openvino"
        return None

    @property
    def preferred_batch(self) -> int:
        """16: from 8 on the work per image no longer falls, from the bundled engine to ViT-H-14; the rest is slack."""
        return 16

    @classmethod
    def _resolve_impl(
        cls, engine: EngineFile, device: str | None, precision: str, component: str
    ) -> tuple[str, Precision]:
        if device is not None and device.lower() != "cpu":
            raise BackendUnavailableError(
                f"the OpenVINO backend runs on the CPU, not on {device!r}. Leave device out or choose another backend."
            )
        native = _native_precision(import_openvino().Core())
        if precision in ("fp16", "fp8"):
            raise PrecisionError(
                f"on a CPU {precision} is slower than fp32 or less exact than bf16. Use fp32, bf16 or int8."
            )
        if precision == "bf16" and native != "bf16":
            raise PrecisionError("this CPU has no bf16 instructions. Use precision='fp32'.")
        known: dict[str, Precision] = {"auto": native, "fp32": "fp32", "bf16": "bf16", "int8": "int8"}
        return "cpu", known[precision]

    def _load_impl(self, threads: int | None, cache: Cache | None) -> None:
        self._openvino = import_openvino()
        core = self._openvino.Core()
        graph = self.graph
        hint = _HINTS[_native_precision(core) if self.precision == "int8" else self.precision]
        config: dict[str, Any] = {
            # One stream, all threads on one batch: as fast as several streams from batch 16 on, and twice as fast for
            # a single image.
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": hint,
            # Pinned threads wait for the very cores that decoding threads, or a second scorer's, are running on.
            "ENABLE_CPU_PINNING": False,
        }
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        elif available_cpus() < (os.cpu_count() or 1):  # OpenVINO does not see container quotas
            config["INFERENCE_NUM_THREADS"] = available_cpus()
        try:
            self._compiled = self._obtain(core, graph, config, cache)
            computed = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        except RuntimeError as error:
            raise BackendExecutionError(
                f"OpenVINO {self._version} cannot compile graph {graph!r} of {self.engine.path}: {error}"
            ) from error
        if computed != hint:
            raise PrecisionError(f"OpenVINO computes in {computed} instead of {hint}. Choose another precision.")
        self.engine.require_unchanged()
        self._idle: list[Any] = []
        self.description = f"OpenVINO {self._version}, CPU, {self.precision}"

    @property
    def _version(self) -> str:
        return str(self._openvino.get_version()).split("-")[0]

    def _obtain(self, core: Any, graph: str, config: dict[str, Any], cache: Cache | None) -> Any:
        """The compiled model, from the cache where it is there, and into it where it was not.

        OpenVINO's own cache (CACHE_DIR) is not used: it takes any bytes for a model, and aborts the process over an
        entry that it may not remove. What it exports and imports is the same, and the import is faster.
        """
        if cache is None:
            return self._compile(core, graph, config)
        name = self._cache_name(core, graph, config["INFERENCE_PRECISION_HINT"])
        content = cache.get(name)
        if content is not None:
            self.engine.read(self.engine.manifest.graphs[graph])  # a damaged engine is an error on every start
            try:
                return self._import(core, content, config)
            except RuntimeError as error:
                _warn(
                    f"OpenVINO {self._version} cannot use the compiled model in the cache: {error}. It compiles anew."
                )
        compiled = self._compile(core, graph, config)
        self._keep(compiled, graph, name, cache)
        return compiled

    def _compile(self, core: Any, graph: str, config: dict[str, Any]) -> Any:
        # The weights by their address: OpenVINO reads no file outside the working directory.
        self._memory = self.engine.map("weights.bin")
        model = core.read_model(self.engine.graph(graph, onnx_head.IN_MEMORY, self._memory.ctypes.data))
        _release_pages(self._memory)
        return core.compile_model(model, "CPU", config)

    def _import(self, core: Any, content: memoryview, config: dict[str, Any]) -> Any:
        # The constants stay in this memory, which OpenVINO does not hold on to: it must live as long as the model.
        self._memory = np.frombuffer(content, np.uint8)
        return core.import_model(self._openvino.Tensor(self._memory, shared_memory=True), "CPU", config)

    def _keep(self, compiled: Any, graph: str, name: str, cache: Cache) -> None:
        """Put the compiled model into the cache. Raises EngineCorruptError for weights that do not match their hash."""
        tensors = onnx_head.tensors(self.engine.read(self.engine.manifest.graphs[graph]))
        # OpenVINO keeps float constants as fp32. Its smaller form (OPTIMIZE_SIZE) was no faster than compiling.
        expected = sum(t.length * (2 if t.dtype == "float16" else 1) for t in tensors)
        if not cache.has_room(expected, self.engine.id[:12]):
            return
        self.engine.require_whole("weights.bin")  # else scores of damaged weights would outlive the damaged file
        try:
            cache.put(name, expected, lambda file: _export(compiled, file), engine=self.engine.id[:12])
        except RuntimeError as error:
            _warn(f"OpenVINO {self._version} cannot export the compiled model: {error}. Every start compiles anew.")

    def _cache_name(self, core: Any, graph: str, hint: str) -> str:
        """Different for everything that the compiled form depends on, and readable in a listing."""
        facts = [self.engine.id, graph, hint, self._openvino.get_version()]
        facts += [core.get_property("CPU", "FULL_DEVICE_NAME"), *core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")]
        digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()
        return f"{self.engine.id[:12]}-{graph}-{hint}-openvino-{self._version}-{digest[:16]}"

    def _compute_impl(self, inputs: Arrays, sizes: Sizes) -> dict[str, Array]:
        try:  # one request for each thread that is in here now
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            # OpenVINO shares writable memory only, and does not hold on to it: copies must live until it has computed.
            held = {name: np.require(array, requirements="W") for name, array in inputs.items()}
            for name, array in held.items():
                request.set_tensor(name, self._openvino.Tensor(array, shared_memory=True))
            request.infer()
            outputs = {name: np.array(request.get_tensor(name).data) for name in self.signature.outputs}
        except RuntimeError as error:
            raise BackendExecutionError(f"OpenVINO {self._version} failed while running: {error}") from error
        self._idle.append(request)
        return outputs

    def _close_impl(self) -> None:
        self._idle.clear()
        del self._compiled  # before the memory that it computes from
        del self._memory


def _native_precision(core: Any) -> Precision:
    """What OpenVINO itself would compute fp32 graphs in: bf16 where the CPU has instructions for it."""
    return "bf16" if core.get_property("CPU", "INFERENCE_PRECISION_HINT").to_string() == "bf16" else "fp32"


def _release_pages(mapped: npt.NDArray[np.uint8]) -> None:
    """Give the pages of a mapping back to the system; they come back from the file when looked at.

    OpenVINO copies weights that it gets by address, so that the pages would only double what compiling needs.
    """
    if isinstance(mapped.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.base.madvise(mmap.MADV_DONTNEED)


def _export(compiled: Any, file: BinaryIO) -> None:
    """Write a compiled model into a file. Raises OSError where the file does not take it, RuntimeError as OpenVINO."""
    sink = _Sink(file)
    compiled.export_model(sink)
    if sink.error is not None:
        raise sink.error


class _Sink(io.BytesIO):
    """A file as the BytesIO that OpenVINO insists on, so that a large model is not in memory once more.

    OpenVINO drops exceptions of its streams: the first one is kept in ``error``.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.error: OSError | None = None

    def write(self, content: Buffer, /) -> int:
        with self._noting():
            return self._file.write(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        with self._noting():
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        with self._noting():
            return self._file.tell()

    def flush(self) -> None:
        with self._noting():
            self._file.flush()

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            raise


def _warn(message: str) -> None:
    warnings.warn(message, CacheWarning, stacklevel=2)
