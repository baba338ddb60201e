"""How a process ended, as a type. The reason is kept on every agent and task that it held."""

import os
import signal

import msgspec

from agentpool.protocol.zygote import Exit

__all__ = ["Death", "Exited", "Killed", "Silent", "Vanished", "by_itself", "from_wait_status", "was_stopped"]


class Exited(msgspec.Struct, frozen=True):
    """It ended by itself."""

    code: int

    def __str__(self) -> str:
        known = {exit.value: exit.name.lower().replace("_", " ") for exit in Exit}
        return f"exited with {self.code}" + (f" ({known[self.code]})" if self.code in known else "")


class Killed(msgspec.Struct, frozen=True):
    """A signal ended it; `why` says that it was us, if it was."""

    signal: int
    why: str = ""

    def __str__(self) -> str:
        try:
            name = signal.Signals(self.signal).name
        except ValueError:
            name = f"signal {self.signal}"
        return f"killed by {name}" + (f": {self.why}" if self.why else "")


class Silent(msgspec.Struct, frozen=True):
    """Its beats stopped; whether it lives is not known here."""

    seconds: float

    def __str__(self) -> str:
        return f"no heartbeat for {self.seconds:g} s"


class Vanished(msgspec.Struct, frozen=True):
    """It is gone; an adopted process' status cannot be known. `why` says what is known."""

    why: str = ""

    def __str__(self) -> str:
        return f"gone: {self.why}" if self.why else "gone, status unknown"


Death = Exited | Killed | Silent | Vanished


def from_wait_status(status: int, why: str = "") -> Exited | Killed:
    """Read a status of `os.waitpid`."""
    code = os.waitstatus_to_exitcode(status)
    return Exited(code) if code >= 0 else Killed(-code, why)


def by_itself(death: Death) -> bool:
    """Tell whether what ran in the process ended it, as far as can be known."""
    match death:
        case Exited(code=code):
            return code != Exit.BLOCKED
        case Killed(signal=number):
            return number not in (signal.SIGKILL, signal.SIGTERM)
        case _:
            return False


def was_stopped(death: Death) -> bool:
    """Tell whether its master or its own heartbeat ended the process, because it was blocked or frozen."""
    return death == Exited(Exit.BLOCKED) or (isinstance(death, Killed) and bool(death.why))
