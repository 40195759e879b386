"""In which arithmetic towers compute: bfloat16 where the hardware has it, float32 elsewhere."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is done in hardware there, so that it pays."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # torch's own check for oneDNN says yes for every CPU with AVX-512, most of which emulate
    checks = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    return any(check is not None and check() for check in checks)


def autocast(device: torch.device) -> torch.autocast:
    """Products in bfloat16 where that pays; emulated they would take a hundred times as long."""
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bf16(device))
