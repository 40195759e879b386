"""From a graph of an engine to a TensorRT plan for the GPU at hand; on the edge device too, without torch and onnx.

Networks are strongly typed on every release: TensorRT 11 knows nothing else, and so what is FP16 was decided where the
engine was made. ``build_plan`` takes from seconds to many minutes; it says how far it is, and Ctrl-C ends it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import cuda, tensorrt_library
from .backends.base import Precision, graph_for, signature_of
from .cache import Cache
from .engine_file import EngineFile
from .errors import BackendExecutionError, BackendUnavailableError, UsageError
from .manifest import Plan
from .plans import GRAPHS, Site, entry_name, slug, source_hash
from .signature import BATCH, Range, Signature
from .tensorrt_library import Log

if TYPE_CHECKING:
    import tensorrt as trt

Progress = Callable[[str, float], None]
"""Told what is being done, in TensorRT's words, and the share of it that is done, 0..1; in any thread."""

_POLL = 0.1  # seconds between looks for Ctrl-C
_TIMING_CACHE_SIZE = 4 << 20  # about what it grows to


@dataclass(frozen=True)
class BuildOptions:
    """How a plan is built.

    ``profile`` are its batch sizes, ``sizes`` those of other free dimensions by name; what is left out has the range
    that the engine gives it. ``workspace`` is the most memory in bytes that TensorRT may try tactics with; None leaves
    it all of the GPU's. ``level`` 0 (fastest build) to 5 (fastest plan) is TensorRT's builder optimisation level.
    ``version_compatible`` makes a plan that later releases of the same major version run, the lean runtime included;
    ``without_lean`` leaves out the copy of that runtime (some 40 MB) which it otherwise brings.
    ``hardware_compatible`` makes one that every GPU from Ampere on runs, at the cost of speed. ``detailed`` keeps layer
    names and tactics for profilers.

    Raises UsageError for a level outside 0..5, a workspace below 1 MiB, and ``without_lean`` alone.
    """

    profile: Range | None = None
    sizes: Mapping[str, Range] = field(default_factory=dict)
    workspace: int | None = None
    level: int = 3
    version_compatible: bool = False
    without_lean: bool = False
    hardware_compatible: bool = False
    detailed: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 5:
            raise UsageError(f"optimisation level {self.level} is unknown. Use 0 (fast build) to 5 (fast plan).")
        if self.workspace is not None and self.workspace < 1 << 20:
            raise UsageError(f"a workspace of {self.workspace} bytes is too small. Give at least 1 MiB, better 1 GiB.")
        if self.without_lean and not self.version_compatible:
            raise UsageError("only a version-compatible plan brings the lean runtime. Use version_compatible too.")


def build_plan(
    engine: EngineFile,
    options: BuildOptions | None = None,
    *,
    component: str = "",
    precision: Precision = "fp16",
    device: int = 0,
    cache: Cache | None = None,
    progress: Progress = lambda _what, _share: None,
) -> tuple[Plan, bytes]:
    """Build the plan of ``engine`` in ``precision`` for GPU ``device``: what the manifest says of it, and its bytes.

    ``component`` is the model of a generator that it is for.

    ``cache`` keeps TensorRT's timing cache, which makes the next build of a similar network several times faster.
    KeyboardInterrupt stops the build within a step of TensorRT's and is raised; nothing is left behind.

    Raises BackendUnavailableError where TensorRT's builder or the GPU is missing, PrecisionError for a graph that the
    engine lacks and for arithmetic that the GPU lacks, BackendExecutionError with TensorRT's own lines where it fails.
    """
    chosen = options or BuildOptions()
    site = tensorrt_library.site(device)
    if chosen.hardware_compatible and site.integrated:
        raise UsageError(
            f"TensorRT makes no hardware-compatible plans on {site.device_name}, which is part of a Jetson."
            " Leave hardware_compatible out."
        )
    if site.lean:
        raise BackendUnavailableError(
            f"the lean runtime of TensorRT builds no plans. {tensorrt_library.INSTALL}, or build the plan on another"
            " machine with TensorRT: declip build ENGINE --version-compatible"
        )
    site.require_arithmetic(precision)
    signature = _narrowed(signature_of(engine, component), chosen)
    graph = graph_for(engine, precision, GRAPHS, component)
    head = engine.graph(graph, engine.path.name)
    monitor = _Monitor(progress)
    timings = _Timings(cache, site)
    content = _interruptible(
        lambda: _build(head, engine, signature, chosen, device, timings, monitor), stop=monitor.cancelled.set
    )
    engine.require_unchanged()  # TensorRT read the weights by itself
    plan = Plan(
        entry=entry_name(
            site,
            precision,
            component,
            version_compatible=chosen.version_compatible,
            hardware_compatible=chosen.hardware_compatible,
        ),
        tensorrt=site.tensorrt,
        compute_capability=site.compute_capability,
        precision=precision,
        graph_sha256=source_hash(engine, graph),
        profile=signature.free[BATCH],
        sizes={name: sizes for name, sizes in signature.free.items() if name != BATCH},
        component=component,
        device_name=site.device_name,
        version_compatible=chosen.version_compatible,
        hardware_compatible=chosen.hardware_compatible,
        without_lean=chosen.without_lean,
        platform=site.platform,
        multiprocessors=site.multiprocessors,
    )
    return plan, content


def _build(
    head: bytes,
    engine: EngineFile,
    signature: Signature,
    options: BuildOptions,
    device: int,
    timings: _Timings,
    monitor: _Monitor,
) -> bytes:
    import tensorrt as trt

    cuda.use(device)
    log = Log()
    with log.quoted("building the plan"):
        builder = trt.Builder(log.listener)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        config = builder.create_builder_config()
        if network is None or config is None:
            raise log.error(f"TensorRT {trt.__version__} cannot begin to build.")
        parser = trt.OnnxParser(network, log.listener)
        if not parser.parse(head, str(engine.path)):  # the path is where the weights are looked for
            raise BackendExecutionError(f"TensorRT {trt.__version__} cannot read the graph: {_said_by(parser, log)}")
        _configure(config, options)
        _add_profile(builder, config, signature)
        config.progress_monitor = monitor.listener()
        known = timings.read()
        _start_with(known, config)
        content = builder.build_serialized_network(network, config)
        if content is None:
            if monitor.cancelled.is_set():
                raise KeyboardInterrupt
            raise log.error(f"TensorRT {trt.__version__} cannot build the plan.")
        learned = config.get_timing_cache()
        written = None if learned is None else learned.serialize()
    if written is not None:
        timings.keep(bytes(written), known)
    return bytes(content)


def _configure(config: trt.IBuilderConfig, options: BuildOptions) -> None:
    import tensorrt as trt

    config.clear_flag(trt.BuilderFlag.TF32)  # a third precision, 10 bits of mantissa under the name fp32
    config.builder_optimization_level = options.level
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.without_lean:
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def _narrowed(signature: Signature, options: BuildOptions) -> Signature:
    """The signature with the ranges that the options ask for. Raises UsageError for a dimension that is not free."""
    asked = dict(options.sizes) if options.profile is None else {**options.sizes, BATCH: options.profile}
    unknown = set(asked) - set(signature.free)
    if unknown:
        raise UsageError(
            f"{', '.join(sorted(unknown))} is no free dimension of this graph; free are {', '.join(signature.free)}."
            " Name one of them, or export the engine with a range of sizes."
        )
    return signature.narrowed(asked)


def _add_profile(builder: trt.Builder, config: trt.IBuilderConfig, signature: Signature) -> None:
    made = builder.create_optimization_profile()
    if made is None:
        raise BackendExecutionError("TensorRT makes no optimization profile. Update TensorRT.")
    for name, spec in signature.inputs.items():
        smallest, best, largest = (
            spec.sized({free: sizes[which] for free, sizes in signature.free.items()}) for which in range(3)
        )
        made.set_shape(name, smallest, best, largest)
    if config.add_optimization_profile(made) < 0:
        ranges = ", ".join(f"{name} {sizes}" for name, sizes in signature.free.items())
        raise BackendExecutionError(f"TensorRT takes no sizes of {ranges}. Choose others.")


def _start_with(timings: bytes, config: trt.IBuilderConfig) -> None:
    """Let TensorRT begin with these timings, or with none where it does not take them."""
    for known in (timings, b""):
        cache = config.create_timing_cache(known)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return


def _said_by(parser: trt.OnnxParser, log: Log) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    told = [f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors if e is not None]
    return " | ".join(told) or str(log)


class _Monitor:
    """What TensorRT says of its progress, as one share: its phases nest, and each knows its number of steps."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._phases: dict[str, tuple[str | None, int, int]] = {}  # name -> parent, steps, done
        self._lock = threading.Lock()
        self.cancelled = threading.Event()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of ``steps`` steps begins."""
        with self._lock:
            self._phases[name] = (parent, max(steps, 1), 0)
        self._tell(name)

    def step(self, name: str, done: int) -> bool:
        """Step number ``done`` (from 0) of a phase is done; False asks TensorRT to stop."""
        with self._lock:
            if name in self._phases:
                parent, steps, _ = self._phases[name]
                self._phases[name] = (parent, steps, min(done + 1, steps))
        self._tell(name)
        return not self.cancelled.is_set()

    def finish(self, name: str) -> None:
        """A phase ends, whether all its steps were done or not."""
        with self._lock:
            self._phases.pop(name, None)

    def share(self) -> float:
        """What is done of everything, 0..1: a phase within a phase is a part of that one's current step."""
        with self._lock:
            return self._share_of(None)

    def listener(self) -> trt.IProgressMonitor:
        """The object that TensorRT calls."""
        import tensorrt as trt

        outer = self

        class Listener(trt.IProgressMonitor):
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
                outer.start(phase_name, parent_phase, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return outer.step(phase_name, step)

            def phase_finish(self, phase_name: str) -> None:
                outer.finish(phase_name)

        return Listener()

    def _share_of(self, parent: str | None) -> float:
        children = [
            (name, steps, done) for name, (above, steps, done) in self._phases.items() if (above or None) == parent
        ]
        if not children:
            return 0.0
        shares = [(done + (self._share_of(name) if done < steps else 0.0)) / steps for name, steps, done in children]
        return max(shares)

    def _tell(self, name: str) -> None:
        self._progress(name, self.share())


class _Timings:
    """TensorRT's timing cache among our compiled models: one for each version and kind of GPU."""

    def __init__(self, cache: Cache | None, site: Site) -> None:
        self._cache = cache
        self._name = f"timings-{slug(site)}"

    def read(self) -> bytes:
        """What earlier builds measured; empty where there is none."""
        found = self._cache.get(self._name) if self._cache is not None else None
        return b"" if found is None else bytes(found)

    def keep(self, content: bytes, known: bytes) -> None:
        """Keep what is known now, where that is more than before."""
        if self._cache is not None and content and content != known:
            self._cache.put(self._name, max(len(content), _TIMING_CACHE_SIZE), lambda file: file.write(content))


def _interruptible(work: Callable[[], bytes], stop: Callable[[], None]) -> bytes:
    """Run ``work`` in a thread of its own, so that Ctrl-C is noticed while a vendor's library works.

    On KeyboardInterrupt, or whatever else interrupts, ``stop`` is called, and it is raised when ``work`` has ended: a
    thread inside a library cannot be left behind.
    """
    result: Future[bytes] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by result(), in the thread that asked
            result.set_exception(error)

    thread = threading.Thread(target=run, name="declip-plan-builder", daemon=True)
    thread.start()
    interrupt: BaseException | None = None
    working = True
    while working:
        try:
            thread.join(_POLL)
            working = thread.is_alive()
        except BaseException as error:  # noqa: BLE001 - raised again below; a signal may have become SystemExit
            interrupt = error
            stop()
    if interrupt is not None:
        raise interrupt
    return result.result()
