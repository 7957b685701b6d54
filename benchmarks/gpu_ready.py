"""What `gpu.sh` needs of a machine: says what is there and what is missing, and ends with "ready" if it can measure.

python benchmarks/gpu_ready.py [--cpu]
"""

from __future__ import annotations

import importlib
import sys

NEEDED = ("numpy", "torch", "safetensors", "typer", "rich", "dacite", "soxr", "PIL", "transformers")
HELPFUL = {
    "triton": "fused kernels are replaced by plain torch: figures will be worse",
    "pytest": "the tests cannot run",
    "hypothesis": "the tests cannot run",
    "flash_attn_interface": "attention is cuDNN's (on Hopper, FlashAttention 3 might be faster)",
}


def version_of(name: str) -> str | None:
    try:
        return str(getattr(importlib.import_module(name), "__version__", "present"))
    except ImportError:
        return None
    except Exception as error:  # a package that is there and broken
        return f"broken: {type(error).__name__}: {error}"


def main() -> int:
    print(f"python {sys.version.split()[0]} at {sys.executable}")
    found = {name: version_of(name) for name in (*NEEDED, *HELPFUL)}
    print(", ".join(f"{name} {version}" for name, version in found.items() if version))
    missing = [name for name in NEEDED if not found[name] or found[name].startswith("broken")]
    for name, loss in HELPFUL.items():
        if not found[name]:
            print(f"without {name}: {loss}")
    if missing:
        print(f"missing: {', '.join(missing)}; put their wheels into a folder and name it by WHEELS")
        return 2
    import torch

    if "--cpu" in sys.argv:
        print("ready to rehearse on the CPU")
        return 0
    if not torch.cuda.is_available():
        print(f"missing: a GPU that torch {torch.__version__} (CUDA {torch.version.cuda}) can use; see nvidia-smi")
        return 2
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        print(f"cuda:{index} {name}, capability {capability}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    torch.ones(8, 8, device="cuda").matmul(torch.ones(8, 8, device="cuda")).sum().item()
    print("ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
