"""A program for the tests of page and leaks: the real gateway; its engine's frames are white where the agent is loud.

python tests/serving/flashing.py PORT
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import uvicorn
from fastapi import FastAPI
from numpy.typing import NDArray

from streamavatar.serving.app import create_app
from streamavatar.serving.engine_client import Capacity, Chunk, EngineInfo
from streamavatar.serving.settings import ServerSettings

SIZE, CHUNK, TICK = 128, 12, 960
BLACK, WHITE, GREY = 16, 235, 128
LOUD = 1000


class FlashingEngine:
    """Makes a chunk at once; says nothing about the person in the picture."""

    info = EngineInfo(
        height=SIZE, width=SIZE, fps=25, chunk_frames=CHUNK, model="flashing", device="cpu", precision="float32"
    )

    async def encode(self, face: str, picture: NDArray[np.uint8]) -> None:
        """Nothing is kept."""

    async def forget(self, face: str) -> None:
        """Nothing is kept."""

    async def open(self, session: str, picture: NDArray[np.uint8], seed: int, face: str) -> None:
        """Nothing is kept."""

    async def make(self, session: str, index: int, agent: NDArray[np.int16], user: NDArray[np.int16]) -> Chunk:
        loud = np.abs(agent[: CHUNK * TICK].astype(int)).reshape(CHUNK, TICK).max(axis=1) > LOUD
        frames = np.full((CHUNK, SIZE * 3 // 2, SIZE), GREY, np.uint8)
        frames[:, :SIZE] = np.where(loud, WHITE, BLACK)[:, None, None]
        return Chunk(index, frames, {"transformer": 0.0})

    async def rollback(self, session: str, index: int) -> None:
        """Nothing is kept."""

    async def close_session(self, session: str) -> None:
        """Nothing is kept."""

    async def memory(self) -> int:
        return 0


def flashing_app(port: int) -> FastAPI:
    capacity = Capacity(sessions=2, chunk_seconds={}, budget=0.4)
    keeper = SimpleNamespace(ready=True, client=FlashingEngine(), capacity=capacity, restarts=0)
    return create_app(ServerSettings(port=port), keeper=keeper)


def main() -> None:
    port = int(sys.argv[1])
    uvicorn.run(flashing_app(port), port=port, log_level="warning")


if __name__ == "__main__":
    main()
