"""The engine's process: one model, many sessions, chunks on request. No clock, no lanes, no network.

It talks to the gateway over a pipe, one message per request and one per answer; frames and sound cross in one shared
memory block per session. It ends when the pipe does, so a dead gateway leaves no engine behind. What is wrong with one
request is the answer to that request alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event, Lock
from time import perf_counter

import numpy as np
import torch
from av import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from streamavatar.avatar import Avatar
from streamavatar.engine import Reference, StepSession
from streamavatar.errors import UserError
from streamavatar.models.audio import AFTER
from streamavatar.serving.clock import AGENT_RATE, USER_RATE
from streamavatar.serving.protocol import Answer, EngineInfo, EngineSettings, Exchange, Request

__all__ = ["AGENT_RATE", "USER_RATE", "Engine", "EngineInfo", "EngineSettings", "as_float", "run_engine", "to_i420"]

KEPT_BYTES = 512 * 2**20
"""Of encoded faces. One that does not fit alone (the state of Wan's own decoder) is encoded for every session."""

logger = logging.getLogger(__name__)
Frames = NDArray[np.uint8]


def to_i420(frames: Frames) -> Frames:
    """RGB [F, H, W, 3] to I420 [F, H * 3 / 2, W], BT.601 limited range, as video encoders take it."""
    scaler = VideoReformatter()  # one for all: making it takes longer than converting a small picture
    pictures = (VideoFrame.from_ndarray(f, format="rgb24") for f in frames)
    return np.stack([scaler.reformat(p, format="yuv420p").to_ndarray() for p in pictures])


def as_float(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    return np.asarray(samples / 32768, np.float32)


class _Slot:
    """One session and the memory that its frames and its sound cross in."""

    def __init__(self, session: StepSession, info: EngineInfo) -> None:
        self.session, self.exchange = session, Exchange.create(info)
        self.answered = Event()
        """Set while no `make` waits for its answer. Its frames are there earlier, but answers must keep their order."""
        self.answered.set()

    def close(self) -> None:
        self.answered.wait()
        self.exchange.memory.close()
        with suppress(FileNotFoundError):  # unlinked already, unless nobody came to attach
            self.exchange.memory.unlink()


class Engine:
    """Answers requests; see the module's docstring.

    Args:
        avatar: the loaded model.
        answer: sends; may be called from any thread.
    """

    def __init__(self, avatar: Avatar, answer: Callable[[Answer], None]) -> None:
        self._avatar, self._answer = avatar, answer
        self._slots: dict[str, _Slot] = {}
        self._faces: dict[str, Reference] = {}
        """Encoded, by name; those that were used last are at the end."""
        g, device = avatar.config.geometry, avatar.model.transformer.head.head.weight.device
        self.info = EngineInfo(
            g.height, g.width, g.fps, g.chunk_frames, avatar.config.name, str(device), avatar.precision, AFTER
        )

    def handle(self, request: Request) -> None:
        """Do what is asked; `make` answers later, from a worker."""
        try:
            value = getattr(self, f"_{request.call}")(request)
        except Exception as error:  # of this request alone, also if the device has no memory left for a session
            if not isinstance(error, (UserError, ValueError)):
                logger.exception("%s failed", request.call)
            self._answer(Answer(request.number, error=str(error)))
        else:
            if request.call != "make":
                self._answer(Answer(request.number, value))

    def close(self) -> None:
        for name in list(self._slots):
            self._close(Request(0, "close", name))

    def _encode(self, request: Request) -> None:
        self._reference(*request.arguments)

    def _forget(self, request: Request) -> None:
        (face,) = request.arguments
        self._faces.pop(face, None)

    def _reference(self, face: str, picture: NDArray[np.uint8]) -> Reference:
        """The picture, encoded; what is kept under that name if there is anything. Nothing is kept without a name."""
        if face in self._faces:
            self._faces[face] = self._faces.pop(face)
            return self._faces[face]
        info, avatar = self.info, self._avatar
        if picture.shape != (info.height, info.width, 3) or picture.dtype != np.uint8:
            raise UserError(f"the picture must be uint8 {info.height}x{info.width}x3, not {picture.shape}")
        reference = avatar.pipeline.call(lambda: Reference.encode(avatar.model, picture))
        if face:
            self._faces[face] = reference
            while sum(kept.nbytes for kept in self._faces.values()) > KEPT_BYTES:
                del self._faces[next(iter(self._faces))]
        return reference

    def _open(self, request: Request) -> str:
        """The name of the session's shared memory; whoever attaches to it unlinks it."""
        picture, seed, face = request.arguments
        if request.session in self._slots:
            raise UserError(f"session {request.session} is open already")
        session = StepSession(
            self._avatar.model,
            self._avatar.pipeline,
            self._reference(face, picture),
            agent_rate=AGENT_RATE,
            user_rate=USER_RATE,
            seed=seed,
        )
        slot = self._slots[request.session] = _Slot(session, self.info)
        return slot.exchange.memory.name

    def _make(self, request: Request) -> None:
        (index,) = request.arguments
        slot = self._slot(request)
        slot.answered.wait()  # hardly ever: the gateway asks for one chunk at a time
        if index != slot.session.chunks + 1:
            raise UserError(f"session {request.session}: the next chunk is {slot.session.chunks + 1}, not {index}")
        begun = perf_counter()
        making = slot.session.begin(*map(as_float, slot.exchange.sound))
        slot.answered.clear()
        making.add_done_callback(lambda made: self._made(request.number, slot, made, begun))

    def _made(self, number: int, slot: _Slot, made: Future[Frames], begun: float) -> None:
        """On the decoder's worker: hand the frames over."""
        try:
            frames, decoded = made.result(), perf_counter()
            slot.exchange.frames[:] = to_i420(frames)
            latest = slot.session.telemetry.latest()
            seconds = {**latest, "encode": perf_counter() - decoded, "queue": decoded - begun - sum(latest.values())}
            self._answer(Answer(number, seconds))
        except Exception as error:  # anything a model can do wrong: the session is lost, the engine is not
            logger.exception("a chunk could not be made")
            self._answer(Answer(number, error=f"the chunk could not be made: {error}"))
        finally:
            slot.answered.set()

    def _rollback(self, request: Request) -> None:
        (index,) = request.arguments
        slot = self._slot(request)
        slot.answered.wait()
        if index != slot.session.chunks:
            raise UserError(f"session {request.session}: the last chunk is {slot.session.chunks}, not {index}")
        slot.session.rollback()

    def _close(self, request: Request) -> None:
        slot = self._slots.pop(request.session, None)
        if slot is None:
            return
        slot.close()

    def _memory(self, request: Request) -> int:
        """Bytes held on the device; of the process where that is the CPU."""
        if self.info.device != "cpu":
            return torch.cuda.memory_allocated(self.info.device)
        resident = int(Path("/proc/self/statm").read_text().split()[1])
        return resident * os.sysconf("SC_PAGE_SIZE")

    def _slot(self, request: Request) -> _Slot:
        if request.session not in self._slots:
            raise UserError(f"no session {request.session}")
        return self._slots[request.session]


def run_engine(pipe: Connection, settings: EngineSettings) -> None:
    """The process's main function: load, say so, answer until the pipe ends or `stop` comes."""
    os.setsid()  # signals to the gateway's group (Ctrl-C, a service manager's) are for the gateway, which drains first
    lock = Lock()

    def answer(message: Answer) -> None:
        with lock:
            try:
                pipe.send(message)
            except OSError:
                logger.info("nobody is left to answer to")

    try:
        avatar = Avatar.load(
            settings.model,
            device=settings.device,
            precision=settings.precision,
            threads=settings.threads,
            decoder=settings.decoder,
            decoder_device=settings.decoder_device,
        )
    except UserError as error:
        answer(Answer(0, error=str(error)))
        return
    engine = Engine(avatar, answer)
    answer(Answer(0, engine.info))
    try:
        while True:
            request = pipe.recv()
            if request.call == "stop":
                break
            engine.handle(request)
    except (EOFError, OSError):
        logger.info("the gateway is gone")
    finally:
        engine.close()
