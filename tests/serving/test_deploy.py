"""What `deploy/` starts exists: files, services and options of the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from streamavatar.cli import app

yaml = pytest.importorskip("yaml", reason="reading the compose file needs pyyaml")
DEPLOY = Path(__file__).parents[2] / "deploy"
VARIABLE = re.compile(r"\$\{(\w+)")


@pytest.fixture
def services() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"])


def options(command: str) -> dict[str, typer.core.TyperOption]:
    group: Any = typer.main.get_command(app)
    return {option: parameter for parameter in group.commands[command].params for option in parameter.opts}


def test_the_server_is_started_with_options_that_exist(services: dict[str, Any]) -> None:
    name, *given = services["streamavatar"]["command"]
    known = options(name)
    assert {option.partition("=")[0] for option in given} <= set(known)
    variables = {parameter.envvar for parameter in known.values()}
    assert set(services["streamavatar"]["environment"]) <= variables


def test_secrets_come_from_the_environment_file(services: dict[str, Any]) -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    listed = re.findall(r"^(\w+)=", (DEPLOY / "example.env").read_text(), re.MULTILINE)
    assert set(VARIABLE.findall(text)) == set(listed)
    assert "use-auth-secret" in (DEPLOY / "coturn.conf").read_text().splitlines()


def test_files_exist(services: dict[str, Any]) -> None:
    build = services["streamavatar"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    mounts = [mount for service in services.values() for mount in service.get("volumes", []) if mount[0] == "."]
    assert len(mounts) == 2
    assert all((DEPLOY / mount.partition(":")[0]).is_file() for mount in mounts)
