"""Which precision a device computes fast in."""

from __future__ import annotations

import torch


def half_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively (a GPU, or AVX-512 BF16 or AMX on a CPU).

    Asked, not timed, so that a machine always decides alike. Without it, bfloat16 convolutions on a CPU are hundreds of
    times slower than float32.
    """
    if device.type != "cpu":
        return True
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
