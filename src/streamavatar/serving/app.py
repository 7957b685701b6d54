"""The gateway as an ASGI application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.staticfiles import StaticFiles

from streamavatar.serving import problems, routes
from streamavatar.serving.admission import Supervisor
from streamavatar.serving.faces import Faces
from streamavatar.serving.metrics import Metrics
from streamavatar.serving.security import Guard
from streamavatar.serving.sessions import Keeper, Registry
from streamavatar.serving.settings import ServerSettings
from streamavatar.serving.videos import Videos

logger = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"


def create_app(settings: ServerSettings, keeper: Keeper | None = None) -> FastAPI:
    """The whole gateway.

    Args:
        settings: see there.
        keeper: of an engine that somebody else starts and stops; by default the app runs its own.
    """
    faces = Faces(settings.face_count, settings.faces_per_client, settings.face_keep_seconds)
    metrics = Metrics()
    supervisor = Supervisor(settings.engine, on_death=lambda reason: registry.engine_died()) if keeper is None else None
    registry = Registry(settings, keeper or supervisor, faces, metrics)  # type: ignore[arg-type]

    videos = Videos(settings.engine, settings.video_keep_seconds, lambda: registry.has_room)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(registry.watch(), name="session watch")]
        if supervisor is not None:
            tasks.append(asyncio.create_task(_start(app, supervisor), name="engine start"))
        try:
            yield
        finally:
            await registry.close_all("The server went down.")
            await videos.close()
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            if supervisor is not None:
                await supervisor.stop()

    app = FastAPI(
        title="streamavatar",
        version=version("streamavatar"),
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.house = routes.House(settings, registry, faces, metrics, videos)
    app.state.failed = asyncio.Event()
    app.state.failure = None
    problems.install(app)
    for router in (routes.plain, routes.avatars, routes.sessions, routes.videos):
        app.include_router(router)
    app.mount("/", StaticFiles(directory=PAGE, html=True, check_dir=False))
    app.add_middleware(Guard, settings=settings)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["*"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["location", "retry-after"],
        )
    return app


async def _start(app: FastAPI, supervisor: Supervisor) -> None:
    """Start the engine beside the server; a model that cannot be loaded ends it all (see `server.serve`)."""
    try:
        await supervisor.start()
    except Exception as error:
        logger.error("the engine cannot be started: %s", error)
        app.state.failure = error
        app.state.failed.set()
