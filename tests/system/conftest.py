"""A master factory: whatever a test starts is ended."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.master import Master


@pytest.fixture
def new_master(tmp_path: Path) -> Iterator[Callable[..., Master]]:
    made: list[Master] = []

    def make(pools: dict[str, dict[str, Any]] | None = None, **top: Any) -> Master:
        folder = tmp_path / f"m{len(made)}"
        folder.mkdir()
        made.append(Master(folder, pools, **top))
        return made[-1]

    yield make
    try:
        for master in made:
            if master.is_running:
                asyncio.run(master.examine())
    finally:
        for master in made:
            master.sweep()
