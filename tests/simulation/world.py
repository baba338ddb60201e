"""A world in which everything that may go wrong does, by a seed: messages, processes, clocks and the server's memory.

Actors are generators. They yield `Call` (a script, answered or `Away` thrown into them at the deadline) and `Sleep`.
All chance comes from one `random.Random(seed)` and all time from one queue of events, so a seed replays exactly.

A call is sent again while no answer came, as `Connection.call` does it; requests and answers get lost, are late, and
come twice, also after a later one. Killing a process drops its generators wherever they wait, which is between any two
calls; pausing it keeps what comes for later.
"""

import heapq
import random
from collections.abc import Callable, Generator
from typing import Any

import msgspec
from simulation.server import Command, Server

__all__ = ["Actor", "Away", "Bell", "Call", "Faults", "Process", "Sleep", "Wait", "World"]

START_MS = 1_700_000_000_000
RETRY_MS = 150
DEADLINE_MS = 2000

Actor = Generator["Call | Sleep | Wait", Any, None]


class Away(Exception):
    """No answer within the deadline."""


class Call:
    """Run this script with these arguments; `deadline_ms` is how long to repeat it."""

    __slots__ = ("arguments", "deadline_ms", "name")

    def __init__(self, name: str, *arguments: Any, deadline_ms: int = DEADLINE_MS) -> None:
        self.name, self.arguments, self.deadline_ms = name, arguments, deadline_ms


class Sleep:
    """Go on after so many ms."""

    __slots__ = ("ms",)

    def __init__(self, ms: float) -> None:
        self.ms = ms


class Faults(msgspec.Struct, kw_only=True):
    """Chances, each 0 to 1, of what happens to one message, and how often the rest happens."""

    lost: float = 0.0
    twice: float = 0.0
    late: float = 0.0
    late_ms: int = 3000
    every_ms: float = 0.0
    """Mean time between the faults below; 0 for none."""
    kinds: tuple[str, ...] = ()


class Wait:
    """Go on when the bell rings, or after so many ms."""

    __slots__ = ("bell", "ms")

    def __init__(self, bell: "Bell", ms: float) -> None:
        self.bell, self.ms = bell, ms


class Bell:
    """Wakes the one actor that waits for it; one that rang before is heard at once."""

    def __init__(self) -> None:
        self.rang = False
        self.wake: Callable[[], None] | None = None

    def ring(self) -> None:
        if self.wake:
            wake, self.wake = self.wake, None
            wake()
        else:
            self.rang = True


class Process:
    """Actors that live, stop and die together. `host` is where it runs."""

    def __init__(self, world: "World", name: str, host: str) -> None:
        self.world, self.name, self.host = world, name, host
        self.alive, self.paused_until = True, 0.0
        self.on_end: list[Callable[[], None]] = []

    @property
    def paused(self) -> bool:
        return self.world.time < self.paused_until

    def run(self, actor: Actor) -> None:
        """Start an actor."""
        self.world.after(0, lambda: self.world.resume(self, actor, None))

    def end(self, why: str) -> None:
        """It dies, with all that it was about to do."""
        if self.alive:
            self.alive = False
            self.world.note(f"{self.name} ends: {why}")
            for call in self.on_end:
                call()

    def pause(self, ms: float) -> None:
        self.paused_until = max(self.paused_until, self.world.time + ms)


class World:
    """Time, the server, the network, and what was noted. `time` is true time in ms from 0."""

    def __init__(self, seed: int, faults: Faults, **settings: int) -> None:
        self.seed, self.random, self.faults = seed, random.Random(seed), faults
        self.server = Server(START_MS, **settings)
        self.time = 0.0
        self.skew = START_MS
        """The server's clock less true time; it jumps."""
        self.noted: list[str] = []
        self.after_call: list[Callable[[str, tuple[Any, ...], Any], None]] = []
        """What is looked at after each script: its name, its arguments and its answer."""
        self.on_publish: Callable[[Command], None] = lambda message: None
        self.on_hint: Callable[[str], None] = lambda hint: None
        self.away_since = self.away_until = self.slow_until = 0.0
        self.cut_off: dict[str, float] = {}
        """Hosts without a way to the server, and until when."""
        self.saved = b""
        self.calls = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def note(self, text: str) -> None:
        self.noted.append(f"{self.time:9.1f} {text}")

    def go_away(self, ms: float) -> None:
        """The server does not answer for so long."""
        if self.time >= self.away_until:
            self.away_since = self.time
        self.away_until = max(self.away_until, self.time + ms)

    # -- time ---------------------------------------------------------------------------------------------------

    def after(self, ms: float, do: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.time + ms, self._count, do))

    def run_until(self, time: float) -> None:
        """Let everything happen that is due until then."""
        while self._queue and self._queue[0][0] <= time:
            self.time, _, do = heapq.heappop(self._queue)
            do()
        self.time = max(self.time, time)

    def resume(self, process: Process, actor: Actor, value: Any) -> None:
        """Give an actor what it waits for, unless its process is dead, or stopped for now."""
        if not process.alive:
            return
        if process.paused:
            self.after(process.paused_until - self.time, lambda: self.resume(process, actor, value))
            return
        try:
            wanted = actor.throw(value) if isinstance(value, Away) else actor.send(value)
        except StopIteration:
            return
        if isinstance(wanted, Sleep):
            self.after(wanted.ms, lambda: self.resume(process, actor, None))
        elif isinstance(wanted, Wait):
            self._wait(process, actor, wanted)
        else:
            self._send(process, actor, wanted, self.time + wanted.deadline_ms, [])

    def _wait(self, process: Process, actor: Actor, wanted: Wait) -> None:
        bell, waiting = wanted.bell, [True]

        def go_on() -> None:
            if waiting:
                waiting.clear()
                bell.wake = None
                self.resume(process, actor, None)

        if bell.rang:
            bell.rang = False
            self.after(0, go_on)
        else:
            bell.wake = lambda: self.after(0, go_on)
            self.after(wanted.ms, go_on)

    # -- messages -----------------------------------------------------------------------------------------------

    def travel_ms(self) -> float:
        late = 0.7 if self.time < self.slow_until else self.faults.late
        if late and self.random.random() < late:
            return self.random.random() * self.faults.late_ms
        return 0.05 + self.random.random()

    def is_lost(self) -> bool:
        return self.faults.lost > 0 and self.random.random() < self.faults.lost

    def _send(self, process: Process, actor: Actor, call: Call, deadline: float, answered: list[bool]) -> None:
        """Try once, and see to it that it is tried again."""
        if answered or not process.alive:
            return

        def answer(value: Any) -> None:
            if not answered and process.alive and not self.is_cut(process.host):
                answered.append(True)
                self.resume(process, actor, value)

        def serve() -> None:
            if self.time < self.away_until or self.is_cut(process.host):
                return
            value = self.carry_out(call)
            if not self.is_lost():
                self.after(self.travel_ms(), lambda: answer(value))

        if not self.is_lost():
            self.after(self.travel_ms(), serve)
        if self.faults.twice and self.random.random() < self.faults.twice:
            self.after(self.travel_ms(), serve)
        self.after(RETRY_MS, lambda: self._send_again(process, actor, call, deadline, answered))

    def _send_again(self, process: Process, actor: Actor, call: Call, deadline: float, answered: list[bool]) -> None:
        if answered:
            return
        if self.time < deadline:
            self._send(process, actor, call, deadline, answered)
        else:
            answered.append(True)
            self.resume(process, actor, Away(call.name))

    def is_cut(self, host: str) -> bool:
        return self.time < self.cut_off.get(host, 0)

    def carry_out(self, call: Call) -> Any:
        """Run a script now."""
        self.calls += 1
        server = self.server
        server.now = int(self.skew + self.time)
        answer = getattr(server, call.name)(*call.arguments)
        for look in self.after_call:
            look(call.name, call.arguments, answer)
        messages, server.published = server.published, []
        for message in messages:
            self._deliver(lambda message=message: self.on_publish(message))
        hints, server.hints = server.hints, []
        for hint in hints:
            self._deliver(lambda hint=hint: self.on_hint(hint))
        return answer

    def _deliver(self, hand_over: Callable[[], None]) -> None:
        if not self.is_lost():
            self.after(self.travel_ms(), hand_over)
        if self.faults.twice and self.random.random() < self.faults.twice:
            self.after(self.travel_ms(), hand_over)
