"""docs/architecture.md shows the states, keys and layers that the code has, and its links lead somewhere."""

import re
import tomllib
from pathlib import Path

import pytest
from docs.drawn import diagram, key_rows

from agentpool.protocol.states import AGENT_MOVES, TASK_MOVES, WORKER_MOVES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


def test_the_diagrams_are_those_of_the_tables() -> None:
    shown = re.findall(r"```mermaid\n(.*?)\n```", PAGE, re.DOTALL)
    assert shown == [diagram(WORKER_MOVES), diagram(AGENT_MOVES), diagram(TASK_MOVES)]


def test_the_table_of_keys_is_complete() -> None:
    section = PAGE.partition("## Keys")[2].partition("\n## ")[0]
    assert re.findall(r"(?m)^\| `.*$", section) == key_rows()


def test_the_layers_are_those_that_are_checked() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    checked = {name for layer in contract["layers"] for name in re.findall(r"[\w.]+", layer)}
    section = PAGE.partition("## Layers")[2].partition("\n## ")[0]
    rows = " ".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    shown = set(re.findall(r"`([\w.]+)`", rows))
    assert shown <= checked
    # What may be imported, but holds nothing yet, need not be shown.
    assert {name for name in checked - shown if (ROOT / name.replace(".", "/")).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("note", sorted((ROOT / "docs" / "decisions").glob("*.md")), ids=lambda note: note.stem)
def test_decisions_are_short_and_have_their_parts(note: Path) -> None:
    text = note.read_text()
    assert len(text.splitlines()) <= 25
    assert [part for part in ("**Context.**", "**Decision.**", "**Consequences.**") if part not in text] == []
