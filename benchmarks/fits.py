"""What fits on a GPU: the table of docs/gpu.md, computed from the shapes; runs anywhere.

python benchmarks/fits.py
"""

from __future__ import annotations

from collections.abc import Iterator

from streamavatar.bench.drawn import decoder_config
from streamavatar.models.codec.choice import DecoderName
from streamavatar.models.full import wan22_5b
from streamavatar.models.memory import memory_plan

SIZES = ((928, 704), (1280, 704))
NAMES: dict[DecoderName, str] = {"light": "light", "pruned": "pruned to half of the channels", "full": "full"}


def rows() -> Iterator[str]:
    """Lines of Markdown, GiB."""
    yield "| size | decoder | weights | cache | recorded passes | decoder state | work | all |"
    yield "|---|---|---|---|---|---|---|---|"
    for width, height in SIZES:
        config = wan22_5b(height, width)
        for decoder, name in NAMES.items():
            plan = memory_plan(config, decoder_config(config, decoder) or "full")
            parts = (plan.weights, plan.cache, plan.recorded, plan.state, plan.work, plan.total)
            yield f"| {width}x{height} | {name} | {' | '.join(f'{part / 2**30:.1f}' for part in parts)} |"


if __name__ == "__main__":
    print("\n".join(rows()))
