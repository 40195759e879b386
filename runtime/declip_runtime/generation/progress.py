"""What a caller sees of a generation while it runs: how far it is, what it looks like, and a way to stop it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from PIL import Image

from declip_runtime.errors import GenerationCancelled

Preview = Callable[[], list[Image.Image]]


@dataclass(frozen=True)
class Step:
    """The UNet has run once more.

    ``index`` counts its runs from 0, ``steps`` is how many there will be, for all pictures of the call; ``pictures``
    are the places of those that it worked on in the list that is returned. ``seconds`` have passed since the models
    were loaded, ``remaining`` are expected to, decoding of the last pictures not counted.
    """

    index: int
    steps: int
    pictures: tuple[int, ...]
    seconds: float
    remaining: float
    _preview: Preview = field(repr=False)
    _stop: threading.Event = field(repr=False)

    @property
    def rate(self) -> float:
        """Steps a second so far, what else was done in between included; 0 before the clock has moved."""
        return (self.index + 1) / self.seconds if self.seconds > 0 else 0.0

    def preview(self) -> list[Image.Image]:
        """The pictures as they promise to become, decoded now, which takes as long as decoding the finished ones."""
        return self._preview()

    def cancel(self) -> None:
        """Let the generation raise GenerationCancelled after its next step. Any thread may call this, later too."""
        self._stop.set()


OnStep = Callable[[Step], object]


class Progress:
    """Counts the steps of one call and reports them to ``on_step``, which may raise GenerationCancelled."""

    def __init__(self, on_step: OnStep | None) -> None:
        self._on_step = on_step
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._durations: list[float] = []
        self.steps = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one run of the UNet and what belongs to it."""
        began = time.monotonic()
        yield
        self._durations.append(time.monotonic() - began)

    def report(self, pictures: tuple[int, ...], preview: Preview) -> None:
        """Tell that a step is done. Raises GenerationCancelled where somebody asked for it."""
        if self._on_step is not None:
            index = len(self._durations) - 1
            # The first run compiles and allocates: it says little about the others.
            usual = self._durations[1:] or self._durations
            remaining = (self.steps - index - 1) * sum(usual) / len(usual)
            seconds = time.monotonic() - self._began
            self._on_step(Step(index, self.steps, pictures, seconds, remaining, preview, self._stop))
        if self._stop.is_set():
            raise GenerationCancelled(
                f"the generation was stopped after {len(self._durations)} of {self.steps} steps. Start it again for the"
                " whole pictures."
            )
