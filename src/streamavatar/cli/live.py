"""`streamavatar live`: the server and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from streamavatar.cli.common import (
    DecoderDeviceOption,
    DecoderOption,
    DeviceOption,
    ModelOption,
    PrecisionOption,
    ThreadsOption,
    console,
)
from streamavatar.errors import UserError


def live(
    host: Annotated[str, typer.Option(help="Address; beyond this machine only with --token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "auto",
    decoder: DecoderOption = "full",
    decoder_device: DecoderDeviceOption = None,
    threads: ThreadsOption = None,
    sessions: Annotated[int | None, typer.Option(min=1, help="Sessions at a time; measured if left out.")] = None,
    token: Annotated[
        str, typer.Option(envvar="STREAMAVATAR_TOKEN", help="What clients must show to open sessions.")
    ] = "",
    voice: Annotated[
        Literal["auto", "pico", "flite", "espeak"], typer.Option(help="Synthesiser for typed text.")
    ] = "auto",
    stun_url: Annotated[str, typer.Option(help="STUN server, for example stun:stun.example.org:3478.")] = "",
    turn_url: Annotated[str, typer.Option(help="TURN server, for example turn:turn.example.org:3478.")] = "",
    turn_secret: Annotated[
        str, typer.Option(envvar="STREAMAVATAR_TURN_SECRET", help="Secret shared with the TURN server.")
    ] = "",
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Origin of another web page that may use this server; may be repeated.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    max_minutes: Annotated[float, typer.Option(min=0.1, help="Length of a session.")] = 60.0,
    grace_seconds: Annotated[float, typer.Option(min=0, help="How long a session waits for a lost client.")] = 30.0,
) -> None:
    """Serve live avatars: a page to talk to them, and the API behind it."""
    try:
        from streamavatar.serving.protocol import EngineSettings
        from streamavatar.serving.server import serve
        from streamavatar.serving.settings import ServerSettings
    except ModuleNotFoundError as error:
        raise UserError(
            f"the live server needs {error.name}; install it with: pip install 'streamavatar[live]'"
        ) from error

    engine = EngineSettings(
        _folder(model), device, precision, threads, sessions, decoder=decoder, decoder_device=decoder_device
    )
    settings = ServerSettings(
        host=host,
        port=port,
        engine=engine,
        token=token,
        allowed_origins=tuple(allow_origin or ()),
        voice=voice,
        stun_url=stun_url,
        turn_url=turn_url,
        turn_secret=turn_secret,
        sessions_per_client=max(4, sessions or 0),
        max_minutes=max_minutes,
        grace_seconds=grace_seconds,
    )
    console().print("starting the engine and measuring how many sessions fit ...", highlight=False)

    def ready(url: str) -> None:
        console().print(f"open [bold]{url}[/] in a browser; Ctrl-C stops", highlight=False)
        if open_page:
            typer.launch(url)

    serve(settings, ready)


def _folder(model: Path | None) -> Path | None:
    return None if model is None else model.resolve()
