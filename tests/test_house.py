"""Habits of the house that no linter checks: quick, quiet imports without side effects, and short files."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "streamavatar"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    path = {"PYTHONPATH": str(PACKAGE.parent), "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=path)


def test_import_is_quick() -> None:
    def seconds(code: str) -> float:
        begin = time.perf_counter()
        assert python(code).returncode == 0
        return time.perf_counter() - begin

    assert statistics.median(seconds("import streamavatar") - seconds("pass") for _ in range(3)) < 0.5


@pytest.mark.parametrize("module", ["streamavatar", "streamavatar.media"])
def test_import_without_torch(module: str) -> None:
    result = python(f"import sys, {module}; print('torch' in sys.modules)")
    assert (result.stdout, result.stderr) == ("False\n", "")


# Imports every module and reports what the modules' own bodies do: files opened, processes and connections started,
# environment variables read. "Own" means that a frame of ours stands between the event and the import machinery: what
# a dependency does while it is imported is its own matter. Modules that need an extra not installed are passed over.
SIDE_EFFECTS = """
import importlib, os, pkgutil, sys
package, report = {package!r}, os.open({report!r}, os.O_WRONLY | os.O_CREAT, 0o600)
found = set()

def note(event, what):
    frame = sys._getframe(2)
    if event == "environment":  # a decorator or a base class of a dependency may read its own settings
        while frame.f_code.co_filename in ("<frozen os>", "<frozen _collections_abc>"):
            frame = frame.f_back
        if not frame.f_code.co_filename.startswith(package):
            return
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        if frame.f_code.co_filename.startswith(package):
            if event == "open" and what == frame.f_code.co_filename:
                return  # a decorator looks at the source
            found.add(f"{{frame.f_code.co_filename}}:{{frame.f_lineno}} {{event}} {{what}}")
            return
        frame = frame.f_back

def audit(event, arguments):
    if event in ("open", "subprocess.Popen", "socket.connect"):
        note(event, arguments[0])

read = os._Environ.__getitem__

def reading(self, key):
    note("environment", key)
    return read(self, key)

os._Environ.__getitem__ = reading
sys.addaudithook(audit)
count = 0
for module in pkgutil.walk_packages([package], "streamavatar."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
            count += 1
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("streamavatar"):
                raise
os.write(report, repr((count, sorted(found))).encode())
"""


def side_effects(package: Path, report: Path) -> tuple[int, list[str]]:
    """Modules imported from a package folder, and what their bodies did."""
    code = f"import sys; sys.path.insert(0, {str(package.parent)!r})\n"
    result = python(code + SIDE_EFFECTS.format(package=str(package), report=str(report)))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    count, found = ast.literal_eval(report.read_text())
    return count, found


def test_imports_have_no_side_effects(tmp_path: Path) -> None:
    count, found = side_effects(PACKAGE, tmp_path / "report")
    assert count > 5
    assert found == []


def test_side_effects_are_noticed(tmp_path: Path) -> None:
    """The test above would see them: a package that does what it should not."""
    package = tmp_path / "streamavatar"
    package.mkdir()
    (package / "__init__.py").write_text("import pathlib, os\n")
    (package / "a.py").write_text("import pathlib\n(pathlib.Path(__file__).parent / 'b.py').read_text()\n")
    (package / "b.py").write_text("import os\nos.environ.get('HOME')\n")
    count, found = side_effects(package, tmp_path / "report")
    assert count == 2
    assert [Path(line.split(":")[0]).name for line in found] == ["a.py", "b.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short_and_do_not_print(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    prints = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert path.parent == PACKAGE / "cli" or not prints
