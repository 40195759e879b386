"""Does a plan that was just built compute what the engine says? A few inputs, on the GPU and on the CPU in FP32.

A build can succeed and be wrong: FP16 that overflows on this GPU, or a fusion that a release of TensorRT gets wrong.
The scores would look like scores. So nothing is kept or used before it was compared, where a CPU backend is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import numpy as np
import numpy.typing as npt

from . import backends
from .backends.base import Precision
from .engine_file import EngineFile
from .errors import BackendExecutionError, BackendUnavailableError
from .signature import BATCH, Array, Arrays, Signature, TensorSpec

LIMITS: dict[Precision, tuple[float, float]] = {
    "fp32": (1e-3, 0.9999),
    "fp16": (1e-2, 0.999),
    "int8": (5e-2, 0.99),
    "fp8": (1e-1, 0.98),
}
"""For each precision the largest difference of a score and the smallest cosine of an embedding; several times what
emulation gives, and far from what an overflow or a wrong kernel gives."""


RELATIVE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 5e-2, "int8": 2e-1, "fp8": 2e-1}
"""The same for a component of a generator: the largest difference as a share of an output's largest value."""

Compute = Callable[[Arrays], Arrays]


def check_images(size: int) -> npt.NDArray[np.uint8]:
    """uint8 [4, size, size, 3]: white, a soft gradient, stripes under noise, noise."""
    y, x = np.mgrid[0:size, 0:size]
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3))
    soft = np.stack([255 * x // size, 255 * y // size, 255 * (x + y) // (2 * size)], axis=2)
    stripes = np.stack([96 + 96 * ((x // step) % 2) * ((y // 7) % 2) for step in (3, 9, 27)], axis=2) + noise // 8
    return np.stack([np.full_like(soft, 255), soft, stripes, noise]).astype(np.uint8)


def check_inputs(signature: Signature) -> dict[str, Array]:
    """A few rows of noise for a component of a generator, in the smallest sizes of ``signature`` but for the batch."""
    sizes = {name: low for name, (low, _, _) in signature.free.items()}
    sizes[BATCH] = min(max(2, signature.free[BATCH].minimum), signature.free[BATCH].maximum)
    random = np.random.default_rng(0)

    def values(spec: TensorSpec) -> Array:
        shape = spec.sized(sizes)
        if spec.dtype == "float32":
            return random.standard_normal(shape, np.float32)
        return random.integers(0, 256, shape).astype(spec.dtype)  # pixels, or words that every tokenizer has

    return {name: values(spec) for name, spec in signature.inputs.items()}


def check(
    engine: EngineFile, precision: Precision, compute: Compute, signature: Signature, what: str, component: str = ""
) -> str | None:
    """Compare ``compute``, which works in ``precision``, with the engine's ``component`` in FP32 on the CPU.

    ``signature`` has the sizes that ``compute`` takes, which may be fewer than the engine's. None where they agree,
    else why they could not be compared: no CPU backend is installed. ``what`` names the plan.
    Raises BackendExecutionError where they do not agree.
    """
    reasons = []
    for name in ("openvino", "onnxruntime"):
        try:
            reference = backends.choose(engine, name, component=component, device="cpu", precision="fp32")
        except BackendUnavailableError as error:
            reasons.append(str(error))
            continue
        with closing(reference):
            if component:
                inputs = check_inputs(signature)
                wanted = reference.compute(inputs)
                _require_close(compute(inputs), wanted, precision, what)
            else:
                inputs = {"images": check_images(engine.scorer.preprocess.size)}
                wanted = reference.compute(inputs)
                _require_alike(compute(inputs), wanted, precision, what)
        return None
    return " ".join(reasons)


def _require_close(found: Arrays, wanted: Arrays, precision: Precision, what: str) -> None:
    """Every output within ``RELATIVE`` of its largest value."""
    for name, expected in wanted.items():
        difference = float(np.abs(found[name] - expected).max() / max(float(np.abs(expected).max()), 1e-6))
        if not difference <= RELATIVE[precision]:  # so that NaN counts as different
            raise BackendExecutionError(
                f"{what} computes something else than the engine: {name} differs by {difference:.2g} of its largest"
                f" value (at most {RELATIVE[precision]:g}). It is not used. Take precision='fp32' or another backend,"
                " and report GPU, TensorRT version and model."
            )


def _require_alike(found: Arrays, wanted: Arrays, precision: Precision, what: str) -> None:
    most, least = LIMITS[precision]
    difference = float(np.abs(found["scores"] - wanted["scores"]).max())
    cosine = float((found["perceptual"] * wanted["perceptual"]).sum(axis=1).min())
    if not (difference <= most and cosine >= least):  # so that NaN counts as different
        raise BackendExecutionError(
            f"{what} computes something else than the engine: a score differs by {difference:.2g} (at most {most:g}),"
            f" an embedding's cosine is {cosine:.4f} (at least {least:g}). It is not used. Take precision='fp32' or"
            " another backend, and report GPU, TensorRT version and tower."
        )
