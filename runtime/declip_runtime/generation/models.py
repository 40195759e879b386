"""The models of an engine that generates, all on one backend, each loaded when it is first needed."""

from __future__ import annotations

from collections.abc import Sequence

from declip_runtime import backends
from declip_runtime.backends import Choice
from declip_runtime.backends.base import Backend
from declip_runtime.cache import Cache
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import BackendUnavailableError, PrecisionError
from declip_runtime.generator_manifest import COMPONENTS
from declip_runtime.options import Precision
from declip_runtime.signature import Signature

from .batches import Component
from .memory import require_memory


class Models:
    """The components of ``engine``, by their names; arguments are those of ``DPAdapter``.

    ``unet`` says what runs the UNet, whose backend runs the others too. Raises BackendError where the backend, the
    device or the precision is not to be had.
    """

    def __init__(
        self,
        engine: EngineFile,
        backend: str,
        *,
        device: str | None,
        precision: Precision,
        threads: int | None,
        cache: Cache,
    ) -> None:
        self._engine, self._device, self._precision = engine, device, precision
        self._threads, self._cache = threads, cache
        self._choices = self._resolve(backend)
        self._loaded: dict[str, Backend] = {}

    @property
    def unet(self) -> Choice:
        """What runs the UNet."""
        return self._choices["unet"]

    def component(self, name: str) -> Component:
        """What computes a component, loaded now if it was not."""
        backend = self._loaded.get(name)
        if backend is None:
            backend = self._loaded[name] = backends.choose(
                self._engine,
                self.unet.backend,
                component=name,
                device=self._device,
                precision=self._precision,
                threads=self._threads,
                cache=self._cache,
            )
        return backend.compute

    def signature(self, name: str) -> Signature:
        """What a component takes: as it was loaded, and before that what the engine says."""
        backend = self._loaded.get(name)
        return self._engine.generator.components[name] if backend is None else backend.signature

    def description(self, name: str) -> str:
        """How the backend describes a component that is loaded."""
        return self._loaded[name].description

    def load(self, names: Sequence[str]) -> None:
        """Load what is about to be used, all of it, so that nothing fails for that reason after minutes of steps.

        Raises DeviceMemoryError where it cannot fit into memory, BackendError where it cannot be loaded.
        """
        if self.unet.backend != "fake":  # which loads no weights
            missing = {name: self._choices[name] for name in names if name not in self._loaded}
            on_cpu = {name: choice.precision for name, choice in missing.items() if choice.device.lower() == "cpu"}
            require_memory(self._engine, on_cpu)
        for name in names:
            self.component(name)

    def close(self) -> None:
        """Free what is loaded."""
        for backend in self._loaded.values():
            backend.close()
        self._loaded.clear()

    def _resolve(self, backend: str) -> dict[str, Choice]:
        """What runs each component: all of them on one backend, where "auto" is the first that can.

        Raises what ``backends.resolve`` raises.
        """
        if backend != "auto":
            return self._all_on(backend)
        first = backends.resolve(
            self._engine, component="unet", device=self._device, precision=self._precision
        ).backend  # raises with every reason where none runs even the UNet
        reasons = []
        for name in backends.AUTO[backends.AUTO.index(first) :]:
            try:
                return self._all_on(name)
            except BackendUnavailableError as error:
                reasons.append(str(error))
            except PrecisionError as error:
                if name == first:
                    raise
                reasons.append(str(error))
        raise BackendUnavailableError(" ".join(reasons))

    def _all_on(self, backend: str) -> dict[str, Choice]:
        return {
            component: backends.resolve(
                self._engine, backend, component=component, device=self._device, precision=self._precision
            )
            for component in COMPONENTS
        }
