"""A lane that runs a TensorRT plan: contexts with a stream, pinned buffers, a CUDA graph for each set of sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import cuda
from .errors import BackendExecutionError, DeviceMemoryError
from .lanes import Outputs, rows
from .signature import Array, Arrays, Signature, Sizes, SizesKey, TensorSpec, key_of
from .tensorrt_library import Log

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass
class _Rung:
    """One set of sizes: a context of its own, as a captured graph holds only while its context keeps its shapes.

    ``scratch`` is for what lies between layers; several may have the same.
    """

    context: trt.IExecutionContext
    scratch: cuda.DeviceMemory
    graph: cuda.Graph | None = None


class PlanLane:
    """Execution contexts of ``engine`` on GPU ``device``, one for all sizes of a call (see ``lanes.Lane``).

    They take turns on one stream, so they share buffers and the memory for what lies between layers. ``signature`` is
    what the plan takes and gives, ``largest`` the sizes that buffers are made for. ``captured`` becomes False where
    some part of the plan cannot be captured into a CUDA graph: it then runs call by call.

    Raises DeviceMemoryError, BackendExecutionError.
    """

    def __init__(self, engine: trt.ICudaEngine, signature: Signature, largest: Sizes, device: int, log: Log) -> None:
        self._engine, self._device, self._log, self._signature = engine, device, log, signature
        self.captured = True
        self._rungs: dict[SizesKey, _Rung] = {}
        self._running: tuple[int, Sizes] = (0, {})
        with ExitStack() as stack:
            cuda.use(device)
            self._stream = cuda.Stream()
            stack.callback(self._stream.close)
            self._host: dict[str, cuda.PinnedMemory] = {}
            self._memory: dict[str, cuda.DeviceMemory] = {}
            for name, spec in (*signature.inputs.items(), *signature.outputs.items()):
                self._host[name] = cuda.PinnedMemory(_bytes(spec, largest))
                stack.callback(self._host[name].close)
                self._memory[name] = cuda.DeviceMemory(_bytes(spec, largest))
                stack.callback(self._memory[name].close)
            self._opened = stack.pop_all()

    def prepare(self, sizes: Sizes) -> None:
        """Run once, for what TensorRT does at the first time only, then capture the same into a CUDA graph."""
        cuda.use(self._device)
        with self._log.quoted("preparing the plan"):
            rung = self._rungs[key_of(sizes)] = self._make_rung(sizes)
        try:
            self._warm_up(rung, sizes)
        except BaseException:
            with suppress(BackendExecutionError):  # of the work that failed
                self._stream.wait()
            self.release(sizes)
            raise

    def _warm_up(self, rung: _Rung, sizes: Sizes) -> None:
        self._enqueue(rung, sizes)
        self._stream.wait()
        if not self.captured:
            return
        self._stream.begin_capture()
        try:
            self._enqueue(rung, sizes)
        except BackendExecutionError:
            self.captured = False  # it runs, as was seen just before, but not while it is captured
        graph = self._stream.end_capture()
        if graph is None:
            self.captured = False
        elif self.captured:
            rung.graph = graph
        else:
            graph.close()

    def start(self, inputs: Arrays, sizes: Sizes) -> None:
        """Copy the inputs to where the GPU takes them from, and let it run."""
        cuda.use(self._device)
        count = rows(inputs)
        self._running = count, sizes
        for name, spec in self._signature.inputs.items():
            pinned = self._pinned(name, spec, sizes)
            pinned[:count] = inputs[name]
            pinned[count:] = 0
        rung = self._rungs[key_of(sizes)]
        if rung.graph is not None:
            self._stream.launch(rung.graph)
        else:
            self._enqueue(rung, sizes)

    def finish(self) -> Outputs:
        """Wait, and copy the results of the rows that were given."""
        cuda.use(self._device)
        self._stream.wait()
        count, sizes = self._running
        return {n: self._pinned(n, spec, sizes)[:count].copy() for n, spec in self._signature.outputs.items()}

    def release(self, sizes: Sizes) -> None:
        """Free the context and the graph of these sizes, which nothing may be running, and memory that was theirs."""
        cuda.use(self._device)
        rung = self._rungs.pop(key_of(sizes))
        if rung.graph is not None:
            rung.graph.close()
        scratch = rung.scratch
        del rung  # the context first, which knows the memory's address
        if all(other.scratch is not scratch for other in self._rungs.values()):
            scratch.close()

    def close(self) -> None:
        """Free graphs, contexts, memory and stream, when what they may still do is done."""
        cuda.use(self._device)
        with suppress(BackendExecutionError):  # of work that failed; that was told when it did
            self._stream.wait()
        with self._opened as stack:
            for rung in self._rungs.values():
                stack.callback(rung.scratch.close)  # which may be called again for the same
            stack.callback(self._rungs.clear)
            for rung in self._rungs.values():
                if rung.graph is not None:
                    stack.callback(rung.graph.close)

    def _make_rung(self, sizes: Sizes) -> _Rung:
        try:
            import tensorrt as trt
        except ModuleNotFoundError:
            import tensorrt_lean as trt

        context = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise DeviceMemoryError(f"TensorRT cannot make an execution context; its log: {self._log}.")
        for name, memory in self._memory.items():
            if not context.set_tensor_address(name, memory.address):
                raise self._log.error(f"TensorRT does not take an address for {name!r}.")
        inputs = self._signature.inputs.items()
        if not all(context.set_input_shape(name, spec.sized(sizes)) for name, spec in inputs) or context.infer_shapes():
            asked = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise self._log.error(f"the plan takes no {asked}. Build one that does: declip build")
        scratch = self._scratch_of(context.update_device_memory_size_for_shapes())
        context.set_device_memory(scratch.address, scratch.size)
        return _Rung(context, scratch)

    def _scratch_of(self, size: int) -> cuda.DeviceMemory:
        """Memory for what lies between layers: another rung's where that is large enough.

        In a ladder the largest batch comes first, and its block serves all.
        """
        enough = (rung.scratch for rung in self._rungs.values() if rung.scratch.size >= size)
        return min(enough, key=lambda memory: memory.size, default=None) or cuda.DeviceMemory(max(size, 1))

    def _enqueue(self, rung: _Rung, sizes: Sizes) -> None:
        """Queue the copies to the GPU, the plan, and the copies back."""
        for name, spec in self._signature.inputs.items():
            self._stream.upload(self._host[name], self._memory[name], _bytes(spec, sizes))
        with self._log.quoted("running the plan"):
            if not rung.context.execute_async_v3(self._stream.handle):
                raise self._log.error("TensorRT failed while running.")
        for name, spec in self._signature.outputs.items():
            self._stream.download(self._memory[name], self._host[name], _bytes(spec, sizes))

    def _pinned(self, name: str, spec: TensorSpec, sizes: Sizes) -> Array:
        """The pinned memory of an input or output as an array of these sizes."""
        content = self._host[name].view[: _bytes(spec, sizes)]
        array: Array = content.view(spec.dtype).reshape(spec.sized(sizes))
        return array


def require_signature(engine: trt.ICudaEngine, signature: Signature) -> None:
    """Raise BackendExecutionError unless the plan takes and gives what the manifest says.

    Its bytes came with the engine file, or from a cache.
    """
    found = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        found[name] = (tuple(engine.get_tensor_shape(name)), int(engine.get_tensor_dtype(name).itemsize or 0))
    wanted = {
        name: (
            tuple(-1 if isinstance(size, str) else size for size in spec.shape),
            np.dtype(spec.dtype).itemsize,
        )
        for name, spec in (*signature.inputs.items(), *signature.outputs.items())
    }
    if found != wanted:
        raise BackendExecutionError(
            f"the plan takes and gives {_listed(found)}, the manifest says {_listed(wanted)}."
            " Build it again: declip build"
        )


def _listed(tensors: Mapping[str, tuple[tuple[int, ...], int]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, (shape, _) in sorted(tensors.items()))


def _bytes(spec: TensorSpec, sizes: Sizes) -> int:
    return math.prod(spec.sized(sizes)) * np.dtype(spec.dtype).itemsize
