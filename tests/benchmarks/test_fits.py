"""The page for GPUs shows the memory that the shapes ask for today."""

from __future__ import annotations

from pathlib import Path

import pytest

from fits import rows

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"


@pytest.mark.slow
def test_the_page_has_the_table_that_the_script_prints() -> None:
    pytest.importorskip("transformers")
    assert "\n".join(rows()) in PAGE.read_text(encoding="utf-8")
