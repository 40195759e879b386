"""A lane that runs a TensorRT plan: an execution context with a stream, pinned buffers, a CUDA graph for each batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
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


class PlanLane:
    """One execution context of ``engine`` on GPU ``device``, for up to ``capacity`` images (see ``lanes.Lane``).

    ``tensors`` are the plan's input ``images`` (uint8) and its outputs (float32). ``captured`` becomes False where some
    part of the plan cannot be captured into a CUDA graph: it then runs call by call.

    Raises DeviceMemoryError, BackendExecutionError.
    """

    def __init__(
        self, engine: trt.ICudaEngine, tensors: Mapping[str, Tensor], capacity: int, device: int, log: Log
    ) -> None:
        self._device, self._log, self._tensors = device, log, tensors
        self.captured = True
        self._graphs: dict[int, cuda.Graph] = {}
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
            self._context = self._make_context(engine)
            self._opened = stack.pop_all()

    def prepare(self, batch: int) -> None:
        """Run once, for what TensorRT does at the first time only, then capture the same into a CUDA graph."""
        cuda.use(self._device)
        self._enqueue(batch)
        self._stream.wait()
        if not self.captured:
            return
        self._stream.begin_capture()
        try:
            self._enqueue(batch)
        except BackendExecutionError:
            self.captured = False  # it runs, as was seen just before, but not while it is captured
        graph = self._stream.end_capture()
        if graph is None:
            self.captured = False
        elif self.captured:
            self._graphs[batch] = graph
        else:
            graph.close()

    def start(self, images: Images, batch: int) -> None:
        """Copy the images to where the GPU takes them from, and let it run."""
        cuda.use(self._device)
        self._running = len(images)
        pixels = self._host[IMAGES].view[: self._tensors[IMAGES].size * batch].reshape(batch, *images.shape[1:])
        pixels[: len(images)] = images
        pixels[len(images) :] = 0
        if batch in self._graphs:
            self._stream.launch(self._graphs[batch])
        else:
            self._enqueue(batch)

    def finish(self) -> Outputs:
        """Wait, and copy the results of the images that were given."""
        cuda.use(self._device)
        self._stream.wait()
        return {name: self._result(name, tensor) for name, tensor in self._tensors.items() if name != IMAGES}

    def close(self) -> None:
        """Free graphs, context, memory and stream."""
        cuda.use(self._device)
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        del self._context
        self._opened.close()

    def _make_context(self, engine: trt.ICudaEngine) -> trt.IExecutionContext:
        context = engine.create_execution_context()
        if context is None:
            raise DeviceMemoryError(f"TensorRT cannot make an execution context; its log: {self._log}.")
        for name, memory in self._memory.items():
            if not context.set_tensor_address(name, memory.address):
                raise BackendExecutionError(f"TensorRT does not take an address for {name!r}; its log: {self._log}.")
        return context

    def _enqueue(self, batch: int) -> None:
        """Queue the copy to the GPU, the plan, and the copies back."""
        context, images = self._context, self._tensors[IMAGES]
        with self._log.quoted("running the plan"):
            if not context.set_input_shape(IMAGES, (batch, *images.shape)):
                raise BackendExecutionError(f"the plan takes no batch of {batch}; TensorRT's log: {self._log}.")
            self._stream.upload(self._host[IMAGES], self._memory[IMAGES], images.size * batch)
            if not context.execute_async_v3(self._stream.handle):
                raise BackendExecutionError(f"TensorRT failed while running; its log: {self._log}.")
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
