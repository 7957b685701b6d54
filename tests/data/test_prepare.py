"""Worker processes that make data."""

from __future__ import annotations

import os

import pytest

from streamavatar.data.prepare import in_processes
from streamavatar.errors import UserError


def test_a_killed_worker_is_told_as_such() -> None:
    with pytest.raises(UserError, match=r"was killed.*run the same command again"):
        in_processes(os._exit, [(9,)], 1, lambda done: None)
