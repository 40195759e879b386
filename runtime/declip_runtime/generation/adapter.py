"""``DPAdapter``: an engine, ready to generate pictures that take their look or their content from others."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import get_args

from PIL import Image

from declip_runtime.cache import Cache
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import PromptWarning, ScorerStateError, UsageError
from declip_runtime.generator_manifest import GeneratorManifest
from declip_runtime.options import Precision, absolute_path, require_one_of, require_positive

from .conditions import Opened, open_condition
from .models import Models
from .progress import OnStep, Progress
from .record import make_record, stamp, versions
from .request import References, Request, make_request
from .sampler import Sampler, to_image
from .scales import Scale

_ALWAYS_VERIFIED = 64_000_000
"""Bytes of an engine file that are hashed in less time than anybody notices."""

_FOR_TEXT = ("text_encoder", "unet", "vae_decoder")
_FOR_IMAGES = ("image_encoder", "image_tokens")


class DPAdapter:
    """Generates pictures with one engine on one backend: from text, and from the look or the content of images.

    Args:
        engine: path of an engine file of kind ``unet``, as ``declip export-generator`` makes it.
        backend: "auto" takes the best that is installed and can run every model; a name never falls back to another.
        device: the backend's name of a device, as "cuda:1"; None is its default.
        precision: arithmetic of the models. "auto" takes the fastest that the backend trusts (``precision`` tells
            which for the UNet), "fp32" gives nearly equal pictures on every machine.
        threads: CPU threads to compute with; None is every CPU this process may use.
        cache_dir: where compiled models are kept; None is the user's cache folder.
        verify: check the hash of the weights also where they are large (a second a gigabyte); small ones always are.

    Engine, backend, device and precision are checked here; a model is loaded when it is first needed, which the first
    picture waits for. May be used from many threads, one generation at a time. After ``fork`` it raises
    ScorerStateError.

    Raises UsageError for an argument that cannot work and for an engine of another kind, EngineError for the engine
    file, BackendError where the backend, the device or the precision is not to be had.
    """

    def __init__(
        self,
        engine: str | os.PathLike[str],
        *,
        backend: str = "auto",
        device: str | None = None,
        precision: Precision = "auto",
        threads: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        verify: bool = False,
    ) -> None:
        path = absolute_path("engine", engine)
        if path is None:
            raise UsageError("no engine was given, and none that generates is bundled. Name an engine file.")
        require_one_of("precision", precision, get_args(Precision))
        if threads is not None:
            require_positive("threads", threads)
        cache = Cache(absolute_path("cache_dir", cache_dir))
        self._engine = EngineFile.open(path)
        self._manifest = self._engine.generator
        if verify or self._engine.path.stat().st_size <= _ALWAYS_VERIFIED:
            self._engine.verify()
        self._models = Models(self._engine, backend, device=device, precision=precision, threads=threads, cache=cache)
        self._sampler = Sampler(self._manifest, self._models.component, self._engine.read, self._models.signature)
        self._turn = threading.Lock()
        self._owner: int | None = None
        self._closed = False
        self._pid = os.getpid()

    # --- generating

    def generate(
        self,
        prompt: str | Sequence[str] = "",
        *,
        negative_prompt: str | Sequence[str] = "",
        perceptual: References = None,
        semantic: References = None,
        image: References = None,
        perceptual_scale: Scale = 1.0,
        semantic_scale: Scale = 1.0,
        image_scale: Scale = 1.0,
        steps: int | None = None,
        guidance: float | None = None,
        width: int | None = None,
        height: int | None = None,
        seed: int | Sequence[int] | None = None,
        images_per_prompt: int = 1,
        scheduler: str | None = None,
        on_step: OnStep | None = None,
    ) -> list[Image.Image]:
        """Generate ``images_per_prompt`` pictures for each prompt, those of the first prompt first.

        Args:
            prompt: what to show; may be empty where images say it.
            negative_prompt: what to keep away from; one, or one for each prompt. Without guidance it has no effect.
            perceptual: gives its look: one image, or several that act together. An image is a path, encoded bytes, a
                binary file object, a PIL image or a uint8 array [H, W, 3].
            semantic: gives its content, likewise.
            image: gives both, likewise: the plain IP-Adapter, to compare with.
            perceptual_scale: how strongly, mostly 0 to 1: a number, or a mapping by block as
                ``set_ip_adapter_scale`` of diffusers takes it.
            semantic_scale: likewise.
            image_scale: likewise.
            steps: of denoising; None is the engine's default, and so for the following.
            guidance: how strictly the text and the images are followed; up to 1 halves the work and drops the negative
                prompt.
            width: in pixels.
            height: in pixels.
            seed: decides the noise. One seed is that of the first picture, the others get the next numbers; a list has
                one for each. None draws one, which the record tells. A seed gives the noise that diffusers' pipelines
                get with a generator of that seed on the CPU, and the same picture again whatever is generated with it,
                but for the rounding of the backend, which may differ with the number of pictures.
            images_per_prompt: how many pictures of each prompt.
            scheduler: as "ddim", "euler", "euler-a", "dpm++-karras", "unipc", "lcm"; None is the engine's own.
            on_step: called after every run of the UNet with a ``Step``: progress, preview, ``step.cancel()``.

        Each picture's ``info["declip"]`` tells how to make it again; ``save`` keeps it in a PNG file.

        Raises before the first step UsageError for an argument that cannot work, ImageError for an image,
        DeviceMemoryError where the models cannot fit into memory, BackendUnavailableError where the extra
        ``generate`` is not installed; then BackendExecutionError, and GenerationCancelled where ``on_step`` asked for
        it. What ``on_step`` raises passes through.
        """
        request = make_request(
            self._manifest,
            prompt=prompt,
            negative_prompt=negative_prompt,
            perceptual=perceptual,
            semantic=semantic,
            image=image,
            perceptual_scale=perceptual_scale,
            semantic_scale=semantic_scale,
            image_scale=image_scale,
            steps=steps,
            guidance=guidance,
            width=width,
            height=height,
            seed=seed,
            images_per_prompt=images_per_prompt,
            scheduler=scheduler,
        )
        if on_step is not None and not callable(on_step):
            raise UsageError(f"on_step is {type(on_step).__name__}. Give a function that takes a Step.")
        if any(request.negatives) and not request.guided:
            warnings.warn(
                f"negative_prompt has no effect with guidance={request.guidance:g}. Choose a guidance above 1.",
                PromptWarning,
                stacklevel=2,
            )
        with self._generating():
            self._sampler.prepare(request)
            opened = tuple(open_condition(condition, self._manifest.preprocess) for condition in request.conditions)
            self._models.load(_FOR_TEXT + (_FOR_IMAGES if opened else ()))
            pictures = [to_image(pixels) for pixels in self._sampler.run(request, opened, Progress(on_step))]
            self._stamp(pictures, request, opened)
        return pictures

    # --- state

    def close(self) -> None:
        """Free the models, when a generation that runs is done. May be called twice; later uses raise ScorerStateError.

        Raises ScorerStateError where ``on_step`` calls it.
        """
        if self._pid != os.getpid():  # after fork they are the parent's
            self._closed = True
            return
        self._refuse_own("closed")
        with self._turn:
            self._closed = True
            self._models.close()

    def __enter__(self) -> DPAdapter:
        self._require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- what it is

    @property
    def engine(self) -> EngineFile:
        """The engine file."""
        return self._engine

    @property
    def manifest(self) -> GeneratorManifest:
        """What the engine says of itself."""
        return self._manifest

    @property
    def backend(self) -> str:
        """Name of the backend that runs the models, as ``backend=`` takes it."""
        return self._models.unet.backend

    @property
    def device(self) -> str:
        """The device that the UNet runs on."""
        return self._models.unet.device

    @property
    def precision(self) -> str:
        """The arithmetic of the UNet: "fp32", "bf16" or "fp16"."""
        return self._models.unet.precision

    @property
    def batch_size(self) -> int:
        """Pictures that go through the UNet at once, with guidance."""
        return self._sampler.at_once(guided=True)

    @property
    def identity(self) -> dict[str, str | int]:
        """What of this adapter decides a picture, JSON-ready; the arguments of ``generate`` decide the rest."""
        return {
            "engine": self._engine.id,
            "backend": self.backend,
            "precision": self.precision,
            "preprocessing": self._manifest.preprocess.version,
        }

    def __repr__(self) -> str:
        if self._closed:
            return "DPAdapter(closed)"
        return (
            f"DPAdapter(engine={self._manifest.name!r} ({self._engine.id[:8]}), backend={self.backend!r}, "
            f"device={self.device!r}, precision={self.precision!r})"
        )

    # --- within

    @contextmanager
    def _generating(self) -> Iterator[None]:
        """This thread's turn to generate."""
        self._require_open()
        self._refuse_own("used")
        with self._turn:
            self._require_open()  # it may have been closed while this thread waited
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None

    def _require_open(self) -> None:
        if self._closed:
            raise ScorerStateError("this adapter is closed. Make a new DPAdapter.")
        if self._pid != os.getpid():
            raise ScorerStateError(
                f"this adapter was made in process {self._pid}, of which this one is a fork. Start worker processes"
                " with multiprocessing.get_context('spawn') or 'forkserver', or make the DPAdapter after the fork."
            )

    def _refuse_own(self, what: str) -> None:
        if self._owner == threading.get_ident():
            raise ScorerStateError(
                f"the adapter was {what} from within its own on_step. Call step.cancel(), and go on after generate."
            )

    def _stamp(self, pictures: Sequence[Image.Image], request: Request, opened: tuple[Opened, ...]) -> None:
        made_with = {
            "engine": {"id": self._engine.id, "name": self._manifest.name},
            "backend": self.backend,
            "device": self.device,
            "precision": self.precision,
            "description": self._models.description("unet"),
            "versions": versions(),
        }
        for number, picture in enumerate(pictures):
            stamp(picture, make_record(request, number, opened, made_with))
