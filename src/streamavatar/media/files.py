"""Opening files from outside: the checks that pictures, audio and video share, each with its own sentence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from streamavatar.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer

StrPath = str | os.PathLike[str]


def existing_file(path: StrPath, what: str) -> Path:
    """The path of a readable, non-empty, regular file.

    Args:
        path: where the file is; `~` is expanded. A URL is refused: the media room reads files alone.
        what: what the file is for ("picture", "audio"), used in the messages.

    Raises:
        UserError: if there is no such file, it is a folder or a device, it is empty, or it cannot be opened.
    """
    if "://" in os.fspath(path):
        raise UserError(f"{what} {os.fspath(path)!r} is a URL: download it and give the file")
    file = Path(path).expanduser()
    try:
        if file.is_dir():
            raise UserError(f"{what} {str(file)!r} is a folder: give one file")
        if not file.exists():
            raise UserError(f"{what} {str(file)!r} does not exist: check the path")
        if not file.is_file():
            raise UserError(f"{what} {str(file)!r} is not a regular file: save it to disk and give that file")
        if file.stat().st_size == 0:
            raise UserError(f"{what} {str(file)!r} is empty (0 bytes): make or download it again")
        file.open("rb").close()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{what} {str(file)!r} cannot be opened ({reason}): check the path and its permissions"
        ) from error
    return file


def open_container(path: StrPath, what: str) -> InputContainer:
    """Open an audio or video file for demuxing; the caller closes it.

    The `file:` prefix and the protocol list keep FFmpeg from taking a file name, or a playlist in the
    file, as an address to fetch.

    Raises:
        UserError: as :func:`existing_file`, or if FFmpeg does not know the format or finds it damaged.
    """
    import av  # here, so that pictures can be read without it
    import av.error

    file = existing_file(path, what)
    try:
        return av.open(f"file:{file.absolute()}", options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UserError(
            f"{what} {str(file)!r} is not a media file that FFmpeg can read, or it is cut short "
            f"({describe(error)}): convert or download it again"
        ) from error


def describe(error: Exception) -> str:
    """The short reason inside an FFmpeg or operating-system error, without its path."""
    return str(getattr(error, "strerror", None) or error)
