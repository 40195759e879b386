"""Does a plan that was just built compute what the engine says? A few images, on the GPU and on the CPU in FP32.

A build can succeed and be wrong: FP16 that overflows on this GPU, or a fusion that a release of TensorRT gets wrong.
The scores would look like scores. So nothing is kept or used before it was compared, where a CPU backend is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import numpy as np
import numpy.typing as npt

from . import backends
from .backends.base import Output, Precision
from .engine_file import EngineFile
from .errors import BackendExecutionError, BackendUnavailableError

LIMITS: dict[Precision, tuple[float, float]] = {
    "fp32": (1e-3, 0.9999),
    "fp16": (1e-2, 0.999),
    "int8": (5e-2, 0.99),
    "fp8": (1e-1, 0.98),
}
"""For each precision the largest difference of a score and the smallest cosine of an embedding; several times what
emulation gives, and far from what an overflow or a wrong kernel gives."""


def check_images(size: int) -> npt.NDArray[np.uint8]:
    """uint8 [4, size, size, 3]: white, a soft gradient, stripes under noise, noise."""
    y, x = np.mgrid[0:size, 0:size]
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3))
    soft = np.stack([255 * x // size, 255 * y // size, 255 * (x + y) // (2 * size)], axis=2)
    stripes = np.stack([96 + 96 * ((x // step) % 2) * ((y // 7) % 2) for step in (3, 9, 27)], axis=2) + noise // 8
    return np.stack([np.full_like(soft, 255), soft, stripes, noise]).astype(np.uint8)


def check(
    engine: EngineFile, precision: Precision, run: Callable[[npt.NDArray[np.uint8]], Output], what: str
) -> str | None:
    """Compare ``run``, which computes in ``precision``, with the engine in FP32 on the CPU.

    None where they agree, else why they could not be compared: no CPU backend is installed. ``what`` names the plan.
    Raises BackendExecutionError where they do not agree.
    """
    reasons = []
    for name in ("openvino", "onnxruntime"):
        try:
            reference = backends.choose(engine, name, device="cpu", precision="fp32")
        except BackendUnavailableError as error:
            reasons.append(str(error))
            continue
        images = check_images(engine.manifest.preprocess.size)
        with closing(reference):
            wanted = reference.run(images)
        _require_alike(run(images), wanted, precision, what)
        return None
    return " ".join(reasons)


def _require_alike(found: Output, wanted: Output, precision: Precision, what: str) -> None:
    most, least = LIMITS[precision]
    difference = float(np.abs(found.scores - wanted.scores).max())
    cosine = float((found.perceptual * wanted.perceptual).sum(axis=1).min())
    if not (difference <= most and cosine >= least):  # so that NaN counts as different
        raise BackendExecutionError(
            f"{what} computes something else than the engine: a score differs by {difference:.2g} (at most {most:g}),"
            f" an embedding's cosine is {cosine:.4f} (at least {least:g}). It is not used. Take precision='fp32' or"
            " another backend, and report GPU, TensorRT version and tower."
        )
