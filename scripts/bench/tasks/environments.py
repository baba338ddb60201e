"""The peers, and the virtual environment that each of them has for itself."""

import subprocess
import sys
from pathlib import Path

import msgspec

from bench.running import SCRIPTS

__all__ = ["PEERS", "Peer", "prepare"]

ROOT = SCRIPTS.parent / ".venv-bench"
INSTALL_S = 900.0


class Peer(msgspec.Struct, frozen=True):
    """How a peer is called, what is installed for it, and the settings that make it fast, in a few words."""

    title: str
    requirements: tuple[str, ...]
    settings: str


PEERS = {
    "saq": Peer(
        "SAQ",
        ("saq[redis]", "hiredis", "uvloop", "orjson", "typing_extensions"),
        "2 × 10 coroutines, uvloop, orjson, results by MGET",
    ),
    "taskiq": Peer(
        "taskiq",
        ("taskiq", "taskiq-redis", "hiredis", "uvloop", "orjson"),
        "2 × 10 coroutines, uvloop, orjson, streams, acknowledged when saved, results polled",
    ),
    "arq": Peer("arq", ("arq", "hiredis", "uvloop"), "2 × 10 coroutines, uvloop, polled each 5 ms, results polled"),
    "dramatiq": Peer("Dramatiq", ("dramatiq[redis]", "hiredis"), "2 × 10 threads, acknowledged, groups"),
    "huey": Peer("Huey", ("huey", "redis", "hiredis"), "2 × 10 threads, results notified, at most once"),
    "rq": Peer("RQ", ("rq", "hiredis"), "2 workers that do not fork and have no slots, jobs sent in many"),
    "celery": Peer("Celery", ("celery[redis]", "hiredis"), "2 × 10 threads, acknowledged late, groups"),
    "ray": Peer("Ray", ("ray",), "2 actors × 10 threads, over its own transport: no Redis, nothing on disk"),
}


def prepare(name: str) -> tuple[Path | None, str]:
    """Return the Python of a peer's environment, which is made at the first use, or None and why there is none."""
    folder, requirements = ROOT / name, "\n".join(PEERS[name].requirements)
    python, done = folder / "bin" / "python", folder / ".requirements"
    if not (done.exists() and done.read_text() == requirements):
        print(f"{name}: installing into {folder}", file=sys.stderr)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
        try:
            _run([sys.executable, "-m", "venv", "--clear", str(folder)])
            _run([*pip, *PEERS[name].requirements])
        except (subprocess.SubprocessError, OSError) as error:
            return None, f"not installed: {_why(error)}"
        done.write_text(requirements)
    return python, ""


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=INSTALL_S)


def _why(error: Exception) -> str:
    """Return the line of an installer's output that says most."""
    lines = [line for line in (getattr(error, "stderr", "") or str(error)).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or [type(error).__name__])[-1].removeprefix("ERROR:").strip()[:120]
