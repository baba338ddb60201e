"""What agents did, as they noted it themselves in files: one for each process, so that a kill -9 loses no line.

Times are those of CLOCK_BOOTTIME in s, equal for all processes. A life is one agent from its start to its stop, a run
one call of `run()`. What never said that it ended was killed, or goes on.
"""

from pathlib import Path
from typing import Literal

import msgspec

__all__ = ["QUIET_S", "TICK_S", "Effect", "Effects", "Life", "Run"]

TICK_S = 0.05
"""How often an agent that must not run twice notes that it runs."""
QUIET_S = 0.25
"""Who noted nothing for so long was stopped, or waited for the CPU: it did not run meanwhile."""


class Effect(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line. `of` names the life or run that it is about; only the first line of it says more."""

    what: Literal["start", "begin", "tick", "end"]
    of: str
    at: float
    how: str = ""
    """Of an end: returned, raised, cancelled."""
    agent: str = ""
    """Id of a pinned agent."""
    agent_type: str = ""
    tenant: str = ""
    fence: int = 0
    worker: str = ""
    pid: int = 0
    task: str = ""
    attempt: int = 0
    op: int = -1
    """Number of the operation that asked for it."""


class Life(msgspec.Struct):
    """One agent's, or one run's, existence: when it ran, as spans without a pause."""

    first: Effect
    spans: list[list[float]]
    how: str = ""
    ended: float | None = None

    @property
    def began(self) -> float:
        """When it began."""
        return self.first.at

    @property
    def last(self) -> float:
        """When it was last seen running."""
        return self.spans[-1][1]

    def note(self, effect: Effect) -> None:
        """Take in another line about it."""
        if effect.at - self.last > QUIET_S and effect.what == "tick":
            self.spans.append([effect.at, effect.at])
        else:
            self.spans[-1][1] = effect.at
        if effect.what == "end":
            self.how, self.ended = effect.how, effect.at


Run = Life


class Effects:
    """Everything that was noted so far."""

    def __init__(self) -> None:
        self.lives: dict[str, Life] = {}
        """Of agents, by name."""
        self.runs: dict[str, Run] = {}
        self.by_task: dict[str, list[Run]] = {}
        self.by_op: dict[int, list[Run]] = {}

    def take(self, effect: Effect) -> None:
        """Note one line; they come in the order in which one process wrote them."""
        match effect.what:
            case "start":
                self.lives[effect.of] = Life(effect, [[effect.at, effect.at]])
            case "begin":
                run = self.runs[effect.of] = Life(effect, [[effect.at, effect.at]])
                self.by_task.setdefault(effect.task, []).append(run)
                self.by_op.setdefault(effect.op, []).append(run)
            case _:
                if life := self.runs.get(effect.of) or self.lives.get(effect.of):
                    life.note(effect)


class Reader:
    """Reads what was added to the files of a folder since it last looked."""

    def __init__(self, folder: Path, effects: Effects) -> None:
        self._folder, self._effects = folder, effects
        self._read: dict[Path, int] = {}
        self._decoder = msgspec.json.Decoder(Effect)

    def read(self) -> None:
        """Take in what is new."""
        for path in self._folder.glob("*.jsonl"):
            start = self._read.get(path, 0)
            if path.stat().st_size <= start:
                continue
            with path.open("rb") as file:
                file.seek(start)
                data = file.read()
            whole = data.rfind(b"\n") + 1
            self._read[path] = start + whole
            for line in data[:whole].splitlines():
                self._effects.take(self._decoder.decode(line))
