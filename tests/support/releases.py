"""Releases side by side: copies of the product whose version is another, put before the one that is installed."""

import re
import shutil
from pathlib import Path

__all__ = ["make_release"]

ROOT = Path(__file__).resolve().parents[2]


def make_release(folder: Path, release: str, **numbers: int) -> Path:
    """Copy both packages into a folder for PYTHONPATH, as this release; `SCHEMA_VERSION=2` and the like change too."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "agentpool", folder / "agentpool", ignore=ignore)
    shutil.copytree(ROOT / "workers" / "agentpool_worker", folder / "agentpool_worker", ignore=ignore)
    version = folder / "agentpool" / "version.py"
    text = re.sub(r"(?m)^__version__ = .*$", f'__version__ = "{release}"', version.read_text())
    for name, number in numbers.items():
        text, count = re.subn(rf"(?m)^{name} = .*$", f"{name} = {number}", text)
        assert count == 1
    version.write_text(text)
    return folder
