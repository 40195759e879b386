"""What scoring returns: ``Score`` for one image, ``Scores`` for many.

Both give a value by name (``scores["quality"]``) and by attribute (``scores.quality``). A value is what the engine's
calibration makes of the raw score; it is NaN only where the image failed, and then ``error`` says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from .errors import DeclipError, UsageError

if TYPE_CHECKING:
    import pandas

_REPR_ROWS = 10


def _position(names: tuple[str, ...], name: str) -> int:
    try:
        return names.index(name)
    except ValueError:
        raise UsageError(f"there is no score {name!r}. This engine gives: {', '.join(names)}.") from None


def _attribute_error(owner: str, names: tuple[str, ...], name: str) -> AttributeError:
    return AttributeError(f"{owner} has no attribute {name!r}. This engine gives the scores {', '.join(names)}.")


def _not_requested() -> UsageError:
    return UsageError("embeddings were not kept. Ask for them: score(images, embeddings=True).")


@dataclass(frozen=True, repr=False, eq=False)
class Score:
    """The scores of one image.

    ``image`` is its path, or a short description of what was given; ``index`` its position in the input; ``names``
    the engine's score names and ``values`` their floats in that order, NaN where ``error`` is not None.
    """

    index: int
    image: str
    names: tuple[str, ...]
    values: tuple[float, ...]
    error: DeclipError | None = None
    _embedding: npt.NDArray[np.float32] | None = None

    @property
    def embedding(self) -> npt.NDArray[np.float32]:
        """Perceptual embedding, float32 [D], L2-normalised (NaN for a failed image).

        Raises UsageError where it was not asked for.
        """
        if self._embedding is None:
            raise _not_requested()
        return self._embedding

    def __getitem__(self, name: str) -> float:
        return self.values[_position(self.names, name)]

    def __getattr__(self, name: str) -> float:
        names: tuple[str, ...] = self.__dict__.get("names", ())  # empty while unpickling
        if name not in names:
            raise _attribute_error("Score", names, name)
        return self[name]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: ``image``, each score (None for a failed image), ``error`` ("Type: message", or None)."""
        values = {n: None if math.isnan(v) else v for n, v in zip(self.names, self.values, strict=True)}
        return {"image": self.image, **values, "error": error_text(self.error)}

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Score({self.image!r}, error={self.error!r})"
        values = ", ".join(f"{n}={v:.4f}" for n, v in zip(self.names, self.values, strict=True))
        return f"Score({self.image!r}, {values})"


def error_text(error: DeclipError | None) -> str | None:
    """``"ImageDecodeError: a.jpg is ..."``; None where nothing failed."""
    return None if error is None else f"{type(error).__name__}: {error}"


def printable(text: str) -> str:
    """``text`` with what would move the cursor, colour a terminal or not encode written as an escape sequence."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Scores:
    """The scores of N images, in input order.

    ``scores["quality"]`` and ``scores.quality`` are float32 [N]; ``scores[0]`` is a Score, ``scores[:10]`` are Scores;
    ``len(scores)`` and iteration go over images.
    """

    def __init__(self, names: Sequence[str], scores: Sequence[Score], *, embedding_dim: int = 0) -> None:
        self._names = tuple(names)
        self._scores = tuple(scores)
        self._embedding_dim = embedding_dim

    @property
    def names(self) -> tuple[str, ...]:
        """Score names in the engine's order."""
        return self._names

    @property
    def images(self) -> tuple[str, ...]:
        """Path or short description of each image."""
        return tuple(s.image for s in self._scores)

    @property
    def errors(self) -> tuple[DeclipError | None, ...]:
        """For each image the reason why it failed, or None."""
        return tuple(s.error for s in self._scores)

    @property
    def embeddings(self) -> npt.NDArray[np.float32]:
        """Perceptual embeddings, float32 [N, D], rows L2-normalised (NaN for failed images).

        Raises UsageError where they were not asked for.
        """
        if not self._scores:
            return np.empty((0, self._embedding_dim), np.float32)
        return np.stack([s.embedding for s in self._scores])

    def to_dicts(self) -> list[dict[str, Any]]:
        """One JSON-ready dict an image; see ``Score.to_dict``."""
        return [s.to_dict() for s in self._scores]

    def to_pandas(self) -> pandas.DataFrame:
        """A data frame with the columns ``image``, each score as float32, ``error``.

        Raises UsageError where pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UsageError(
                "to_pandas() needs pandas, which is not installed. Run: pip install 'declip-sdk[pandas]'"
            ) from error
        columns: dict[str, Any] = {"image": list(self.images)}
        columns |= {name: self[name] for name in self._names}
        columns["error"] = [error_text(e) for e in self.errors]
        return pandas.DataFrame(columns)

    @overload
    def __getitem__(self, key: str) -> npt.NDArray[np.float32]: ...
    @overload
    def __getitem__(self, key: int) -> Score: ...
    @overload
    def __getitem__(self, key: slice) -> Scores: ...
    def __getitem__(self, key: str | int | slice) -> npt.NDArray[np.float32] | Score | Scores:
        if isinstance(key, str):
            k = _position(self._names, key)
            return np.array([s.values[k] for s in self._scores], dtype=np.float32)
        if isinstance(key, slice):
            return Scores(self._names, self._scores[key], embedding_dim=self._embedding_dim)
        return self._scores[key]

    def __getattr__(self, name: str) -> npt.NDArray[np.float32]:
        names: tuple[str, ...] = self.__dict__.get("_names", ())  # empty while unpickling
        if name not in names:
            raise _attribute_error("Scores", names, name)
        return self[name]

    def __len__(self) -> int:
        return len(self._scores)

    def __iter__(self) -> Iterator[Score]:
        return iter(self._scores)

    def __repr__(self) -> str:
        failed = sum(e is not None for e in self.errors)
        head = f"Scores of {len(self)} image{'' if len(self) == 1 else 's'}" + (f", {failed} failed" if failed else "")
        widths = [max(len(n), 6) for n in self._names]
        lines = [head, "  ".join(n.rjust(w) for n, w in zip(self._names, widths, strict=True)) + "  image"]
        for s in self._scores[:_REPR_ROWS]:
            cells = "  ".join(f"{v:.4f}".rjust(w) for v, w in zip(s.values, widths, strict=True))
            lines.append(f"{cells}  {printable(s.image)}" + (f"  ({type(s.error).__name__})" if s.error else ""))
        if len(self) > _REPR_ROWS:
            lines.append(f"... {len(self) - _REPR_ROWS} more")
        return "\n".join(lines)
