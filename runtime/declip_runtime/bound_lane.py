"""A lane of ONNX Runtime on a GPU: inputs and outputs bound to memory there, buffers for each set of sizes.

The addresses never change, which is what lets ONNX Runtime capture and replay a CUDA graph; and nothing is copied but
inputs in and results out. Whatever thread asks, one thread of the lane's own makes every run: ONNX Runtime keeps a
captured graph for the thread that captured it, and forbids several threads in a session that captures.

A session that captures must see one set of sizes only: on an H200 with ONNX Runtime 1.31 graphs of several sizes in one
session ran for a while and then failed with "invalid argument", or ended the process. By its source a session keeps for
each convolution what cuDNN needs for the last sizes only, so that older graphs presumably run code that is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .lanes import Outputs, rows
from .signature import Arrays, Signature, Sizes, SizesKey, key_of

_WARM_UPS = 3  # ONNX Runtime captures after its own first runs
_FATAL, _WARNING = 4, 2  # ONNX Runtime's levels of its log; the second is its default


@dataclass
class _Bound:
    """What is bound for one set of sizes."""

    session: Any
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    binding: Any


class BoundLane:
    """Runs sessions on memory of ``device`` ("cuda", or "cpu" in tests) number ``index`` (see ``lanes.Lane``).

    ``session`` gives the one for a new set of sizes: a new one where it captures graphs, else always the same.
    ``signature`` is what it takes and gives. ``guarded`` runs what is ONNX Runtime's and turns its exceptions into
    ours. No other lane may run these sessions meanwhile.
    """

    def __init__(
        self,
        library: Any,
        session: Callable[[], Any],
        signature: Signature,
        guarded: Callable[[Callable[[], Any]], Any],
        *,
        device: str,
        index: int,
    ) -> None:
        self._library, self._session, self._signature, self._guarded = library, session, signature, guarded
        self._device, self._index = device, index
        self._bound: dict[SizesKey, _Bound] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="declip-onnxruntime")
        self._running: Future[Outputs] | None = None

    def prepare(self, sizes: Sizes) -> None:
        """Allocate and bind buffers, and run until what happens only at first has happened."""
        with self._without_log():
            self._bound[key_of(sizes)] = self._worker.submit(self._guarded, lambda: self._bind(sizes)).result()
            inputs = {name: np.zeros(spec.sized(sizes), spec.dtype) for name, spec in self._signature.inputs.items()}
            try:
                for _ in range(_WARM_UPS):
                    self.start(inputs, sizes)
                    self.finish()
            except BaseException:
                self.release(sizes)
                raise

    def start(self, inputs: Arrays, sizes: Sizes) -> None:
        """Let the worker copy the inputs to the GPU and run."""
        bound, count = self._bound[key_of(sizes)], rows(inputs)
        padded = {name: _padded(inputs[name], spec.sized(sizes)) for name, spec in self._signature.inputs.items()}
        self._running = self._worker.submit(self._guarded, lambda: self._run(bound, padded, count))

    def finish(self) -> Outputs:
        """The results of the rows that were given."""
        running, self._running = self._running, None
        try:
            return {} if running is None else running.result()
        finally:
            del running  # else its exception, this frame and the session would hold each other

    def release(self, sizes: Sizes) -> None:
        """Free the buffers of these sizes."""
        del self._bound[key_of(sizes)]

    def close(self) -> None:
        """End the worker, free the buffers and let go of the sessions."""
        self._worker.shutdown()
        self._running = None
        self._bound.clear()
        del self._session

    @contextmanager
    def _without_log(self) -> Iterator[None]:
        """While cuDNN looks for plans, every one that it cannot use is told as an error; what fails is raised."""
        self._library.set_default_logger_severity(_FATAL)
        try:
            yield
        finally:
            self._library.set_default_logger_severity(_WARNING)

    def _run(self, bound: _Bound, inputs: Arrays, count: int) -> Outputs:
        for name, array in inputs.items():
            bound.inputs[name].update_inplace(array)
        bound.session.run_with_iobinding(bound.binding)
        return {name: value.numpy()[:count].copy() for name, value in bound.outputs.items()}

    def _bind(self, sizes: Sizes) -> _Bound:
        make = self._library.OrtValue.ortvalue_from_shape_and_type

        def memory(specs: Mapping[str, Any]) -> dict[str, Any]:
            return {
                name: make(list(spec.sized(sizes)), np.dtype(spec.dtype).type, self._device, self._index)
                for name, spec in specs.items()
            }

        session = self._session()
        binding = session.io_binding()
        inputs, outputs = memory(self._signature.inputs), memory(self._signature.outputs)
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return _Bound(session, inputs, outputs, binding)


def _padded(array: Any, shape: tuple[int, ...]) -> Any:
    """The array with zero rows behind its own, contiguous."""
    if len(array) == shape[0]:
        return np.ascontiguousarray(array)
    padded = np.zeros(shape, array.dtype)
    padded[: len(array)] = array
    return padded
