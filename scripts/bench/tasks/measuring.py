"""What every system is asked to do, and how long it takes.

This runs in each system's own environment, so it needs nothing but the standard library, and uvloop where it is.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["CALLERS", "INPUT_BYTES", "SLOTS", "WORKERS", "AsyncSystem", "Plan", "System", "ThreadedSystem", "inputs"]

WORKERS, SLOTS = 2, 10
CALLERS = 100
"""Coroutines, or threads, that hand in tasks one by one."""
INPUT_BYTES = 200
"""Of a task's input as JSON: a text and its quotation marks."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is measured: tasks in bulk, tasks handed in one by one, and calls of the idle system."""

    bulk: int
    single: int
    idle: int
    settle_s: float
    """After the first answer: the other worker needs the same time to start."""
    warm: int = 200


def inputs(count: int) -> list[str]:
    """Return so many inputs, each different."""
    return [f"{number:08d}".ljust(INPUT_BYTES - 2, ".") for number in range(count)]


class System:
    """A system under test, whose task returns the length of its input.

    `bulk(inputs)` has all of them done in the way that suits it best; `submit(input)` returns a handle when a task is
    accepted, `results(handles)` waits for those of one caller among many, one `result(handle)` after the other unless
    there is a better way, and `call(input)` does one task while nothing else is under way. Results come in any order.
    All of these are coroutine functions or not, as the subclass says.
    """

    bulk: Callable[[Sequence[str]], Any]
    one_by_one: Callable[[Sequence[str]], Any]
    """Have all of them done, handed in one by one by many callers at the same time, which then collect the results."""
    time_calls: Callable[[int], Any]
    """Return the times in ms of so many calls, one after the other."""

    def open(self) -> Any:
        """Connect."""

    def close(self) -> Any:
        """Disconnect."""

    def measure(self, plan: Plan) -> dict[str, Any]:
        """Return `bulk` and `single` in tasks/s, and `idle`, the time of each call in ms."""
        with self._running() as run:
            run(self.open)
            try:
                run(self.time_calls, 1)
                time.sleep(plan.settle_s)
                for work in (self.bulk, self.one_by_one):
                    self._rate(run, work, plan.warm)
                run(self.time_calls, plan.warm // 10)
                return {
                    "bulk": self._rate(run, self.bulk, plan.bulk),
                    "single": self._rate(run, self.one_by_one, plan.single),
                    "idle": run(self.time_calls, plan.idle),
                }
            finally:
                run(self.close)

    @staticmethod
    def _rate(run: Callable[..., Any], work: Callable[[Sequence[str]], Any], count: int) -> float:
        given = inputs(count)
        began = time.perf_counter()
        results = run(work, given)
        took = time.perf_counter() - began
        if sorted(results) != [len(input) for input in given]:
            raise RuntimeError(f"{len(results)} results of {count} tasks, or not the ones of these")
        return count / took

    def _running(self) -> contextlib.AbstractContextManager[Callable[..., Any]]:
        """Give what calls one of the methods above."""
        raise NotImplementedError


class AsyncSystem(System):
    """A system that is used from one event loop."""

    async def bulk(self, inputs: Sequence[str]) -> list[int]:
        raise NotImplementedError

    async def submit(self, input: str) -> Any:
        raise NotImplementedError

    async def result(self, handle: Any) -> int:
        raise NotImplementedError

    async def results(self, handles: Sequence[Any]) -> list[int]:
        return [await self.result(handle) for handle in handles]

    async def call(self, input: str) -> int:
        return await self.result(await self.submit(input))

    async def open(self) -> None:
        """Connect."""

    async def close(self) -> None:
        """Disconnect."""

    async def one_by_one(self, inputs: Sequence[str]) -> list[int]:
        async def caller(part: Sequence[str]) -> list[int]:
            return await self.results([await self.submit(input) for input in part])

        parts = await asyncio.gather(*(caller(inputs[first::CALLERS]) for first in range(CALLERS)))
        return [result for part in parts for result in part]

    async def time_calls(self, count: int) -> list[float]:
        times = []
        for input in inputs(count):
            began = time.perf_counter()
            await self.call(input)
            times.append((time.perf_counter() - began) * 1000)
        return times

    @contextlib.contextmanager
    def _running(self) -> Any:
        try:
            from uvloop import new_event_loop
        except ImportError:
            new_event_loop = None
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            yield lambda method, *words: runner.run(method(*words))


class ThreadedSystem(System):
    """A system whose functions block, and are called from threads."""

    def bulk(self, inputs: Sequence[str]) -> list[int]:
        raise NotImplementedError

    def submit(self, input: str) -> Any:
        raise NotImplementedError

    def result(self, handle: Any) -> int:
        raise NotImplementedError

    def results(self, handles: Sequence[Any]) -> list[int]:
        return [self.result(handle) for handle in handles]

    def call(self, input: str) -> int:
        return self.result(self.submit(input))

    def one_by_one(self, inputs: Sequence[str]) -> list[int]:
        def caller(part: Sequence[str]) -> list[int]:
            return self.results([self.submit(input) for input in part])

        parts = self._threads.map(caller, [inputs[first::CALLERS] for first in range(CALLERS)])
        return [result for part in parts for result in part]

    def time_calls(self, count: int) -> list[float]:
        times = []
        for input in inputs(count):
            began = time.perf_counter()
            self.call(input)
            times.append((time.perf_counter() - began) * 1000)
        return times

    @contextlib.contextmanager
    def _running(self) -> Any:
        with ThreadPoolExecutor(CALLERS) as self._threads:
            yield lambda method, *words: method(*words)
