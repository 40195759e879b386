"""Training state in one safetensors file: modules, AdamW moments and the step, written atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from declip_runtime.errors import TrainingError


def save_state(path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write everything a bit-identical continuation needs; ``step`` is the number of finished steps."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"module.{name}.{k}": v.contiguous() for k, v in module.state_dict().items()}
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{index}.{key}"] = value.contiguous()
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"step": str(step)})
    partial.replace(path)


def load_state(path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> int:
    """Restore in place what ``save_state`` wrote and return the number of finished steps.

    Raises TrainingError if the state belongs to other modules.
    """
    with safe_open(path, "pt") as stored:
        step = int((stored.metadata() or {}).get("step", "0"))
        keys = set(stored.keys())
        for name, module in modules.items():
            prefix = f"module.{name}."
            loaded = {k.removeprefix(prefix): stored.get_tensor(k) for k in keys if k.startswith(prefix)}
            try:
                module.load_state_dict(loaded)
            except RuntimeError as error:
                raise TrainingError(
                    f"{path} belongs to another model or configuration. Use another output folder or remove it."
                ) from error
        for index, parameter in enumerate(_parameters(optimizer)):
            prefix = f"optimizer.{index}."
            moments = {k.removeprefix(prefix): stored.get_tensor(k) for k in keys if k.startswith(prefix)}
            if moments:
                # channels-last parameters keep their layout, or the fused update reads the wrong elements
                optimizer.state[parameter] = {
                    k: torch.empty_like(parameter).copy_(v) if v.shape == parameter.shape else v.to(parameter.device)
                    for k, v in moments.items()
                }
    return step


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]
