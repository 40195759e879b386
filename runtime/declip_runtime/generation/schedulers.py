"""diffusers' schedulers behind arrays: the one module of the runtime that imports torch and diffusers.

They bring no model, only the arithmetic between two steps, which is little beside a UNet, and always runs on the CPU:
so a seed gives the same noise whatever runs the models. Both libraries are imported when a schedule is made.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from declip_runtime.errors import BackendUnavailableError, UsageError

from .extra import unavailable
from .plain_numbers import shown

Latents = npt.NDArray[np.float32]

_DPM = "DPMSolverMultistepScheduler"
NAMES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddim-trailing": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {"use_karras_sigmas": False}),
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler-trailing": ("EulerDiscreteScheduler", {"use_karras_sigmas": False, "timestep_spacing": "trailing"}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {"use_karras_sigmas": False}),
    "dpm++": (_DPM, {"algorithm_type": "dpmsolver++", "use_karras_sigmas": False}),
    "dpm++-karras": (_DPM, {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "dpm++-sde": (_DPM, {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": False}),
    "dpm++-sde-karras": (_DPM, {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {"use_karras_sigmas": False}),
    "unipc-karras": ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
"""Schedulers by short name: diffusers' class, and what of the engine's own configuration is changed for it.

"-trailing" is what models distilled to few steps ask for, "lcm" and "tcd" belong to LoRAs of those names.
"""

_OWN = {kind for kind, _ in NAMES.values()} | {
    "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
}
"""The classes that an engine may name as its own; others do not step from noise to a picture as these do."""

_LARGEST = 1_000_000
"""Of the whole numbers in a configuration, which are counts: more would only fill the memory."""

# What a configuration that does not fit makes of diffusers' arithmetic. ValueError has UsageError among its kinds.
_THEIRS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, AssertionError)


class Stepped(NamedTuple):
    """Latents after a step, and the picture that the scheduler expects in the end, or its nearest guess at it."""

    latents: Latents
    expected: Latents


def require_known(name: str | None) -> None:
    """Raise UsageError naming the schedulers unless ``name`` is one, or None for the engine's own."""
    if name is not None and (not isinstance(name, str) or name not in NAMES):
        raise UsageError(f"scheduler={name!r} is unknown. Use one of: {', '.join(NAMES)}, or leave it out.")


def require_possible(config: Mapping[str, Any], name: str | None, steps: int) -> None:
    """Raise what making a ``Schedule`` of these raises, and its first step."""
    schedule = Schedule(config, name, steps, [0])
    latents = schedule.noise(1, 2, 2)
    schedule.step(schedule.scaled(latents, 0), 0, latents)


class Schedule:
    """The steps of one generation and the random numbers of its pictures.

    Args:
        config: diffusers' scheduler configuration, ``_class_name`` included.
        name: of ``NAMES``; None is the class of the configuration.
        steps: as diffusers counts them. Some schedulers run the UNet more often: ``timesteps`` tells.
        seeds: one a picture. A picture's noise depends on its seed alone, and is that of diffusers' pipelines with
            ``torch.Generator("cpu").manual_seed(seed)``.

    Raises BackendUnavailableError where torch or diffusers is missing, or too old for this scheduler, UsageError for an
    unknown name or class and for steps or a configuration that the scheduler cannot take; so do its methods.
    """

    def __init__(self, config: Mapping[str, Any], name: str | None, steps: int, seeds: Sequence[int]) -> None:
        require_known(name)
        kind, changes = NAMES[name] if name is not None else (_own(config), {})
        try:
            import torch
            from diffusers import schedulers

            cls: Any = getattr(schedulers, kind, None)
        except (ImportError, RuntimeError, OSError) as error:  # diffusers wraps what fails while it imports
            raise unavailable("torch and diffusers", error) from error
        if cls is None:
            raise BackendUnavailableError(
                f"the installed diffusers has no {kind}. Run: pip install -U diffusers, or choose another scheduler."
            )
        self._torch, self._asked = torch, f"{name or kind} cannot run {steps} steps"
        with self._explained():
            known = inspect.signature(cls.__init__).parameters  # diffusers logs what else it is given, at every start
            self._scheduler = cls.from_config({k: v for k, v in _bounded(config) if k in known}, **changes)
            _require_fewer(steps, self._scheduler.config.get("num_train_timesteps"))
            self._scheduler.set_timesteps(steps, device="cpu")
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(0)
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        accepted = inspect.signature(self._scheduler.step).parameters
        # As diffusers' pipelines call it; eta above 0 would be other schedulers than those that are named.
        self._options: dict[str, Any] = {"eta": 0.0} if "eta" in accepted else {}
        if "generator" in accepted:
            self._options["generator"] = self._generators

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The UNet's ``timestep`` at each of its runs."""
        return tuple(float(t) for t in self._scheduler.timesteps)

    def noise(self, channels: int, height: int, width: int) -> Latents:
        """Latents to begin with, float32 [seeds, channels, height, width]."""
        shape = (1, channels, height, width)
        drawn = [self._torch.randn(shape, generator=generator) for generator in self._generators]
        with self._explained():
            return self._array(self._torch.cat(drawn) * self._scheduler.init_noise_sigma)

    def scaled(self, latents: Latents, index: int) -> Latents:
        """Latents as the UNet takes them at its run ``index``."""
        tensor = self._torch.from_numpy(latents)
        with self._explained():
            return self._array(self._scheduler.scale_model_input(tensor, self._scheduler.timesteps[index]))

    def step(self, noise: Latents, index: int, latents: Latents) -> Stepped:
        """One step, with the ``noise`` that the UNet found in ``latents`` at its run ``index``."""
        with self._explained():
            found = self._scheduler.step(
                self._torch.from_numpy(noise),
                self._scheduler.timesteps[index],
                self._torch.from_numpy(latents),
                **self._options,
            )
            after = self._array(found.prev_sample)
            last = index == len(self._scheduler.timesteps) - 1
            return Stepped(after, after if last else self._expected(found, after))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Make what diffusers raises in the block an error that says what was asked of it."""
        try:
            yield
        except UsageError:
            raise
        except ImportError as error:
            raise unavailable(self._asked, error) from error
        except _THEIRS as error:
            raise UsageError(
                f"{self._asked} with this engine ({' '.join(str(error).split())})."
                " Choose other steps, or another scheduler."
            ) from error

    def _expected(self, found: Any, after: Latents) -> Latents:
        for name in ("pred_original_sample", "denoised"):
            if getattr(found, name, None) is not None:
                return self._array(getattr(found, name))
        solver = str(self._scheduler.config.get("algorithm_type", ""))
        if solver.endswith("dpmsolver++") or getattr(self._scheduler, "predict_x0", False):
            return self._array(self._scheduler.model_outputs[-1])
        return after

    def _array(self, tensor: Any) -> Latents:
        array: Latents = tensor.to(self._torch.float32).contiguous().numpy()
        return array


def _own(config: Mapping[str, Any]) -> str:
    """The class that an engine names. Raises UsageError for one that is no scheduler of ours."""
    kind = config["_class_name"]
    if kind not in _OWN:
        raise UsageError(
            f"the engine's own scheduler, {shown(kind)}, is none that is run here. Choose another: {', '.join(NAMES)}."
        )
    return str(kind)


def _bounded(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise UsageError(f"the engine's scheduler has {key}={shown(value)}. Export the engine again.")
        yield key, value


def _require_fewer(steps: int, trained: int | None) -> None:
    """Some schedulers take more steps than they can tell apart; of those some need one to spare."""
    if trained is not None and steps > trained:
        raise UsageError(f"steps={steps} is more than the {trained} this model was trained for. Use fewer than these.")
