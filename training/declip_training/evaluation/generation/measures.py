"""What is measured of a picture: cosines with its condition in two spaces, and a quality score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Target:
    """What the pictures of one condition are compared with; all float32 [D] of length 1.

    ``perceptual`` and ``semantic`` are the condition's own image in that space, or its text. The others are the images
    in the space where they ought not to act: ``look_semantic`` what the image shows that gives the look only,
    ``content_perceptual`` how the image looks that gives the content only. None where there is no such image.
    """

    perceptual: Vector
    semantic: Vector
    look_semantic: Vector | None
    content_perceptual: Vector | None


@dataclass(frozen=True)
class Measures:
    """Of one picture: cosines in -1..1, and ``of``, the score of a scorer engine in 0..1.

    ``sc`` and ``pc`` are the cosines with the condition in the semantic and the perceptual space.
    ``leak_semantic`` is the cosine in the semantic space with the image that gives the look only,
    ``leak_perceptual`` that in the perceptual space with the image that gives the content only; None where there is
    none, at least one there is.
    """

    sc: float
    pc: float
    of: float
    leak_semantic: float | None
    leak_perceptual: float | None

    @property
    def cc(self) -> float:
        """The mean of ``sc`` and ``pc``."""
        return (self.sc + self.pc) / 2

    @property
    def leak(self) -> float:
        """The mean of the leaks that there are: what was copied that ought not to be."""
        return float(np.mean([leak for leak in (self.leak_semantic, self.leak_perceptual) if leak is not None]))


def measure(perceptual: Vector, semantic: Vector, target: Target, of: float) -> Measures:
    """Compare a picture's embeddings, float32 [D] of length 1, with its ``target``."""
    return Measures(
        sc=_cosine(semantic, target.semantic),
        pc=_cosine(perceptual, target.perceptual),
        of=of,
        leak_semantic=None if target.look_semantic is None else _cosine(semantic, target.look_semantic),
        leak_perceptual=None if target.content_perceptual is None else _cosine(perceptual, target.content_perceptual),
    )


def _cosine(a: Vector, b: Vector) -> float:
    return float(np.dot(a.astype(np.float64), b.astype(np.float64)))
