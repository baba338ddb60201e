"""One run: start everything, harm it by a schedule while it is used, let it heal, and check what became of all.

`python -m chaos.run --minutes 10 --seed 1`; the exit status is 1 when anything did not hold.
"""

import argparse
import asyncio
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import uvloop
from chaos.aftermath import excuse, is_alone, longest_gap, measure
from chaos.checks import Record, Violation, check_all
from chaos.cluster import LIMITS, POOL, Cluster
from chaos.faults import Done, Faults
from chaos.history import History
from chaos.leavings import find_leavings
from chaos.report import Summary, render
from chaos.schedule import SERVER_KINDS, Fault, Kind, Timing, make_schedule
from chaos.users import Users
from chaos.watching import Watch

from agentpool.client import Client, connect
from agentpool.clock import boottime
from agentpool.doctor import examine
from agentpool.errors import AgentPoolError
from agentpool.store import Store
from agentpool.version import __version__

__all__ = ["Run"]

HOSTS = 3
CLIENTS = 3
WARM_UP_S = 3.0
SETTLE_S = 90.0
GAP_AFTER_S = 1.5
RETURN_S = 15.0
FREEZE_AFTER_S = 10.0


class Run:
    """One run in a folder; `faults` are carried out at their times."""

    def __init__(self, folder: Path, seed: int, faults: list[Fault], timing: Timing, *, rate: float = 25) -> None:
        self.seed, self._plan, self._timing, self._rate = seed, faults, timing, rate
        self._cluster = Cluster(folder, hosts=HOSTS, seed=seed, timing=timing)
        self._history = History()
        self._faults = Faults(self._cluster)
        self._watch: Watch
        self._users: Users
        self._returns: list[float] = []
        self._found: list[Violation] = []
        self.violations: list[Violation] = []

    async def carry_out(self, *, progress: bool = False) -> Summary:
        """Do everything; returns what the report tells."""
        began = time.monotonic()
        try:
            await self._cluster.open()
            async with self._clients() as clients, self._store() as store:
                self._watch = Watch(self._cluster, store, clients[-1], self._history)
                self._users = Users(self._history, clients[:-1], self.seed, rate=self._rate)
                self._watch.start()
                self._users.start()
                await asyncio.sleep(WARM_UP_S)
                await self._harm(progress=progress)
                await self._cluster.heal()
                await self._users.stop()
                await self._watch.stop_probing()
                await self._settle(store, progress=progress)
                await self._watch.stop()
                record = await self._record()
                with contextlib.suppress(AgentPoolError):
                    await self._users.end_agents()
                await self._end(record, store)
                self._write(record)
                dropped = await self._cluster.doors.dropped()
            return self._summary(record, (time.monotonic() - began) / 60, dropped)
        finally:
            await self._cluster.close()

    @asynccontextmanager
    async def _clients(self) -> AsyncIterator[list[Client]]:
        async with contextlib.AsyncExitStack() as stack:
            yield [await stack.enter_async_context(connect(self._cluster.clients_url)) for _ in range(CLIENTS + 1)]

    @asynccontextmanager
    async def _store(self) -> AsyncIterator[Store]:
        store = Store.open(self._cluster.server.url, command_timeout=2.0)
        try:
            yield store
        finally:
            await store.close()

    # -- harming ------------------------------------------------------------------------------------------------

    async def _harm(self, *, progress: bool) -> None:
        began, under_way = boottime(), list[asyncio.Task[None]]()
        for fault in self._plan:
            await asyncio.sleep(max(0.0, began + fault.at - boottime()))
            if fault.kind is Kind.SERVER_FREEZE:
                await asyncio.gather(*under_way)
            under_way.append(asyncio.create_task(self._carry_out(fault), name=f"fault {fault.number}"))
            if progress:
                _say(
                    f"{boottime() - began:7.1f} s  {fault.number + 1}/{len(self._plan)} {fault.kind} "
                    f"({fault.seconds:.1f} s)  operations {len(self._history.operations)}"
                )
                for violation in self._watch.standing.violations.values():
                    _say(f"          doctor: {violation}")
        await asyncio.gather(*under_way)
        if progress:
            _say(f"{boottime() - began:7.1f} s  the end")

    async def _carry_out(self, fault: Fault) -> None:
        done = Done(fault, boottime())
        await self._faults.carry_out(fault, done)
        if fault.kind in SERVER_KINDS and not done.skipped:
            await self._measure_return(done)

    async def _measure_return(self, done: Done) -> None:
        """Wait until every worker has beaten and a leader had its turn since the server's return."""
        back_ms = time.time_ns() // 1_000_000
        cluster, keys = self._cluster, self._cluster.keys
        while boottime() < done.ended + RETURN_S:
            beats = await cluster.ask("ZRANGE", keys.workers(POOL), 0, -1, "WITHSCORES")
            tick = await cluster.ask("HGET", keys.pool(POOL), "tick")
            if beats and tick and min(float(at) for _, at in beats) >= back_ms and int(tick) >= back_ms:
                done.recovered["registered"] = boottime() - done.ended
                return
            await asyncio.sleep(0.02)
        done.recovered["registered"] = RETURN_S

    # -- the end ------------------------------------------------------------------------------------------------

    async def _settle(self, store: Store, *, progress: bool) -> None:
        """Wait until all that was accepted has ended, and nothing is wrong any more."""
        if progress:
            _say("settling")
        until, faults = boottime() + SETTLE_S, ["not examined"]
        while boottime() < until:
            await asyncio.sleep(1.0)
            await self._watch.look()
            with contextlib.suppress(AgentPoolError):
                faults = [str(fault) for fault in await examine(store)]
                if not faults and not self._watch.wanted() and not await self._unfinished():
                    return
                if progress:
                    _say(f"settling: {len(faults)} suspicions, outcomes missing: {sorted(self._watch.wanted())[:5]}")
        self._found += [Violation("the doctor finds nothing in the end", "", fault) for fault in faults]

    async def _unfinished(self) -> frozenset[str]:
        prefix, found = self._cluster.keys.task(f"{POOL}/"), set()
        ids = [key async for key in self._cluster.redis.scan_iter(match=f"{prefix}*", count=1000)]
        for start in range(0, len(ids), 500):
            page = ids[start : start + 500]
            for id, text in zip(page, await self._cluster.redis.mget(page), strict=True):
                if text and not text.startswith("{"):
                    found.add(id.removeprefix(self._cluster.keys.task("")))
        return frozenset(found)

    async def _record(self) -> Record:
        watch, prefix = self._watch, self._cluster.keys.agent("")
        await watch.reread_outcomes()
        alive = [key async for key in self._cluster.redis.scan_iter(match=f"{prefix}*", count=1000)]
        dones = self._faults.done
        return Record(
            operations=self._history.operations,
            effects=watch.effects,
            outcomes=watch.outcomes,
            changed=watch.changed,
            unfinished=await self._unfinished(),
            alive=frozenset(key.removeprefix(prefix) for key in alive),
            ended=watch.ended,
            losses=[
                msgspec.structs.replace(
                    loss, excused=excuse(loss, dones, self._timing, was_ready=loss.worker in watch.ready)
                )
                for loss in watch.losses.values()
            ],
            fences=watch.fences,
            limits=LIMITS,
        )

    async def _end(self, record: Record, store: Store) -> None:
        for agent in record.alive:
            with contextlib.suppress(AgentPoolError):
                await store.agents.terminate(agent)
        for name, status in (await self._cluster.stop()).items():
            if status:
                self._found.append(Violation("masters stop cleanly", name, f"exit status {status}"))
        self._found += [Violation("nothing is left behind", *each) for each in await find_leavings(self._cluster)]
        self._found += [
            Violation("the doctor finds nothing that stands", fault.subject, f"{fault.invariant}: {fault.detail}")
            for fault in self._watch.standing.violations.values()
        ]

    def _write(self, record: Record) -> None:
        """Keep what happened beside the logs, to look into what did not hold."""
        known = {"faults": self._faults.done, "operations": record.operations, "outcomes": record.outcomes}
        more = {"losses": record.losses, "ended": record.ended, "leaders": self._watch.leaders}
        (self._cluster.folder / "record.json").write_bytes(msgspec.json.encode({**known, **more}))

    def _summary(self, record: Record, minutes: float, dropped: int) -> Summary:
        watch, dones = self._watch, self._faults.done
        self.violations = [*check_all(record), *self._found]
        for done in dones:
            if not done.skipped and is_alone(done, dones):
                done.recovered["gap"] = longest_gap(done, watch.probes, GAP_AFTER_S)
        runs = watch.effects.runs.values()
        return Summary(
            date=time.strftime("%Y-%m-%d"),
            seed=self.seed,
            minutes=round(minutes, 1),
            release=__version__,
            server=str(self._cluster.server.binary),
            hosts=HOSTS,
            faults=dones,
            operations=self._history.operations,
            outcomes=list(record.outcomes.values()),
            runs=len(runs),
            reruns=len(runs) - len(watch.effects.by_task),
            dropped=dropped,
            examinations=watch.examinations,
            suspicions=watch.standing.seen,
            times={
                **measure(dones, watch.effects, watch.leaders),
                "a small task is answered, in all the run": [probe.answered - probe.asked for probe in watch.probes],
            },
            losses=Counter(loss.excused or "unexplained" for loss in record.losses),
            frozen=[
                sum(done.began <= loss.at <= done.ended + FREEZE_AFTER_S for loss in record.losses)
                for done in dones
                if done.fault.kind is Kind.SERVER_FREEZE
            ],
            violations=self.violations,
        )


async def _until_told_to_stop(run: Run) -> Summary:
    """Carry a run out; a signal ends it early, and what it started with it."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await run.carry_out(progress=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--report", type=Path, default=Path("build/chaos-report.md"))
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and effects")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    timing = Timing()
    faults = make_schedule(seed, options.minutes * 60, timing)
    _say(f"seed {seed}, {len(faults)} faults, logs and effects in {folder}")
    run = Run(folder, seed, faults, timing)
    summary = uvloop.run(_until_told_to_stop(run))
    report = render(summary)
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(report)
    print(report)
    if run.violations or options.keep:
        _say(f"kept: {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if run.violations else 0


if __name__ == "__main__":
    sys.exit(main())
