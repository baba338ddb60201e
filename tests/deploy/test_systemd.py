"""The unit as systemd reads it (`make check-deploy`). A live systemd is not needed, its tools are."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.deploy

DEPLOY = Path(__file__).parents[2] / "deploy"

EXPOSURE_MAX = 3.0
"""`systemd-analyze security` goes from 0 (closed) to 10 (open); a unit without hardening has 9.6."""


def analyze(*arguments: str) -> "subprocess.CompletedProcess[str]":
    tool = shutil.which("systemd-analyze")
    assert tool, "systemd-analyze is not installed, and this check needs it: apt-get install systemd"
    return subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """A copy of the unit, with the paths of this environment."""
    (tmp_path / "venv").symlink_to(sys.prefix)
    (tmp_path / "sweep-workers.sh").symlink_to(DEPLOY / "sweep-workers.sh")
    path = tmp_path / "agentpool-master.service"
    path.write_text((DEPLOY / path.name).read_text().replace("/opt/agentpool", str(tmp_path)))
    return path


def complaints(unit: Path) -> list[str]:
    """What verify says of this unit; the machine's other units may have faults of their own."""
    done = analyze("verify", "--man=no", str(unit))
    return [line for line in (done.stdout + done.stderr).splitlines() if unit.name in line]


def test_verify_finds_nothing(unit: Path) -> None:
    assert complaints(unit) == []


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("/venv/bin/agentpool-master", "/venv/bin/agentpool-maestro", "not executable|No such file"),
        ("KillMode=process", "KillMode=procces", "(?i)kill ?mode"),
        ("ProtectProc=", "ProtectProcs=", "Unknown key"),
        ("@system-service", "@sytem-service", "(?i)system call"),
    ],
)
def test_verify_would_notice(unit: Path, before: str, after: str, complaint: str) -> None:
    unit.write_text(unit.read_text().replace(before, after))
    assert re.search(complaint, "\n".join(complaints(unit)))


def test_exposure_is_low(unit: Path) -> None:
    done = analyze("security", "--offline=true", "--no-pager", str(unit))
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert match, done.stdout + done.stderr
    assert float(match[1]) <= EXPOSURE_MAX
