"""A folder of tar shards: how one is written so that it is whole or absent, and the manifest that lists them.

A shard grows as `NAME.tar.partial` under a file lock. The kernel lets go of the lock when its owner dies, however it
dies, so a lock that can be had is a claim nobody works on: no leases, no process numbers, no clocks. Several processes
may fill one folder, also from several machines if the file system has locks.

The manifest has one JSON line per finished shard, with the place of every file in it; it can be made again from the
shards, and is mended from them whenever production starts.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from streamavatar.errors import UserError
from streamavatar.synth.performance import FPS

FORMAT = 1
MANIFEST = "manifest.jsonl"
_PARTIAL = ".partial"


def shard_name(index: int) -> str:
    return f"synth-{index:06d}.tar"


@dataclass(frozen=True)
class Entry:
    """One clip in a shard: its length in frames, who it shows, and [offset, bytes] of each of its files."""

    shard: str
    key: str
    frames: int
    identity: str
    files: dict[str, list[int]]


class ShardWriter:
    """One shard under way. Leaving the block without `finish` removes what was written.

    Made by :meth:`claim` alone.
    """

    def __init__(self, final: Path, file: BinaryIO) -> None:
        self._final, self._file = final, file
        self._partial = _partial(final)
        self._tar: tarfile.TarFile | None = None
        with self._writing():
            file.truncate(0)
            self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)

    @classmethod
    def claim(cls, final: Path) -> ShardWriter | None:
        """The right to write this shard; None if it is finished or another process is writing it.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            file = _locked_partial(final)
        except OSError as error:
            raise _cannot_write(final, error) from error
        return cls(final, file) if file else None

    def add(self, key: str, files: dict[str, bytes]) -> None:
        """Append a clip: `files` maps suffixes such as "mp4" to contents. The key must have no dot."""
        assert self._tar is not None
        with self._writing():
            for suffix, data in files.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")  # owner and times stay 0: same clips, same bytes
                member.size, member.mode = len(data), 0o644
                self._tar.addfile(member, io.BytesIO(data))

    def finish(self) -> dict[str, Any]:
        """Give the shard its name and enter it in the manifest; returns its line there."""
        assert self._tar is not None
        with self._writing():
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            line = describe_shard(self._partial, self._final.name)
            os.replace(self._partial, self._final)
            _sync_folder(self._final.parent)
            _append(self._final.parent, line)
        return line

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(FileNotFoundError):  # it has its final name
            self._partial.unlink()
        with suppress(OSError):  # the buffer's rest on a full disk
            self._file.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _cannot_write(self._final, error) from error


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write {path}: {error.strerror or error}; free some space or mend that, and run the same command "
        "again: finished shards stay"
    )


def _partial(final: Path) -> Path:
    return final.with_name(final.name + _PARTIAL)


def _locked_partial(final: Path) -> BinaryIO | None:
    """The shard's temporary file, locked; None if another process holds it or the shard is finished."""
    partial = _partial(final)
    file = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between opening and locking, its owner may have finished it (the name is gone) or given it up.
        ours = os.path.samestat(os.fstat(file.fileno()), os.stat(partial))
    except (BlockingIOError, FileNotFoundError):
        ours = False
    if ours and final.exists():
        partial.unlink()
        ours = False
    if not ours:
        file.close()
        return None
    return file


def sweep(folder: Path) -> None:
    """Remove temporary files that nobody is writing."""
    for partial in folder.glob("synth-*.tar" + _PARTIAL):
        with suppress(OSError), partial.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()


# manifest --------------------------------------------------------------------------------------------


def describe_shard(path: Path, name: str | None = None) -> dict[str, Any]:
    """The manifest's line for a shard, read from the shard itself.

    Raises:
        UserError: it is no whole tar file of clips.
    """
    clips: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                clip = clips.setdefault(key, {"key": key, "files": {}})
                clip["files"][suffix] = [member.offset_data, member.size]
                if suffix == "json":
                    about = json.load(tar.extractfile(member))  # type: ignore[arg-type]
                    clip |= {"frames": about["frames"], "identity": about["identity"]}
        frames = sum(clip["frames"] for clip in clips.values())
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise damaged(path, str(error)) from error
    return {
        "shard": name or path.name,
        "bytes": path.stat().st_size,
        "sha256": _digest(path),
        "seconds": frames / FPS,
        "clips": list(clips.values()),
    }


def damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}): delete it and run the command that made it again")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Lines by shard name; a line cut short by a power failure is left out."""
    lines: dict[str, dict[str, Any]] = {}
    with suppress(FileNotFoundError), (folder / MANIFEST).open(encoding="utf-8") as file:
        for text in file:
            with suppress(ValueError):
                line = json.loads(text)
                lines[line["shard"]] = line
    return lines


def mend_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Let the manifest list exactly the shards that are there, each checked for its size; returns its lines.

    Raises:
        UserError: naming a damaged shard.
    """
    try:
        with _manifest_lock(folder):
            known = read_manifest(folder)
            lines: dict[str, dict[str, Any]] = {}
            for path in sorted(folder.glob("synth-*.tar")):
                lines[path.name] = known.get(path.name) or describe_shard(path)
                check_size(path, lines[path.name])
            write_whole(folder / MANIFEST, "".join(json.dumps(line) + "\n" for line in lines.values()))
    except OSError as error:
        raise _cannot_write(folder / MANIFEST, error) from error
    return lines


def check_size(path: Path, line: dict[str, Any]) -> None:
    """Compare a shard with its line.

    Raises:
        UserError: the shard is missing, or shorter or longer than it was.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run the command that made it again") from error
    if size != line["bytes"]:
        raise damaged(path, f"{size} bytes instead of {line['bytes']}")


def write_whole(path: Path, text: str) -> None:
    """Replace a text file, so that its reader sees the old or the new one."""
    temporary = path.with_name(path.name + _PARTIAL)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _append(folder: Path, line: dict[str, Any]) -> None:
    data = (json.dumps(line) + "\n").encode()
    with _manifest_lock(folder), (folder / MANIFEST).open("ab", buffering=0) as file:
        before = file.tell()
        if file.write(data) != len(data):
            file.truncate(before)
            raise OSError(f"no space for a line in {MANIFEST}")
        os.fsync(file.fileno())


@contextmanager
def _manifest_lock(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
