"""``Scorer``: an engine, ready to score photos. The only class that most users meet; it knows no vendor."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterable, Sized
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, get_args

from . import backends
from .backends.base import Backend
from .cache import Cache
from .engine_file import EngineFile, bundled_engine
from .errors import ScorerStateError
from .gpu_pictures import require_decoder
from .images import DEFAULT_MAX_PIXELS, Channels, Source, sources
from .options import Decode, OnError, Options, Precision, absolute_path, require_one_of
from .pipeline import Pipeline
from .scorer_manifest import ScorerManifest
from .scores import Score, Scores
from .tensors import Tensor

Images = Source | Tensor | Iterable[Source | Tensor]
"""One image or many; an array or tensor [N, H, W, 3] is many."""

_ALWAYS_VERIFIED = 64_000_000
"""Bytes of an engine file that are hashed in less time than anybody notices."""

# The process in which a backend first started its threads. They do not exist in a process forked from it.
_started_in: int | None = None


@dataclass(frozen=True)
class _Loaded:
    """An engine and what runs it, alive in process ``pid`` only."""

    engine: EngineFile
    backend: Backend
    pipeline: Pipeline
    pid: int


class Scorer:
    """Scores photos with one engine on one backend.

    Args:
        engine: path of an engine file; None is the bundled one.
        backend: "auto" takes the best that is installed; a name never falls back to another. TensorRT on an NVIDIA GPU
            comes first: without a plan for that GPU in the engine or the cache it builds one, once, which takes from
            seconds to minutes and is told on standard error.
        device: the backend's name of a device, as "cuda:1"; None is its default.
        precision: arithmetic of the model. "auto" takes the fastest that keeps the scores (``precision`` tells which),
            "fp32" gives equal scores on every machine.
        batch_size: images (more exactly: views) that go through the model at once; None asks the backend.
        threads: how many threads decode, and as many that the model computes with on a CPU; at least 1. None is every
            CPU this process may use (affinity and container limits count). Where the model is fast nearly all time
            goes to decoding, where it is slow the decoders wait for it, so that either may use them all; in between
            both work at once, and up to twice so many CPUs are busy. To bound that, limit the process (``taskset``).
        decode: "fast" decodes a JPEG at a reduced scale that is still at least twice the model's input; "exact" always
            decodes every pixel, and is what ``views`` above 1 do anyway. "gpu" decodes every pixel of usual JPEGs with
            nvImageCodec on the GPU, and resizes them there; every other file is decoded as by "exact".
        views: 1 is the tower's own resize and centre crop; n adds n-1 crops at native resolution. The mean of the raw
            scores is calibrated; an embedding is the renormalised mean.
        channels: order of the last axis of arrays, "rgb" or "bgr" (OpenCV).
        max_pixels: an image with more fails before it is decoded.
        cache_dir: where compiled models are kept; None is the user's cache folder.
        verify: check the hash of the weights also where they are large (above 64 MB, which takes a second a gigabyte);
            smaller ones and graphs are always checked.

    Everything is loaded and checked here, so a scorer that was made works. It may be used from many threads at once,
    and pickled: the copy loads the engine again when first used. After ``fork`` it raises ScorerStateError.

    Raises UsageError for an argument that cannot work, EngineError for the engine file, BackendError where the backend,
    the device or the precision is not to be had.
    """

    def __init__(
        self,
        engine: str | os.PathLike[str] | None = None,
        *,
        backend: str = "auto",
        device: str | None = None,
        precision: Precision = "auto",
        batch_size: int | None = None,
        threads: int | None = None,
        decode: Decode = "fast",
        views: int = 1,
        channels: Channels = "rgb",
        max_pixels: int = DEFAULT_MAX_PIXELS,
        cache_dir: str | os.PathLike[str] | None = None,
        verify: bool = False,
    ) -> None:
        self._prepare_state(
            Options(
                engine=absolute_path("engine", engine),
                backend=backend,
                device=device,
                precision=precision,
                batch_size=batch_size,
                threads=threads,
                decode=decode,
                views=views,
                channels=channels,
                max_pixels=max_pixels,
                cache_dir=absolute_path("cache_dir", cache_dir),
                verify=verify,
            )
        )
        self._ready()

    def _prepare_state(self, options: Options) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None
        self._closed = False

    # --- scoring

    def score(self, images: Images, *, on_error: OnError = "raise", embeddings: bool = False) -> Scores:
        """Score one image or many and return all results together.

        Args:
            images: a path, encoded bytes, binary file object, PIL image, uint8 array [H, W, 3], an array
                [N, H, W, 3], or an iterable of these. One image gives Scores of length 1: ``scores[0].quality``.
                What gives its memory by DLPack, as a tensor of PyTorch, counts as an array; on a GPU it is resized
                there (with cuda-bindings), and only what the model sees is copied.
                An iterable is read ahead, in a thread of its own: make a list of an iterator that is bound to the
                thread it was made in, such as a cursor of sqlite3.
            on_error: "raise" raises the first image's error; "record" gives that image NaN and keeps its error, also
                where it is of a type that is no image.
            embeddings: keep the perceptual embeddings, ``scores.embeddings`` float32 [N, D].

        Raises under "raise" ImageError for an image, InvalidArrayError for an array and UsageError for what can be no
        image; UsageError for another argument, ScorerStateError, BackendExecutionError, and what the iterable raises.
        """
        require_one_of("on_error", on_error, get_args(OnError))
        loaded = self._ready()
        scores = loaded.pipeline.stream(sources(images), on_error, embeddings, may_wait=False)
        manifest = loaded.engine.scorer
        return Scores(manifest.score_names, list(scores), embedding_dim=manifest.embedding_dim)

    def stream(
        self, images: Images, *, on_error: OnError = "record", embeddings: bool = False
    ) -> Generator[Score, None, None]:
        """Score images as they come and yield a Score for each, in order, with bounded memory.

        Takes the same arguments as ``score`` and raises the same; ``images`` may be endless. It is read ahead, in a
        thread of its own: where it waits (a queue, a pipe), what it gave is answered without waiting for more. Closing
        the returned generator, or dropping it, ends the background threads.
        """
        require_one_of("on_error", on_error, get_args(OnError))
        # A collection is all there; only something else can keep us waiting for its next image.
        may_wait = not isinstance(images, Sized)
        return self._ready().pipeline.stream(sources(images), on_error, embeddings, may_wait=may_wait)

    def warmup(self) -> None:
        """Run the model once on black images, so that the first real ones do not wait for its one-time work."""
        self._ready().pipeline.warmup()

    # --- state

    def _ready(self) -> _Loaded:
        """The loaded engine, loading it where this is an unpickled copy.

        Raises ScorerStateError after ``close`` and in a forked process.
        """
        loaded = self._loaded
        if loaded is None or self._closed:
            with self._lock:
                if self._closed:
                    raise ScorerStateError("this scorer is closed. Make a new Scorer.")
                loaded = self._loaded = self._loaded or _load(self._options)
        _refuse_fork(loaded.pid)
        return loaded

    def close(self) -> None:
        """Free the model. May be called twice; every later use raises ScorerStateError."""
        with self._lock:  # a copy that is just being loaded by another thread is waited for
            self._closed = True
            loaded = self._loaded
        if loaded is not None and loaded.pid == os.getpid():  # after fork it is the parent's
            loaded.pipeline.close()
            loaded.backend.close()

    def __enter__(self) -> Scorer:
        self._ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        if self._closed:
            raise ScorerStateError("a closed scorer cannot be pickled. Make a new Scorer.")
        return asdict(self._options)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._prepare_state(Options(**state))

    # --- what it is

    @property
    def engine(self) -> EngineFile:
        """The engine file."""
        return self._ready().engine

    @property
    def manifest(self) -> ScorerManifest:
        """What the engine says of itself."""
        return self.engine.scorer

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the scores, in the engine's order."""
        return self.manifest.score_names

    @property
    def backend(self) -> str:
        """Name of the backend that runs the model, as ``backend=`` takes it."""
        return self._ready().backend.name

    @property
    def device(self) -> str:
        """The device that the model runs on."""
        return self._ready().backend.device

    @property
    def precision(self) -> str:
        """The arithmetic that was chosen: "fp32", "bf16", "fp16", "fp8" or "int8"."""
        return self._ready().backend.precision

    @property
    def description(self) -> str:
        """What runs the model, for a person to read: library and version, device or execution provider, precision."""
        return self._ready().backend.description

    @property
    def batch_size(self) -> int:
        """Views that go through the model at once."""
        return self._ready().pipeline.batch_size

    @property
    def identity(self) -> dict[str, str | int]:
        """Everything that decides a score, JSON-ready: what a stored score must be keyed with to stay comparable."""
        return {
            "engine": self.engine.id,
            "backend": self.backend,
            "precision": self.precision,
            "decode": self._options.decoding,
            "views": self._options.views,
            "preprocessing": self.manifest.preprocess.version,
        }

    def __repr__(self) -> str:
        loaded = self._loaded
        if self._closed:
            return "Scorer(closed)"
        if loaded is None:
            return f"Scorer(engine={self._options.engine!r}, not loaded yet)"
        engine, backend = loaded.engine, loaded.backend
        return (
            f"Scorer(engine={engine.manifest.name!r} ({engine.id[:8]}), backend={backend.name!r}, "
            f"device={backend.device!r}, precision={backend.precision!r}, description={backend.description!r})"
        )


def _load(options: Options) -> _Loaded:
    global _started_in
    _refuse_fork(_started_in)
    engine = EngineFile.open(options.engine or bundled_engine())
    engine.scorer  # noqa: B018 - refuses what is no scorer before its weights are read
    if options.verify or engine.path.stat().st_size <= _ALWAYS_VERIFIED:
        engine.verify()
    if options.decode == "gpu":
        require_decoder()  # before a plan is built for minutes
    backend = backends.choose(
        engine,
        options.backend,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        cache=Cache(options.cache_dir),
    )
    _started_in = os.getpid()
    try:
        pipeline = Pipeline(engine, backend, options)
    except BaseException:
        backend.close()
        raise
    return _Loaded(engine, backend, pipeline, _started_in)


def _refuse_fork(pid: int | None) -> None:
    if pid is not None and pid != os.getpid():
        raise ScorerStateError(
            f"a backend was started in process {pid}, of which this one is a fork without the backend's threads. Start"
            " worker processes with multiprocessing.get_context('spawn') or 'forkserver', or make the first Scorer"
            " after the fork."
        )
