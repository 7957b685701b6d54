"""Run the gateway until it is told to stop; SIGTERM lets sessions end first."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from streamavatar.errors import UserError
from streamavatar.serving.app import create_app
from streamavatar.serving.settings import ServerSettings

_KEEP_ALIVE = 30


class _Quiet(logging.Filter):
    """Keeps tokens in query strings out of the access log."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(a.partition("?")[0] if isinstance(a, str) else a for a in record.args)
        return True


class _Server(uvicorn.Server):
    """Uvicorn that drains the sessions before it goes."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self._app, self._tell = app, ready
        self._side_tasks: list[asyncio.Task[None]] = []
        self._hurried = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM lets sessions end; Ctrl-C, or a second signal, does not wait for them.

        Unlike uvicorn's own handler it does not raise the signal again at the end: a server that was told to stop, and
        did, exits with 0.
        """
        self._hurried = self.should_exit or sig == signal.SIGINT
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._side_tasks = [asyncio.create_task(self._say_ready()), asyncio.create_task(self._watch_engine())]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._app.state.failure is None:
            await self._app.state.house.registry.drain(lambda: not self._hurried)
        for task in self._side_tasks:
            task.cancel()
        await super().shutdown(sockets=sockets)

    async def _say_ready(self) -> None:
        while not self._app.state.house.registry.keeper.ready:
            await asyncio.sleep(0.05)
        self._tell(address(self._app.state.house.settings))

    async def _watch_engine(self) -> None:
        await self._app.state.failed.wait()
        self.should_exit = True


def address(settings: ServerSettings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}/"


def serve(settings: ServerSettings, ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        ready: called with the page's address once sessions can be opened.

    Raises:
        UserError: the port is taken, or the model cannot be loaded.
    """
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=3,
        ws_max_size=2_000_000,
        server_header=False,
    )
    for name in ("uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).addFilter(_Quiet())
    try:
        listener = _bind(settings)
    except OSError as error:
        raise UserError(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); choose another --port"
        ) from error
    with listener:
        _Server(config, app, ready).run(sockets=[listener])
    if app.state.failure is not None:
        raise app.state.failure


def _bind(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except BaseException:
        listener.close()
        raise
    return listener
