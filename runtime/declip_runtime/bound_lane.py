"""A lane of ONNX Runtime on a GPU: inputs and outputs bound to memory there, one set of buffers for each batch size.

The addresses never change, which is what lets ONNX Runtime capture and replay a CUDA graph for each batch; and nothing
is copied but pixels in and results out. Whatever thread asks, one thread of the lane's own makes every run: ONNX
Runtime keeps a captured graph for the thread that captured it, and forbids several threads in a session that captures.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from .lanes import Images, Outputs

_WARM_UPS = 3  # ONNX Runtime captures after its own first runs

# Never the same twice: a graph that was captured under a number runs again at the addresses of then.
_graphs = itertools.count(1)


@dataclass
class _Bound:
    """What is bound for one batch."""

    images: Any
    outputs: Mapping[str, Any]
    binding: Any
    options: Any


class BoundLane:
    """Runs ``session`` on memory of ``device`` ("cuda", or "cpu" in tests) number ``index`` (see ``lanes.Lane``).

    ``shapes`` of one image's ``images`` (uint8) and outputs (float32) by name. ``guarded`` runs what is ONNX Runtime's
    and turns its exceptions into ours. No other lane may run the session meanwhile.
    """

    def __init__(
        self,
        library: Any,
        session: Any,
        shapes: Mapping[str, tuple[int, ...]],
        guarded: Callable[[Callable[[], Any]], Any],
        *,
        device: str,
        index: int,
    ) -> None:
        self._library, self._session, self._shapes, self._guarded = library, session, shapes, guarded
        self._device, self._index = device, index
        self._bound: dict[int, _Bound] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="declip-onnxruntime")
        self._running: Future[Outputs] | None = None

    def prepare(self, batch: int) -> None:
        """Allocate and bind buffers, and run until what happens only at first has happened."""
        self._bound[batch] = self._worker.submit(self._guarded, lambda: self._bind(batch)).result()
        images = np.zeros((batch, *self._shapes["images"]), np.uint8)
        for _ in range(_WARM_UPS):
            self.start(images, batch)
            self.finish()

    def start(self, images: Images, batch: int) -> None:
        """Let the worker copy the images to the GPU and run."""
        bound, count, padded = self._bound[batch], len(images), images
        if count < batch:
            padded = np.zeros((batch, *images.shape[1:]), np.uint8)
            padded[:count] = images
        self._running = self._worker.submit(
            self._guarded, lambda: self._run(bound, np.ascontiguousarray(padded), count)
        )

    def finish(self) -> Outputs:
        """The results of the images that were given."""
        running, self._running = self._running, None
        try:
            return {} if running is None else running.result()
        finally:
            del running  # else its exception, this frame and the session would hold each other

    def close(self) -> None:
        """End the worker, free the buffers and let go of the session."""
        self._worker.shutdown()
        self._running = None
        self._bound.clear()
        del self._session

    def _run(self, bound: _Bound, images: Images, count: int) -> Outputs:
        bound.images.update_inplace(images)
        self._session.run_with_iobinding(bound.binding, bound.options)
        return {name: value.numpy()[:count].copy() for name, value in bound.outputs.items()}

    def _bind(self, batch: int) -> _Bound:
        def memory(name: str, kind: type) -> Any:
            make = self._library.OrtValue.ortvalue_from_shape_and_type
            return make([batch, *self._shapes[name]], kind, self._device, self._index)

        binding = self._session.io_binding()
        images = memory("images", np.uint8)
        binding.bind_ortvalue_input("images", images)
        outputs = {name: memory(name, np.float32) for name in self._shapes if name != "images"}
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        options = self._library.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(next(_graphs)))
        return _Bound(images, outputs, binding, options)
