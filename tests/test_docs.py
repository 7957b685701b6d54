"""The documentation keeps up with the code: links, images, Python blocks, options, settings and position tables."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from streamavatar.cli import app
from streamavatar.config import ModelConfig
from streamavatar.models.avatar import AvatarModel
from streamavatar.positions import Positions

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
TO_COME = {DOCS / "images" / "demo.gif", DOCS / "images" / "lips.png"}
"""Images that are made from the trained model."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """The page without its code blocks and inline code."""
    return re.sub(r"`[^`\n]+`", "", FENCE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """Headings as both GitHub and mkdocs name them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pages
def test_links_and_images_exist(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists() or target in TO_COME, f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_images_are_small() -> None:
    for image in set((DOCS / "images").glob("*.png")) - TO_COME:
        assert image.stat().st_size < 600_000, image.name


@pages
def test_python_blocks_compile(page: Path) -> None:
    for language, code in FENCE.findall(page.read_text()):
        if language == "python":
            compile(code, f"{page.name}: {code.splitlines()[0]}", "exec")


@pages
def test_no_marker_is_left(page: Path) -> None:
    assert re.findall(r"\{\{.*?\}\}", page.read_text()) == []


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r":\s+(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


# the command line --------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every `streamavatar ...` on the page, in code blocks and inline."""
    text = page.read_text()
    blocks = [code for language, code in FENCE.findall(text) if language in ("bash", "sh", "console", "text", "")]
    inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    for line in "\n".join([*blocks, *inline]).replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\||[|;]", line.partition("#")[0]):
            words = shlex.split(part) if part.strip() else []
            if len(words) > 1 and words[0].rpartition("/")[2] == "streamavatar":
                yield words[1:]


def options() -> dict[str, set[str]]:
    """Options of every subcommand, those of its own subcommands included."""

    def of(command: Any) -> set[str]:
        own = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        return own.union(*(of(below) for below in getattr(command, "commands", {}).values()))

    group: Any = typer.main.get_command(app)
    return {name: of(command) for name, command in group.commands.items()}


def test_commands_are_found() -> None:
    found = {words[0] for page in PAGES for words in commands(page)}
    assert found == set(options()), "every subcommand is documented, and only those"


@pages
def test_commands_and_options_exist(page: Path) -> None:
    known = options()
    for words in commands(page):
        assert words[0] in known, words
        used = {word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
        assert used - known[words[0]] == set(), words


def test_render_options_are_all_documented() -> None:
    text = (DOCS / "guide" / "first-video.md").read_text()
    assert [option for option in options()["render"] if f"`{option}`" not in text] == []


@pages
def test_training_settings_exist(page: Path) -> None:
    pytest.importorskip("cv2", reason="training needs the extra `synth`")
    from streamavatar.recipes import RECIPES
    from streamavatar.training.stages import STAGES

    for words in commands(page):
        if words[0] != "train":
            continue
        assert words[1] in RECIPES, words
        for option, value in pairwise(words):
            if option == "--set":
                settings = RECIPES[words[1]]()
                for name in value.partition("=")[0].split("."):
                    settings = getattr(settings, name)
            elif option == "--stages":
                assert set(value.split(",")) <= set(STAGES), words


def test_stages_are_documented() -> None:
    pytest.importorskip("cv2", reason="training needs the extra `synth`")
    from streamavatar.training.stages import STAGES

    text = (DOCS / "guide" / "training.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|.*\{?.*\|$", text.partition("## The run folder")[0], re.MULTILINE) == list(STAGES)


# figures of the code ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["paper", "engine"])
def test_position_tables(form: str) -> None:
    """The worked tables of how-it-works/context.md are what the code computes."""
    config = ModelConfig()
    positions = Positions(config.geometry, config.context)
    query, keys = {
        "paper": (positions.literal_query, positions.literal_keys),
        "engine": (positions.query, positions.keys),
    }[form]

    def show(times: tuple[int, ...]) -> str:
        return ", ".join(map(str, times)) or "-"

    rows = []
    for chunk in (1, 2, 3, 4, 5, 10_000):
        window = positions.window(chunk)
        first = () if chunk == 1 else keys(chunk, 1)
        previous = tuple(t for other in sorted(window.rolling) if other != chunk for t in keys(chunk, other))
        cells = [show(keys(chunk, 0)), show(first), show(previous), show(query(chunk))]
        rows.append(f"| {chunk:,} | {positions.shift(chunk):,} | {' | '.join(cells)} |")
    assert "\n".join(rows) in (DOCS / "how-it-works" / "context.md").read_text(), "\n".join(["expected:", *rows])


# the example ------------------------------------------------------------------------------------------


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_live_example(
    make_model: Callable[..., AvatarModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model().save(tmp_path / "model")
    arguments = ["--fast", "--seconds", "1", "--model", str(tmp_path / "model"), "-o", str(tmp_path / "live.mp4")]
    load(ROOT / "examples" / "live_loop.py").main(arguments)
    assert (tmp_path / "live.mp4").exists()
    assert "25 frames" in capsys.readouterr().out
