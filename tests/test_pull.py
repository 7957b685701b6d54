"""Downloads from a mirror in this process: what is there is kept, what broke is taken up, what is wrong is refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from streamavatar.errors import UserError
from streamavatar.pull import RECORD, SOURCES, pull

pytest.importorskip("huggingface_hub")

REPO, COMMIT = SOURCES["wav2vec2"].repo, "c0ffee" * 6 + "c0ff"
FILES = {
    "config.json": b'{"model_type": "wav2vec2"}',
    "preprocessor_config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 4000,
    "README.md": b"not asked for",
}
BIG = "model.safetensors"


class Mirror(ThreadingHTTPServer):
    """As much of the hub, and of GitHub, as a download needs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.sizes: dict[str, int] = {}  # announced, where not true
        self.cut_after: list[int] = []  # bytes after which the next answers break off
        self.asked: list[tuple[str, str | None]] = []  # file and range
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def listing(self) -> dict[str, object]:
        siblings: list[dict[str, object]] = []
        for name, data in FILES.items():
            entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": git(data)}
            if name == BIG:
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}


def git(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            self.describe(path)
        elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            self.send(path.removeprefix(f"/{REPO}/resolve/{COMMIT}/"))
        elif path == "/madebyollin/taehv/raw/main/taew2_2.pth":
            self.send(BIG)
        else:
            self.fail("EntryNotFound")

    def describe(self, path: str) -> None:
        if not path.startswith(f"/api/models/{REPO}/"):
            self.fail("RepoNotFound")
        elif path.rpartition("/")[2] not in ("main", COMMIT):
            self.fail("RevisionNotFound")
        else:
            self.answer(200, json.dumps(self.server.listing()).encode())

    def send(self, name: str) -> None:
        data, wanted = self.server.files[name], self.headers.get("Range")
        self.server.asked.append((name, wanted))
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start >= len(data) > 0:
            self.answer(416, b"")
            return
        self.answer(
            206 if wanted else 200, data[start:], self.server.cut_after.pop(0) if self.server.cut_after else None
        )

    def fail(self, code: str) -> None:
        self.answer(404, b"{}", code=code)

    def answer(self, status: int, body: bytes, cut: int | None = None, code: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(mirror: Mirror, out: Path, name: str = "wav2vec2", revision: str = "main") -> list[Path]:
    return pull(name, out, revision, endpoint=mirror.url, github=mirror.url)


def whole(out: Path) -> bool:
    return all((out / name).read_bytes() == FILES[name] for name in FILES if name != "README.md")


def test_what_is_asked_for_and_nothing_else(mirror: Mirror, tmp_path: Path) -> None:
    told = []
    paths = pull("wav2vec2", tmp_path / "out", tell=lambda *now: told.append(now), endpoint=mirror.url)
    assert whole(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([*(p.name for p in paths), RECORD])
    assert (BIG, len(FILES[BIG]), len(FILES[BIG])) in told
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["revision"] == COMMIT
    assert record["files"]["config.json"] == f"git:{git(FILES['config.json'])}"
    mirror.asked.clear()
    get(mirror, tmp_path / "out")
    assert mirror.asked == []


def test_the_full_size_s_files(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformer, codec, text encoder and tokenizer, each in its place; not the pictures beside them."""
    wanted = [
        "config.json",
        "diffusion_pytorch_model-00001-of-00002.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
        "Wan2.2_VAE.pth",
        "models_t5_umt5-xxl-enc-bf16.pth",
        "google/umt5-xxl/spiece.model",
        "google/umt5-xxl/tokenizer.json",
    ]
    mirror.files = {name: name.encode() for name in (*wanted, "README.md", "assets/logo.png", "examples/i2v_input.JPG")}
    monkeypatch.setattr(sys.modules[__name__], "FILES", mirror.files)
    monkeypatch.setattr(sys.modules[__name__], "REPO", SOURCES["wan22-5b"].repo)
    paths = get(mirror, tmp_path, "wan22-5b")
    assert sorted(str(path.relative_to(tmp_path)) for path in paths) == sorted(wanted)
    assert all((tmp_path / name).read_bytes() == name.encode() for name in wanted)
    assert sorted(name for name, _ in mirror.asked) == sorted(wanted)


def test_a_broken_connection_is_taken_up(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cut_after = [5, 0, 100_000]  # of the first file once and nothing, then of the big one
    mirror.files = {name: FILES[name] for name in (BIG, *FILES)}
    get(mirror, tmp_path)
    assert whole(tmp_path)
    assert ("config.json", "bytes=5-") in mirror.asked


def test_a_killed_download_is_taken_up(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / f".{BIG}.partial").write_bytes(FILES[BIG][:300_000])
    get(mirror, tmp_path)
    assert whole(tmp_path)
    assert [wanted for name, wanted in mirror.asked if name == BIG] == ["bytes=300000-"]


@pytest.mark.parametrize("left", [b"x" * 300_000, b"x" * 1_024_000, b"x" * 2_000_000])
def test_what_another_revision_left_is_not_used(mirror: Mirror, tmp_path: Path, left: bytes) -> None:
    (tmp_path / f".{BIG}.partial").write_bytes(left)
    get(mirror, tmp_path)
    assert whole(tmp_path)


def test_a_server_that_goes_away_leaves_a_start(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cut_after = [len(FILES[name]) for name in ("config.json", "preprocessor_config.json")] + [200_000] + [0] * 50
    with pytest.raises(UserError, match=r"cannot fetch from .* pull again to go on, or download .*model\.safetensors"):
        get(mirror, tmp_path)
    assert (tmp_path / f".{BIG}.partial").stat().st_size == 200_000
    mirror.cut_after = []
    get(mirror, tmp_path)
    assert whole(tmp_path)


@pytest.mark.parametrize("name", ["config.json", BIG])
def test_wrong_contents_are_refused(mirror: Mirror, tmp_path: Path, name: str) -> None:
    mirror.files[name] = FILES[name][:-1] + b"!"
    with pytest.raises(UserError, match=rf"{name}: the contents do not fit their checksum (git|sha256):\w+ and were"):
        get(mirror, tmp_path)
    assert not (tmp_path / name).exists()
    assert not (tmp_path / f".{name}.partial").exists()


def test_files_brought_by_hand_are_checked_and_kept(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / BIG).write_bytes(FILES[BIG])
    (tmp_path / "config.json").write_bytes(b"x" * len(FILES["config.json"]))
    get(mirror, tmp_path)
    assert whole(tmp_path)
    assert [name for name, _ in mirror.asked] == ["config.json", "preprocessor_config.json"]


def test_github_has_no_checksum_but_one_is_recorded(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cut_after = [400_000]
    assert get(mirror, tmp_path, "taew22") == [tmp_path / "taew2_2.pth"]
    assert (tmp_path / "taew2_2.pth").read_bytes() == FILES[BIG]
    recorded = json.loads((tmp_path / RECORD).read_text())["files"]["taew2_2.pth"]
    assert recorded == f"sha256:{hashlib.sha256(FILES[BIG]).hexdigest()}"
    assert mirror.asked == [(BIG, None), (BIG, "bytes=400000-")]


def test_unknown_names(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="nothing called 'wan' to pull; there are: wan22-5b, wav2vec2, taew22"):
        get(mirror, tmp_path, "wan")
    with pytest.raises(UserError, match=r"no repository Wan-AI/Wan2\.2-TI2V-5B"):
        get(mirror, tmp_path, "wan22-5b")
    with pytest.raises(UserError, match="no revision 'v9'"):
        get(mirror, tmp_path, revision="v9")
    with pytest.raises(UserError, match="the server answers 404"):
        get(mirror, tmp_path, "taew22", revision="v9")
    monkeypatch.delitem(FILES, BIG)
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        get(mirror, tmp_path)


def test_a_full_disk_is_said_before(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="GiB of disk are free"):
        get(mirror, tmp_path)
    assert mirror.asked == []


def run(out: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys, typer\nfrom streamavatar import cli\nfrom streamavatar.cli.pull import pull\n"
        "cli.app = typer.Typer()\ncli.app.command()(pull)\ncli.app.callback()(lambda: None)\ncli.main()"
    )
    command = [sys.executable, "-c", code, "pull", "wav2vec2", "--out", str(out)]
    environment = {**os.environ, "HF_ENDPOINT": endpoint}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


def test_command(mirror: Mirror, tmp_path: Path) -> None:
    done = run(tmp_path / "here", mirror.url)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'here'}: 3 files, 0.00 GB\n"), done.stderr
    assert whole(tmp_path / "here")


def test_command_offline(tmp_path: Path) -> None:
    failed = run(tmp_path / "here", "http://127.0.0.1:9")
    assert failed.returncode == 2
    assert failed.stdout == ""
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("error: cannot fetch from http://127.0.0.1:9 (")
    assert "download config.json, preprocessor_config.json, model.safetensors of" in last
    assert last.endswith(f"by hand into {tmp_path / 'here'}")
    assert "Traceback" not in failed.stderr
