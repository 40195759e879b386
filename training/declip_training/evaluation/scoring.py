"""Scores of a data set's photos by one engine: from the cache what is there, from the model the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from declip_runtime.engine_file import EngineFile
from declip_runtime.options import Decode, Precision
from declip_runtime.scorer import Scorer

from .datasets import Collection, Photo
from .score_cache import Key, ScoreCache, cache_files, cache_path, photo_key

Progress = Callable[[int], AbstractContextManager[Callable[[], None]]]
"""Given the number of photos to score, what shows progress while the block runs and yields the step of one photo."""


@dataclass(frozen=True)
class Settings:
    """How photos are scored; the arguments of ``Scorer`` of the same names."""

    backend: str = "auto"
    device: str | None = None
    precision: Precision = "auto"
    threads: int | None = None
    decode: Decode = "fast"
    views: int = 1

    def scorer(self, engine: EngineFile) -> Scorer:
        """A scorer with these settings; raises what ``Scorer`` raises."""
        return Scorer(
            engine.path,
            backend=self.backend,
            device=self.device,
            precision=self.precision,
            threads=self.threads,
            decode=self.decode,
            views=self.views,
        )

    def request(self, engine: EngineFile, root: Path) -> dict[str, Any]:
        """What decides a score as far as it is known before a backend was chosen; JSON-ready.

        ``root`` is the data set's folder: the same names in another one may be other photos.
        """
        return {
            "engine": engine.id,
            "backend": self.backend,
            "device": self.device,
            "precision": self.precision,
            "decode": self.decode,
            "views": self.views,
            "preprocessing": engine.scorer.preprocess.version,
            "root": str(root.resolve()),
        }


@dataclass(frozen=True)
class Scored:
    """Scores float64 [N, K] of a collection's photos in the order of ``names``, NaN in the rows that failed.

    ``errors`` are the reasons by the photo's name, ``identity`` what the scores were made with, ``fresh`` how many
    photos went through the model now.
    """

    names: tuple[str, ...]
    values: npt.NDArray[np.float64]
    errors: Mapping[str, str]
    identity: Mapping[str, Any]
    fresh: int

    @property
    def good(self) -> npt.NDArray[np.bool_]:
        """Bool [N]: which photos have scores."""
        good: npt.NDArray[np.bool_] = np.asarray(np.isfinite(self.values).all(axis=1))
        return good


class EngineScores:
    """Scores photos with one engine; the model is loaded when the first photo needs it, and then kept.

    ``make_scorer`` replaces ``settings.scorer`` where something is to be shown while the model loads.
    """

    def __init__(self, engine: EngineFile, settings: Settings, make_scorer: Callable[[], Scorer] | None = None) -> None:
        self.engine = engine
        self._settings = settings
        self._make_scorer = make_scorer or (lambda: settings.scorer(engine))
        self._scorer: Scorer | None = None

    def __enter__(self) -> EngineScores:
        return self

    def __exit__(self, *_: object) -> None:
        if self._scorer is not None:
            self._scorer.close()

    def score(self, collection: Collection, cache_folder: Path | None, progress: Progress) -> Scored:
        """Scores of all photos; those that are scored now are in the cache, on disk, as soon as they are scored.

        ``cache_folder`` None keeps nothing. Raises TrainingError where the cache cannot be written or is damaged, and
        what ``Scorer`` raises; a photo that cannot be scored stops nothing.
        """
        names, photos = self.engine.scorer.score_names, collection.photos
        values = np.full((len(photos), len(names)), math.nan)
        cache: ScoreCache | None = None
        keys: list[Key] = []
        todo: Sequence[int] = range(len(photos))
        request = self._settings.request(self.engine, collection.root)
        if cache_folder is not None:
            keys = [photo_key(photo) for photo in photos]
            for path in cache_files(cache_folder, collection.dataset.name, request):
                known = ScoreCache(path)
                if known.identity is not None and not _fill(values, known, keys, names):
                    return Scored(names, values, {}, known.identity, 0)
        values[:] = math.nan
        if self._scorer is None:
            self._scorer = self._make_scorer()
        if cache_folder is not None:
            cache = ScoreCache(cache_path(cache_folder, collection.dataset.name, request, self._scorer.identity))
            cache.start(self._scorer.identity, names)
            todo = _fill(values, cache, keys, names)
        errors = self._stream(photos, todo, values, cache, keys, progress)
        return Scored(names, values, errors, self._scorer.identity, len(todo))

    def _stream(
        self,
        photos: Sequence[Photo],
        todo: Sequence[int],
        values: npt.NDArray[np.float64],
        cache: ScoreCache | None,
        keys: Sequence[Key],
        progress: Progress,
    ) -> dict[str, str]:
        errors: dict[str, str] = {}
        if self._scorer is None:
            raise ValueError("a scorer comes first")
        try:
            with (
                progress(len(todo)) as advance,
                closing(self._scorer.stream([photos[i].path for i in todo], on_error="record")) as scores,
            ):
                for i, score in zip(todo, scores, strict=True):
                    if score.error is not None:
                        errors[photos[i].name] = str(score.error)
                    else:
                        values[i] = score.values
                        if cache is not None:
                            cache.add(keys[i], score.values)
                    advance()
        finally:
            if cache is not None:
                cache.close()
        return errors


def _fill(
    values: npt.NDArray[np.float64], cache: ScoreCache, keys: Sequence[Key], names: Sequence[str]
) -> Sequence[int]:
    """Fill in what the cache has; return the places of the rest."""
    rest = []
    for i, key in enumerate(keys):
        found = cache.get(key, names)
        if found is None:
            rest.append(i)
        else:
            values[i] = found
    return rest
