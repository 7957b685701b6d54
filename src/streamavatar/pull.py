"""Downloads of the public parts of the full-size model: resumed where they stopped, kept only if their checksum fits.

Names, sizes and checksums come from the Hugging Face hub through its library, which also knows its address
(`HF_ENDPOINT`) and the user's token. The files are fetched here and not by the library: that starts a file anew when a
download was killed, and these have 10 GB.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from streamavatar.errors import UserError

RECORD = "pull.json"
"""What was downloaded from where: lies beside the files, and spares checking them again."""
GITHUB = "https://github.com"
ATTEMPTS, BLOCK = 5, 2**20

Tell = Callable[[str, int, int], None]
"""(file, bytes done, bytes in all; 0 if nobody knows)."""


@dataclass(frozen=True)
class Source:
    """Files to pull.

    Attributes:
        repo: owner/name.
        files: names or patterns.
        github: whether the repository is GitHub's and not the hub's; such files bring no checksum.
    """

    repo: str
    files: tuple[str, ...]
    github: bool = False


SOURCES = {
    "wan22-5b": Source(
        "Wan-AI/Wan2.2-TI2V-5B",
        (
            "config.json",
            "diffusion_pytorch_model*",
            "Wan2.2_VAE.pth",
            "models_t5_umt5-xxl-enc-bf16.pth",
            "google/umt5-xxl/*",
        ),
    ),
    "wav2vec2": Source("facebook/wav2vec2-base-960h", ("config.json", "preprocessor_config.json", "model.safetensors")),
    "taew22": Source("madebyollin/taehv", ("taew2_2.pth",), github=True),
}


@dataclass(frozen=True)
class Remote:
    """A file to fetch; `checksum` is "sha256:..." or "git:..." (as git names contents), or nothing."""

    name: str
    url: str
    size: int | None = None
    checksum: str | None = None


def pull(
    name: str,
    out: Path,
    revision: str = "main",
    tell: Tell = lambda file, done, total: None,
    *,
    endpoint: str | None = None,
    github: str = GITHUB,
) -> list[Path]:
    """Fetch the files of a source that are not there yet.

    Args:
        name: one of `SOURCES`.
        out: folder; made if missing. What a stopped download left in it is used.
        revision: branch, tag or commit.
        tell: told about progress.
        endpoint: of the hub; by default what its library knows.
        github: address of GitHub.

    Raises:
        UserError: an unknown name or revision, no connection, a full disk, or contents that do not fit their checksum.
    """
    if name not in SOURCES:
        raise UserError(f"nothing called {name!r} to pull; there are: {', '.join(SOURCES)}")
    source = SOURCES[name]
    fetch = _Fetch(source, out, revision, tell, endpoint, github)
    try:
        out.mkdir(parents=True, exist_ok=True)
        return fetch.run()
    except fetch.hub.errors.HTTPError as error:
        raise fetch.unreachable(error) from error
    except OSError as error:
        raise UserError(f"{out}: {error.strerror or error}; what is there stays: mend that and pull again") from error


class _Fetch:
    def __init__(self, source: Source, out: Path, revision: str, tell: Tell, endpoint: str | None, github: str) -> None:
        try:
            import huggingface_hub
            import huggingface_hub.constants
            import huggingface_hub.errors
            import huggingface_hub.utils
        except ModuleNotFoundError as error:
            raise UserError(f"pull needs {error.name}; install it with: pip install 'streamavatar[full]'") from error
        self.hub: Any = huggingface_hub
        self.source, self.out, self.revision, self.tell = source, out, revision, tell
        self.endpoint = (endpoint or self.hub.constants.ENDPOINT).rstrip("/")
        self.github = github.rstrip("/")
        self.headers: dict[str, str] = {} if source.github else self.hub.utils.build_hf_headers()

    def run(self) -> list[Path]:
        remotes = self._list_github() if self.source.github else self._list_hub()
        record = self._read_record()
        wanted = [remote for remote in remotes if not self._is_there(remote, record)]
        need = sum(max(0, (r.size or 0) - _size(self._partial(r))) for r in wanted)
        if (free := shutil.disk_usage(self.out).free) < need:
            raise UserError(
                f"{self.out}: {free / 2**30:.1f} GiB of disk are free, {need / 2**30:.1f} GiB are missing; "
                "free some, or choose another --out"
            )
        for remote in wanted:
            self._fetch(remote)
            record[remote.name] = remote.checksum or f"sha256:{_digest(self.out / remote.name, 'sha256')}"
            self._write_record(record)
        return [self.out / remote.name for remote in remotes]

    # what there is ---------------------------------------------------------------------------------

    def _list_github(self) -> list[Remote]:
        root = f"{self.github}/{self.source.repo}/raw/{self.revision}"
        return [Remote(name, f"{root}/{name}") for name in self.source.files]

    def _list_hub(self) -> list[Remote]:
        errors, repo = self.hub.errors, self.source.repo
        try:
            info = self.hub.HfApi(endpoint=self.endpoint).model_info(repo, revision=self.revision, files_metadata=True)
        except errors.RevisionNotFoundError as error:
            raise UserError(
                f"{repo} has no revision {self.revision!r}; leave out --revision, or see its page"
            ) from error
        except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
            raise UserError(
                f"{self.endpoint} has no repository {repo} for you; check HF_ENDPOINT, or log in with: hf auth login"
            ) from error
        except (errors.HTTPError, OSError) as error:
            raise self.unreachable(error) from error
        self.revision = info.sha  # what is fetched belongs together, whatever happens to the branch meanwhile
        found = []
        for file in info.siblings:
            if any(fnmatch(file.rfilename, pattern) for pattern in self.source.files):
                url = self.hub.hf_hub_url(repo, file.rfilename, revision=info.sha, endpoint=self.endpoint)
                checksum = f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}" if file.blob_id else None
                found.append(Remote(file.rfilename, url, file.size, checksum))
        absent = [p for p in self.source.files if not any(fnmatch(remote.name, p) for remote in found)]
        if absent:
            raise UserError(f"{repo} at {self.revision[:12]} has no {absent[0]}; try another --revision")
        return found

    def unreachable(self, error: Exception) -> UserError:
        where = self.github if self.source.github else self.endpoint
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        return UserError(
            f"cannot fetch from {where} ({reason}); pull again to go on, or download {', '.join(self.source.files)} "
            f"of {where}/{self.source.repo} by hand into {self.out}"
        )

    # what is there already -------------------------------------------------------------------------

    def _read_record(self) -> dict[str, str]:
        try:
            files: dict[str, str] = json.loads((self.out / RECORD).read_text(encoding="utf-8"))["files"]
            return dict(files)
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _write_record(self, files: dict[str, str]) -> None:
        values = {"source": self.source.repo, "revision": self.revision, "files": files}
        temporary = self.out / f".{RECORD}.partial"
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.out / RECORD)

    def _is_there(self, remote: Remote, record: dict[str, str]) -> bool:
        path = self.out / remote.name
        if not path.is_file() or (remote.size is not None and _size(path) != remote.size):
            return False
        if remote.checksum is None or record.get(remote.name) == remote.checksum:
            return True
        return _fits(path, remote.checksum)  # brought here by hand

    # one file --------------------------------------------------------------------------------------

    def _partial(self, remote: Remote) -> Path:
        path = self.out / remote.name
        return path.with_name(f".{path.name}.partial")

    def _fetch(self, remote: Remote) -> None:
        partial = self._partial(remote)
        partial.parent.mkdir(parents=True, exist_ok=True)
        for fresh in (False, True):  # what was there before may belong to another revision: then once from the start
            began_with = 0 if fresh else _size(partial)
            self._complete(remote, partial)
            if remote.checksum is None or _fits(partial, remote.checksum):
                os.replace(partial, self.out / remote.name)
                return
            partial.unlink()
            if not began_with:
                break
        raise UserError(
            f"{remote.url}: the contents do not fit their checksum {remote.checksum} and were deleted; pull again, "
            "and do not trust this source if it happens again"
        )

    def _complete(self, remote: Remote, partial: Path) -> None:
        """Fetch what is missing; a broken connection is taken up again as long as something comes."""
        attempts = 0
        while True:
            before = _size(partial)
            if remote.size is not None and before > remote.size:
                partial.unlink()
                continue
            if remote.size is not None and before == remote.size:
                self.tell(remote.name, before, before)
                partial.touch()  # an empty file is complete without a byte
                return
            broken: Exception | None = None
            try:
                total = self._receive(remote, partial)
            except self.hub.errors.HTTPError as error:
                broken, total = error, remote.size or -1
            if broken is None and _size(partial) == total:
                return
            attempts = 0 if _size(partial) > before else attempts + 1
            if attempts >= ATTEMPTS:
                raise broken or UserError(f"{remote.url}: ends after {_size(partial)} of {total} bytes; pull again")

    def _receive(self, remote: Remote, partial: Path) -> int:
        """Append what the server sends; returns how many bytes the whole file has."""
        have = _size(partial)
        headers = {**self.headers, "Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
        session = self.hub.utils.get_session()
        with session.stream("GET", remote.url, headers=headers, follow_redirects=True) as response:
            if response.status_code == 416:  # not a part of this file: the server's is shorter
                partial.unlink()
                return -1
            if response.status_code not in (200, 206):
                raise UserError(
                    f"{remote.url}: the server answers {response.status_code}; check the name and --revision"
                )
            if response.status_code == 200:
                have = 0
            length = int(response.headers.get("content-length", -1))
            total = remote.size if remote.size is not None else have + length if length >= 0 else 0
            with open(partial, "ab" if have else "wb") as file:
                for block in response.iter_bytes():  # as it comes, so that nothing is lost if it breaks
                    file.write(block)
                    have += len(block)
                    self.tell(remote.name, have, total)
        return total or have


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(16 * BLOCK):
            yield block


def _digest(path: Path, kind: str) -> str:
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(f"blob {_size(path)}\0".encode())
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _fits(path: Path, checksum: str) -> bool:
    kind, _, value = checksum.partition(":")
    return _digest(path, kind) == value
