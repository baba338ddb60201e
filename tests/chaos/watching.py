"""Looking at a cluster while it is harmed: effects, outcomes, events, fences, leaders, probes, the doctor."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import msgspec
from chaos.aftermath import Probe
from chaos.cluster import POOL, Cluster
from chaos.effects import Effects, Reader
from chaos.history import Fence, History, Loss, Outcome
from chaos.users import proof_of

from agentpool.client import Client
from agentpool.clock import boottime
from agentpool.doctor import Violation as Fault
from agentpool.doctor import examine
from agentpool.errors import AgentPoolError
from agentpool.periodic import end_task
from agentpool.store import Store

__all__ = ["Standing", "Watch"]

EFFECTS_S = 0.25
LOOK_S = 1.0
OUTCOMES_S = 2.0
LEADER_S = 0.02
DOCTOR_S = 5.0
PROBE_S = 0.1
PROBES_MAX = 100
STANDS_S = {6: 30.0, 8: 30.0}
"""Invariants that hold again after some time; all others hold between any two scripts."""
STANDS_DEFAULT_S = 4.0


class Standing:
    """What is wrong counts when it stands: seen without a break for longer than its invariant may take."""

    def __init__(self) -> None:
        self.violations: dict[tuple[int, str], Fault] = {}
        self.seen = 0
        """Suspicions, those that passed too."""
        self._since: dict[tuple[int, str], float] = {}

    def note(self, now: float, faults: list[Fault]) -> None:
        """Take in what one examination found."""
        present = {(fault.invariant, fault.subject): fault for fault in faults}
        self.seen += len(present.keys() - self._since.keys())
        self._since = {key: self._since.get(key, now) for key in present}
        for key, since in self._since.items():
            if now - since >= STANDS_S.get(key[0], STANDS_DEFAULT_S):
                self.violations.setdefault(key, present[key])


class Watch:
    """Looks, from `start` to `stop`. Times are in s by CLOCK_BOOTTIME."""

    def __init__(self, cluster: Cluster, store: Store, client: Client, history: History) -> None:
        self._cluster, self._store, self._client, self._history = cluster, store, client, history
        self.effects = Effects()
        self._reader = Reader(cluster.effects_dir, self.effects)
        self.outcomes: dict[str, Outcome] = {}
        self.changed: dict[str, str] = {}
        self.losses: dict[str, Loss] = {}
        self.ended: dict[str, str] = {}
        self.fences: list[Fence] = []
        self.leaders: list[tuple[float, int]] = []
        self.probes: list[Probe] = []
        self.standing = Standing()
        self.examinations = 0
        self.hosts: dict[str, str] = {}
        """The host (name) of each worker."""
        self.ready: set[str] = set()
        """Workers that ever took their place."""
        self._event = "0-0"
        self._asked: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._probing: set[asyncio.Task[None]] = set()
        self._stopped = False

    def start(self) -> None:
        """Begin to look."""
        loops: list[tuple[Callable[[], Awaitable[None]], float]] = [
            (self._read_effects, EFFECTS_S),
            (self._read_events, LOOK_S),
            (self._read_fences, LOOK_S),
            (self._read_outcomes, OUTCOMES_S),
            (self._look_at_leader, LEADER_S),
            (self._examine, DOCTOR_S),
        ]
        self._tasks = [asyncio.create_task(self._repeat(verb, every), name=verb.__name__) for verb, every in loops]
        self._prober = asyncio.create_task(self._repeat(self._probe, PROBE_S), name="probes")

    async def stop_probing(self) -> None:
        """Hand in no more probes, and wait for those under way."""
        await end_task(self._prober)
        await asyncio.gather(*self._probing)

    async def stop(self) -> None:
        """Look no more."""
        self._stopped = True  # redis-py now and then loses a cancellation
        await asyncio.gather(*self._tasks)

    async def look(self) -> None:
        """Read what is new, now."""
        await self._read_effects()
        await self._read_events()
        await self._read_outcomes()

    def wanted(self) -> set[str]:
        """Return the tasks whose outcome is not known yet, of all that were accepted or ran."""
        return (self._history.named_tasks() | {task for task in self.effects.by_task if task}) - self.outcomes.keys()

    async def reread_outcomes(self) -> None:
        """Read again what is still kept of known outcomes: they never change."""
        await self._take_outcomes(list(self.outcomes))

    async def _read_effects(self) -> None:
        self._reader.read()

    # -- events and outcomes ------------------------------------------------------------------------------------

    async def _read_events(self) -> None:
        key = self._cluster.keys.events(POOL)
        rows = await self._cluster.ask("XRANGE", key, f"({self._event}", "+", "COUNT", 1000, default=[])
        offset = boottime() - time.time()
        for id, fields in rows:
            event, self._event = fields, id
            at, worker = int(event["at"]) / 1000 + offset, event["process_id"]
            if event["type"] == "worker.lost":
                self.losses[worker] = Loss(worker, at, event["detail"], self.hosts.get(worker, ""))
            elif event["type"] == "worker.ready":
                self.ready.add(worker)
            elif event["type"] in ("agent.terminated", "agent.failed"):
                self.ended[event["agent_id"]] = f"{event['type']}: {event['detail']}"

    async def _read_outcomes(self) -> None:
        await self._take_outcomes(list(self.wanted())[:500])

    async def _take_outcomes(self, ids: list[str]) -> None:
        for start in range(0, len(ids), 500):
            page = ids[start : start + 500]
            values = await self._cluster.ask("MGET", *(self._cluster.keys.task(id) for id in page), default=[])
            for id, text in zip(page, values, strict=False):
                if text and text.startswith("{"):
                    self._take_outcome(id, text)

    def _take_outcome(self, id: str, text: str) -> None:
        fields = msgspec.json.decode(text)
        error = fields.get("error") or {}
        outcome = Outcome(
            fields["status"],
            proof_of(fields.get("result")),
            fields.get("process_id", ""),
            f"{error.get('type', '')}: {error.get('message', '')}" if error else "",
            fields.get("attempts", 1),
        )
        known = self.outcomes.setdefault(id, outcome)
        if known != outcome:
            self.changed[id] = f"{known} became {outcome}"

    # -- numbers that grow --------------------------------------------------------------------------------------

    async def _read_fences(self) -> None:
        keys, now = self._cluster.keys, boottime()
        for field, number in zip(
            ("fence", "placement_fence"),
            await self._cluster.ask("HMGET", keys.pool(POOL), "fence", "placement_fence", default=[]),
            strict=False,
        ):
            if number:
                self.fences.append(Fence(f"{POOL}: {field}", int(number), now))
        for worker, record in (await self._cluster.workers()).items():
            host = self._cluster.host_of(record)
            self.hosts[worker] = host.name if host else ""
            for agent in await self._cluster.ask("SMEMBERS", keys.worker_agents(POOL, worker), default=[]):
                number = await self._cluster.ask("HGET", keys.agent(f"{POOL}/{agent}"), "incarnation")
                if number:
                    self.fences.append(Fence(f"{POOL}/{agent}", int(number), boottime()))

    async def _look_at_leader(self) -> None:
        fence, _ = await self._cluster.leader()
        if fence and (not self.leaders or self.leaders[-1][1] != fence):
            self.leaders.append((boottime(), fence))

    # -- the doctor, and whether anybody is served --------------------------------------------------------------

    async def _examine(self) -> None:
        with contextlib.suppress(AgentPoolError):
            self.standing.note(boottime(), await examine(self._store))
            self.examinations += 1

    async def _probe(self) -> None:
        if len(self._probing) < PROBES_MAX:
            probe = asyncio.create_task(self._run_probe(boottime()), name="probe")
            self._probing.add(probe)
            probe.add_done_callback(self._probing.discard)

    async def _run_probe(self, asked: float) -> None:
        with contextlib.suppress(AgentPoolError):
            await self._client.pool(POOL).run("Clerk", {"op": -1}, timeout=60)
            self.probes.append(Probe(asked, boottime()))

    async def _repeat(self, verb: Callable[[], Awaitable[None]], every: float) -> None:
        while not self._stopped:
            began = boottime()
            await verb()
            await asyncio.sleep(max(0.0, every - (boottime() - began)))
