"""What agentpool alone is asked: each measurement with its bounds."""

import sys
import time
from collections.abc import Callable

import msgspec

from agentpool.errors import AgentPoolError
from bench.figures import Figure
from bench.running import BenchError
from bench.tasks import claiming, killing, memory, poisson, syncing
from bench.tasks.measuring import INPUT_BYTES
from bench.tasks.sizes import Sizes

__all__ = ["ALONE", "Asked"]


class Asked(msgspec.Struct, frozen=True):
    """A figure that is to be measured; `what` may name sizes. The function returns the values and a note."""

    function: Callable[[Sizes], tuple[tuple[float, ...], str]]
    what: str
    unit: str
    must: tuple[float, ...]
    aim: tuple[float, ...]
    at_least: bool = False

    def figure(self, sizes: Sizes) -> Figure:
        """Measure it; what goes wrong is told in its line, which then has no value."""
        began = time.monotonic()
        try:
            values, note = self.function(sizes)
        except (AgentPoolError, BenchError) as error:
            print(error, file=sys.stderr)
            values, note = (), f"could not be measured: {str(error).splitlines()[0][:100]}"
        what = self.what.format(sizes=sizes)
        print(f"{what}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        return Figure(
            what=what,
            unit=self.unit,
            values=values,
            must=self.must,
            aim=self.aim,
            floor=note,
            at_least=self.at_least,
        )


ALONE = {
    "poisson": Asked(
        poisson.measure,
        "poisson, {sizes.poisson_rate:,.0f} /s, intended moment → agent runs: mean / p99",
        "ms",
        must=(5, 10),
        aim=(2, 5),
    ),
    "kill": Asked(
        killing.measure,
        "kill -9 of a worker with {sizes.slots_killed} tasks → all run on another with room: median",
        "ms",
        must=(60,),
        aim=(20,),
    ),
    "aof": Asked(
        syncing.measure,
        "aof, rate in bulk with appendfsync everysec, of the rate without a file",
        "%",
        must=(80,),
        aim=(90,),
        at_least=True,
    ),
    "claim": Asked(
        claiming.measure,
        "claim, 1 tenant and {sizes.few_tasks:,} queued → {sizes.many_tenants:,} and {sizes.many_tasks:,}",
        "×",
        must=(1.5,),
        aim=(1.2,),
    ),
    "memory": Asked(
        memory.measure,
        f"memory of a queued task with {INPUT_BYTES} bytes of input",
        "bytes",
        must=(650,),
        aim=(500,),
    ),
}
