"""How often and when a task is tried again: data that travels with the task or stands at its agent's class."""

from collections.abc import Iterable
from typing import Any

import msgspec

__all__ = ["RetryPolicy"]


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task whose `run()` raised is tried again until it had `attempts` in all; then it is a dead letter.

    The n-th retry comes after `delay` x `backoff` ** (n - 1) seconds, at most `max_delay`; with `jitter` a random part,
    up to half of that, is taken off. `on`: classes of exceptions, or their names, that are worth a retry; without any,
    all are. Deaths of workers are not counted here.
    """

    attempts: int = 3
    delay: float = 1.0
    backoff: float = 2.0
    max_delay: float = 60.0
    jitter: bool = True
    on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        on: Iterable[Any] = (self.on,) if isinstance(self.on, str | type) else self.on
        names = tuple(word.__name__ if isinstance(word, type) else str(word) for word in on)
        msgspec.structs.force_setattr(self, "on", names)
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise ValueError(f"RetryPolicy: attempts is {self.attempts!r}: it must be a whole number of at least 1")
        for name, least in (("delay", 0), ("backoff", 1), ("max_delay", 0)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not least <= value <= 1e9:
                raise ValueError(f"RetryPolicy: {name} is {value!r}: it must be a number of at least {least}")
