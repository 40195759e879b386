"""A lane that runs a TensorRT plan: an execution context with a stream, pinned buffers, a CUDA graph for each batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from . import cuda
from .errors import BackendExecutionError, DeviceMemoryError
from .lanes import Images, Outputs
from .tensorrt_library import Log

if TYPE_CHECKING:
    import tensorrt as trt

IMAGES = "images"


@dataclass(frozen=True)
class Tensor:
    """An input or output of the plan: its shape for one image, and bytes an element."""

    shape: tuple[int, ...]
    itemsize: int

    @property
    def size(self) -> int:
        """Bytes for one image."""
        return math.prod(self.shape) * self.itemsize


@dataclass
class _Rung:
    """One batch size: a context of its own, because a captured graph holds only while its context keeps its shapes."""

    context: trt.IExecutionContext
    graph: cuda.Graph | None = None


class PlanLane:
    """Execution contexts of ``engine`` on GPU ``device``, one a batch size up to ``capacity`` (see ``lanes.Lane``).

    They take turns on one stream, so they share buffers and the memory for what lies between layers.
    ``tensors`` are the plan's input ``images`` (uint8) and its outputs (float32). ``captured`` becomes False where some
    part of the plan cannot be captured into a CUDA graph: it then runs call by call.

    Raises DeviceMemoryError, BackendExecutionError.
    """

    def __init__(
        self, engine: trt.ICudaEngine, tensors: Mapping[str, Tensor], capacity: int, device: int, log: Log
    ) -> None:
        self._engine, self._device, self._log, self._tensors = engine, device, log, tensors
        self.captured = True
        self._rungs: dict[int, _Rung] = {}
        self._scratch: list[cuda.DeviceMemory] = []
        self._running = 0
        with ExitStack() as stack:
            cuda.use(device)
            self._stream = cuda.Stream()
            stack.callback(self._stream.close)
            self._host: dict[str, cuda.PinnedMemory] = {}
            self._memory: dict[str, cuda.DeviceMemory] = {}
            for name, tensor in tensors.items():
                self._host[name] = cuda.PinnedMemory(tensor.size * capacity)
                stack.callback(self._host[name].close)
                self._memory[name] = cuda.DeviceMemory(tensor.size * capacity)
                stack.callback(self._memory[name].close)
            self._opened = stack.pop_all()

    def prepare(self, batch: int) -> None:
        """Run once, for what TensorRT does at the first time only, then capture the same into a CUDA graph."""
        cuda.use(self._device)
        with self._log.quoted("preparing the plan"):
            rung = self._rungs[batch] = _Rung(self._make_context(batch))
        self._enqueue(rung, batch)
        self._stream.wait()
        if not self.captured:
            return
        self._stream.begin_capture()
        try:
            self._enqueue(rung, batch)
        except BackendExecutionError:
            self.captured = False  # it runs, as was seen just before, but not while it is captured
        graph = self._stream.end_capture()
        if graph is None:
            self.captured = False
        elif self.captured:
            rung.graph = graph
        else:
            graph.close()

    def start(self, images: Images, batch: int) -> None:
        """Copy the images to where the GPU takes them from, and let it run."""
        cuda.use(self._device)
        self._running = len(images)
        pixels = self._host[IMAGES].view[: self._tensors[IMAGES].size * batch].reshape(batch, *images.shape[1:])
        pixels[: len(images)] = images
        pixels[len(images) :] = 0
        rung = self._rungs[batch]
        if rung.graph is not None:
            self._stream.launch(rung.graph)
        else:
            self._enqueue(rung, batch)

    def finish(self) -> Outputs:
        """Wait, and copy the results of the images that were given."""
        cuda.use(self._device)
        self._stream.wait()
        return {name: self._result(name, tensor) for name, tensor in self._tensors.items() if name != IMAGES}

    def close(self) -> None:
        """Free graphs, contexts, memory and stream, when what they may still do is done."""
        cuda.use(self._device)
        with suppress(BackendExecutionError):  # of work that failed; that was told when it did
            self._stream.wait()
        with self._opened as stack:
            for memory in self._scratch:
                stack.callback(memory.close)
            stack.callback(self._rungs.clear)
            for rung in self._rungs.values():
                if rung.graph is not None:
                    stack.callback(rung.graph.close)

    def _make_context(self, batch: int) -> trt.IExecutionContext:
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
        if not context.set_input_shape(IMAGES, (batch, *self._tensors[IMAGES].shape)) or context.infer_shapes():
            raise self._log.error(f"the plan takes no batch of {batch}.")
        scratch = self._scratch_of(context.update_device_memory_size_for_shapes())
        context.set_device_memory(scratch.address, scratch.size)
        return context

    def _scratch_of(self, size: int) -> cuda.DeviceMemory:
        """Memory for what lies between layers; the largest batch comes first, and mostly its block serves all."""
        for memory in self._scratch:
            if memory.size >= size:
                return memory
        self._scratch.append(cuda.DeviceMemory(max(size, 1)))
        return self._scratch[-1]

    def _enqueue(self, rung: _Rung, batch: int) -> None:
        """Queue the copy to the GPU, the plan, and the copies back."""
        images = self._tensors[IMAGES]
        self._stream.upload(self._host[IMAGES], self._memory[IMAGES], images.size * batch)
        with self._log.quoted("running the plan"):
            if not rung.context.execute_async_v3(self._stream.handle):
                raise self._log.error("TensorRT failed while running.")
        for name, tensor in self._tensors.items():
            if name != IMAGES:
                self._stream.download(self._memory[name], self._host[name], tensor.size * batch)

    def _result(self, name: str, tensor: Tensor) -> npt.NDArray[np.float32]:
        content = self._host[name].view[: tensor.size * self._running]
        result: npt.NDArray[np.float32] = content.view(np.float32).reshape(self._running, *tensor.shape).copy()
        return result


def tensors_of(engine: trt.ICudaEngine) -> dict[str, Tensor]:
    """What the plan takes and gives, by name. Raises BackendExecutionError where the first axis is no free batch."""
    found = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape = tuple(engine.get_tensor_shape(name))
        if shape[0] != -1 or min(shape[1:], default=-1) < 1:
            raise BackendExecutionError(
                f"the plan's {name!r} has the shape {list(shape)}. Build it again: declip build"
            )
        found[name] = Tensor(shape[1:], int(engine.get_tensor_dtype(name).itemsize or 0))
    return found
