"""The command line. Everything that prints is here; errors of users are one line and exit status 2."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from streamavatar.cli import assemble, bench, data, live, pull, render, train
from streamavatar.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Live human avatars that talk and listen: one picture and two audio lanes become a streamed video.",
)
COMMANDS = (
    render.render,
    render.demo,
    render.avatars,
    live.live,
    bench.bench,
    train.train,
    pull.pull,
    assemble.assemble,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(data.data, name="data")

INTERRUPTED = 130  # exit status after Ctrl-C, by custom


def main() -> None:
    """Entry point: one-line errors, exit status 2 for bad input and 130 for Ctrl-C."""
    try:
        status = app(standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:  # usage errors of the command-line library; anything else is ours and has a traceback
        if not hasattr(error, "format_message"):
            raise
        _fail(error.format_message())
    sys.exit(status or 0)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
