"""A lane of ONNX Runtime on a GPU: inputs and outputs bound to memory there, one set of buffers for each batch size.

The addresses never change, which is what lets ONNX Runtime capture and replay a CUDA graph for each batch; and nothing
is copied but pixels in and results out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .lanes import Images, Outputs

_WARM_UPS = 3  # ONNX Runtime captures after its own first runs


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
    and turns its exceptions into ours.
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
        self._running: tuple[int, _Bound] | None = None

    def prepare(self, batch: int) -> None:
        """Allocate and bind buffers, and run until what happens only at first has happened."""
        self._bound[batch] = self._guarded(lambda: self._bind(batch))
        images = np.zeros((batch, *self._shapes["images"]), np.uint8)
        for _ in range(_WARM_UPS):
            self.start(images, batch)
            self.finish()

    def start(self, images: Images, batch: int) -> None:
        """Copy the images to the GPU and run; ONNX Runtime waits for the results by itself."""
        bound = self._bound[batch]
        padded = images
        if len(images) < batch:
            padded = np.zeros((batch, *images.shape[1:]), np.uint8)
            padded[: len(images)] = images
        self._guarded(lambda: self._run(bound, np.ascontiguousarray(padded)))
        self._running = (len(images), bound)

    def finish(self) -> Outputs:
        """The results of the images that were given."""
        count, bound = self._running or (0, None)
        if bound is None:
            return {}
        self._running = None
        return {name: self._guarded(value.numpy)[:count].copy() for name, value in bound.outputs.items()}

    def close(self) -> None:
        """Free the buffers."""
        self._bound.clear()
        self._running = None

    def _run(self, bound: _Bound, images: Images) -> None:
        bound.images.update_inplace(images)
        self._session.run_with_iobinding(bound.binding, bound.options)

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
        options.add_run_config_entry("gpu_graph_id", str(batch))
        return _Bound(images, outputs, binding, options)
