"""Masters, workers and clients, with the product's own decisions and the simulator's messages.

What decides is the product's: `plan_growth`, `plan_shrinking`, `threshold`, `next_restart`, `judge`, `diff`,
`next_step`. What carries it out follows `Autoscaler`, `Reaper`, `Watcher`, `Leadership`, `Inbox`, `Drain` line by line,
without their I/O. A `Policy` holds the decisions, so that a test can put a broken one in.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from simulation.server import START_BACKOFF_MS, Command
from simulation.world import Actor, Away, Bell, Call, Process, Sleep, Wait, World

from agentpool.policy.actions import DrainWorker, SetDesired, StartWorkers
from agentpool.policy.liveness import Deadlines, Sign, Verdict, judge
from agentpool.policy.reconcile import Limits, plan_growth, plan_shrinking, threshold
from agentpool.policy.restarts import next_restart
from agentpool.policy.scaling import Thresholds
from agentpool.protocol.records import DesiredAgent, PoolInfo, PoolView, WorkerRecord, WorkerView
from agentpool.protocol.states import WorkerStatus
from agentpool_worker.plan import Held, StartAgent, Step, StopAgent, diff, next_step

__all__ = ["Client", "Master", "Policy", "Times", "Town", "Worker"]


class Policy(msgspec.Struct, kw_only=True):
    """The decisions."""

    plan_growth: Callable[..., Any] = plan_growth
    plan_shrinking: Callable[..., Any] = plan_shrinking
    threshold: Callable[..., int] = threshold
    next_restart: Callable[..., float | None] = next_restart
    judge: Callable[..., Verdict] = judge
    diff: Callable[..., Any] = diff
    next_step: Callable[[int, int], Step] = next_step
    hold_ms: int = -1
    """How long nobody is reaped by time after a gap; -1: as the product has it."""


class Times(msgspec.Struct, kw_only=True):
    """Settings, in ms but for the thresholds."""

    per_worker: int = 4
    beat: int = 500
    heartbeat_timeout: int = 4000
    start_timeout: int = 4000
    block_timeout: int = 6000
    drain_timeout: int = 3000
    lease: int = 2500
    gap: int = 2000
    turn: int = 1000
    max_starting: int = 3
    worker_idle: int = 5000
    up: float = 1.0
    down: float = 0.2
    cooldown: int = 3000
    boot_failures_max: int = 50
    boot_ms: int = 60
    stop_ms: int = 20


class Town:
    """Everyone in a world: hosts with a master each, workers, clients."""

    def __init__(self, world: World, hosts: int, policy: Policy | None = None, **times: Any) -> None:
        self.world, self.policy, self.times = world, policy or Policy(), Times(**times)
        self.masters: dict[str, Master] = {}
        self.workers: dict[str, Worker] = {}
        """Every worker process that ever was, by id."""
        self.killers: set[str] = set()
        """Agents whose start() kills their worker."""
        self.boot_fails = 0.0
        self.on_frozen: Callable[[str], None] = lambda worker: None
        self.serial = 0
        world.on_publish, world.on_hint = self._publish, self._hint
        for number in range(hosts):
            self.start_master(f"m{number}")

    def start_master(self, name: str) -> None:
        self.masters[name] = Master(self, name)

    def new_id(self, letter: str) -> str:
        self.serial += 1
        return f"{letter}{self.serial:04d}"

    def living(self) -> "Iterator[Worker]":
        return (worker for worker in self.workers.values() if worker.process.alive)

    def _publish(self, message: Command) -> None:
        worker = self.workers.get(message[0])
        if worker and worker.process.alive and not self.world.is_cut(worker.process.host):
            worker.receive(*message[1:])

    def _hint(self, hint: str) -> None:
        for master in self.masters.values():
            if master.process.alive and not self.world.is_cut(master.process.host):
                master.bells["lead" if hint == "leader resigned" else "scale"].ring()


class Master:
    """One master process: its loops are actors, which share what stands here."""

    def __init__(self, town: Town, name: str) -> None:
        self.town, self.world, self.times, self.policy = town, town.world, town.times, town.policy
        self.process = Process(town.world, f"master {name}", name)
        self.name, self.token = name, ""
        self.bells = {name: Bell() for name in ("lead", "scale", "reap", "watch")}
        self.crew: dict[str, Worker] = {}
        self.dead: set[str] = set()
        self.registered: set[str] = set()
        self._failures, self._not_before = 0, 0.0
        self._shrunk_at = self._scaled_at = self.world.time
        self._looked_at = self.world.time
        self._trust_from = self.world.time + self.times.heartbeat_timeout
        self.process.run(self._open())

    # -- loops --------------------------------------------------------------------------------------------------

    def _open(self) -> Actor:
        """Adopt what an earlier master left, then begin."""
        while True:
            try:
                found = yield Call("all_workers")
                break
            except Away:
                yield Sleep(500)
        for id, fields in found.items():
            if fields["master"] == self.name:
                worker = self.town.workers.get(id)
                if worker and worker.process.alive:
                    self._adopt(worker)
                else:
                    self.dead.add(id)
        for verb, interval in (
            (self._lead_once, self.times.turn), (self._reap_once, self.times.turn),
            (self._scale_once, self.times.turn), (self._watch_once, self.times.turn),
        ):  # fmt: skip
            self.process.run(self._loop(verb, interval))

    def _loop(self, verb: Callable[[], Actor], interval: float) -> Actor:
        name = verb.__name__.split("_")[1]
        while True:
            rest = interval
            with contextlib.suppress(Away):
                rest = (yield from verb()) or interval
            yield Wait(self.bells[name], rest)

    def _adopt(self, worker: "Worker") -> None:
        self.crew[worker.id] = worker
        self.registered.add(worker.id)
        worker.process.on_end.append(lambda: self._note_death(worker.id))

    def _note_death(self, worker: str) -> None:
        """Its pidfd tells, if this master lives."""

        def tell() -> None:
            if self.process.alive:
                self.crew.pop(worker, None)
                self.dead.add(worker)
                self.bells["reap"].ring()
                self.bells["scale"].ring()

        self.world.after(1, tell)

    # -- leading ------------------------------------------------------------------------------------------------

    def _lead_once(self) -> Actor:
        hold = self.policy.hold_ms if self.policy.hold_ms >= 0 else self.times.heartbeat_timeout
        answer = yield Call("lead_pool", self.name, self.times.lease, self.times.gap, hold)
        self.token = answer[1] if answer[0] == "leads" else ""
        if answer[0] == "leads" and answer[2] == "1":
            self.bells["scale"].ring()

    # -- scaling ------------------------------------------------------------------------------------------------

    def _scale_once(self) -> Any:
        if not self.token:
            return None
        answer = yield Call("place_pending", self.token)
        next_due = answer[3] if answer[0] == "ok" else -1
        pool = yield Call("read_pool")
        info = PoolInfo(pool_name="p", desired=pool["desired"], floor=pool["floor"])
        seen = yield Call("observe_pool")
        view = PoolView(**seen, waiting_tasks=0, runnable_tasks=0, running_tasks=0)
        locked_out = False
        for action in (yield from self._plan(info, view)):
            match action:
                case SetDesired(workers=count):
                    yield Call("update_pool", self.token, "desired", count)
                case StartWorkers(count=count):
                    locked_out = yield from self._start(count)
                case DrainWorker(process_id=worker, only_idle=only_idle):
                    yield Call("drain_worker", worker, only_idle, self.token)
        if locked_out:
            return 20
        waits = [self.times.turn, *([next_due + 1] if next_due >= 0 else [])]
        if self.world.time < self._not_before:
            waits.append(self._not_before - self.world.time)
        return min(waits)

    def _plan(self, info: PoolInfo, view: PoolView) -> Any:
        times, settings = self.times, self.world.server.settings
        limits = Limits(
            min_workers=settings["min_workers"],
            max_workers=settings["max_workers"],
            agents_per_worker=times.per_worker,
            worker_idle_ms=times.worker_idle,
            thresholds=Thresholds(up=times.up, down=times.down, cooldown_ms=times.cooldown),
        )
        growth: list[Any] = self.policy.plan_growth(limits, info, view)
        if growth or self.world.time - self._shrunk_at < times.turn:
            return growth
        self._shrunk_at = self.world.time
        workers = _records((yield Call("all_workers")))
        step = self.policy.threshold(limits, workers, info.floor, int(self.world.time - self._scaled_at))
        if step:
            self._scaled_at = self.world.time
        if step > 0:
            return list(self.policy.plan_growth(limits, info, view, step=step))
        return list(self.policy.plan_shrinking(limits, info, view, workers, step=step))

    def _start(self, count: int) -> Any:
        if self.world.time < self._not_before:
            return False
        lock = yield Call("take_lock", "placement", self.name, 5000)
        if lock[0] != "taken":
            return True
        orders = [(self.town.new_id("w"), "secret") for _ in range(min(count, self.times.max_starting))]
        ordered = yield Call("reserve_workers", self.token, lock[1], self.name, self.times.max_starting, orders)
        yield Call("release_lock", "placement", lock[1])
        for id, secret in orders:
            if id in ordered[1:]:
                self.process.run(self._carry_out(id, secret))
        return False

    def _carry_out(self, id: str, secret: str) -> Actor:
        """Fork it and write down who it is."""
        yield Sleep(5)
        worker = Worker(self.town, id, secret, self.process.host)
        self.crew[id] = worker
        worker.process.on_end.append(lambda: self._note_death(id))
        with contextlib.suppress(Away):
            yield Call("start_worker", id, secret)

    # -- reaping ------------------------------------------------------------------------------------------------

    def _reap_once(self) -> Actor:
        for id in sorted(self.dead):
            if id not in self.registered:
                self._failures += 1
                wait = self.policy.next_restart(
                    self._failures, backoff=0.1, backoff_max=2.0, failures_max=self.times.boot_failures_max,
                    jitter=self.world.random.random(),
                )  # fmt: skip
                self._not_before = self.world.time + 1000 * (60 if wait is None else wait)
            yield from self._reap(id, "owner", self.name)
            self.dead.discard(id)
            self.registered.discard(id)
        if self.token:
            for id in (yield Call("lost_workers")):
                yield from self._reap(id, "lost", self.token)
            now = (yield Call("observe_pool"))["now_ms"]
            for id, starting in (
                yield Call("silent", now - min(self.times.heartbeat_timeout, self.times.start_timeout))
            ):
                if id not in self.crew and id not in self.dead:
                    timeout = self.times.start_timeout if starting else self.times.heartbeat_timeout
                    yield from self._reap(id, "unstarted" if starting else "stale", self.token, timeout)

    def _reap(self, id: str, proof: str, authority: str, timeout: int = 0) -> Any:
        limit = 1 + self.world.random.randrange(3)  # small, so that a reaping is often left half done
        while (answer := (yield Call("reap_worker", id, proof, authority, timeout, limit, START_BACKOFF_MS)))[
            0
        ] == "more":
            pass
        return answer[0]

    # -- watching -----------------------------------------------------------------------------------------------

    def _watch_once(self) -> Actor:
        crew = list(self.crew.values())
        if not crew:
            self._looked_at = self.world.time
            return
        turn, is_held, seen = yield Call("signs")
        if self.world.time - self._looked_at > self.times.gap:
            self._trust_from = self.world.time + self.times.heartbeat_timeout
        self._looked_at = self.world.time
        deadlines = Deadlines(
            heartbeat_timeout_ms=self.times.heartbeat_timeout, block_timeout_ms=self.times.block_timeout
        )
        for worker in crew:
            beat, status = seen.get(worker.id, (0, "lost"))
            if not worker.process.alive:
                continue
            if status == "lost":
                worker.unknown_for += 1
                if worker.unknown_for > 5:
                    worker.process.end("it is not registered and did not leave")
                continue
            if status in ("ordered", "starting"):
                if self.world.time - worker.forked_at > self.times.start_timeout:
                    worker.process.end("it did not register")
                continue
            if worker.id not in self.registered:
                self.registered.add(worker.id)
                self._failures, self._not_before = 0, 0.0
            if status == "draining":
                worker.draining_since = worker.draining_since or self.world.time
                if self.world.time - worker.draining_since > self.times.drain_timeout + 5000:
                    worker.process.end("it did not finish draining")
                    continue
            sign = Sign(silence_ms=turn - beat, loop_lag_ms=0, stopped=worker.process.paused, cpu_busy=False)
            if is_held:
                continue
            if self.world.time >= self._trust_from and self.policy.judge(sign, deadlines) is not Verdict.WELL:
                self.town.on_frozen(worker.id)
                worker.process.end("frozen")


def _records(workers: dict[str, dict[str, Any]]) -> list[WorkerRecord]:
    return [
        WorkerRecord(
            process_id=id, pool_name="p", status=WorkerStatus(fields["status"]), capacity=fields["capacity"],
            available=fields["free"], idle_since=fields["idle_since"],
        )
        for id, fields in workers.items()
    ]  # fmt: skip


class Worker:
    """One worker process. `holds` are the agents that are here: incarnation, and whether `start()` returned."""

    def __init__(self, town: Town, id: str, secret: str, host: str) -> None:
        self.town, self.world, self.times, self.policy = town, town.world, town.times, town.policy
        self.process = Process(town.world, f"worker {id}", host)
        self.id, self.secret = id, secret
        self.forked_at, self.unknown_for, self.draining_since = self.world.time, 0, 0.0
        self.holds: dict[str, list[Any]] = {}
        self.version, self.stale, self.draining, self.retiring = -1, True, False, False
        self.bell, self.cut_off = Bell(), False
        self.answered = self.world.time
        self._commands: list[tuple[int, str, str, int]] = []
        town.workers[id] = self
        self.process.on_end.append(self.holds.clear)
        self.process.run(self._run())

    def _run(self) -> Actor:
        yield Sleep(self.times.boot_ms * (0.5 + self.world.random.random()))
        if self.world.random.random() < self.town.boot_fails:
            self.process.end("its boot failed")
            yield Sleep(0)
        try:
            answer = yield Call("register_worker", self.id, self.secret, self.times.per_worker)
        except Away:
            answer = ("gone",)
        if answer[0] != "ok":
            self.process.end("not ordered")
            yield Sleep(0)
        self.answered = self.world.time
        self.process.run(self._beat())
        self.process.run(self._watch_lease())
        self.process.run(self._listen())

    def _beat(self) -> Actor:
        yield Sleep(self.times.beat * self.world.random.random())
        looked = self.world.time
        while True:
            asked = self.world.time
            try:
                answer = yield Call("beat_worker", self.id, deadline_ms=self.times.heartbeat_timeout // 4)
            except Away:
                pass
            else:
                if answer[0] == "gone":
                    if not self.retiring:
                        self.process.end("given up")
                else:
                    self.answered = asked
                    self.draining = self.draining or answer[2] == "draining"
                    if answer[1] != self.version or self.draining or self.cut_off:
                        self.cut_off = False
                        self.resync()
            yield Sleep(self.times.beat)
            if self.world.time - looked > self.times.beat + self.times.heartbeat_timeout:
                self.process.end("it was frozen")
            looked = self.world.time

    def _watch_lease(self) -> Actor:
        """One beat before the lease ends, what must not run twice is stopped, until a beat is answered again."""
        while True:
            left = self.times.heartbeat_timeout - 2 * self.times.beat - (self.world.time - self.answered)
            if left <= 0:
                self.cut_off = True
                for name in [name for name in self.holds if name.startswith("x")]:
                    del self.holds[name]
            yield Sleep(max(left, self.times.beat))

    def receive(self, version: int, what: str, agent: str, incarnation: int) -> None:
        """A command came."""
        self._commands.append((version, what, agent, incarnation))
        self.bell.ring()

    def resync(self) -> None:
        """Compare what is here with what shall be."""
        self.stale = True
        self.bell.ring()

    def _listen(self) -> Actor:
        while True:
            if self.stale:
                try:
                    answer = yield Call("read_worker", self.id)
                except Away:
                    continue
                self.stale = False
                if answer[0] == "gone":
                    if not self.retiring:
                        self.process.end("given up")
                    yield Sleep(100)
                    continue
                self._conform(answer)
            commands, self._commands = self._commands, []
            for command in commands:
                self._accept(*command)
            if self.draining and not self.retiring:
                yield from self._leave()
            if not self.stale:
                yield Wait(self.bell, 60_000)

    def _conform(self, answer: tuple[Any, ...]) -> None:
        _, self.version, status, agents = answer
        self.draining = self.draining or status == "draining"
        desired = tuple(DesiredAgent(agent_id=id, agent_type="T", incarnation=number) for id, number in agents.items())
        view = WorkerView(version=self.version, status=WorkerStatus(status), agents=desired)
        for action in self.policy.diff(view, {name: Held(held[0]) for name, held in self.holds.items()}):
            match action:
                case StopAgent(agent_id=name):
                    self.holds.pop(name, None)
                case StartAgent(desired=agent):
                    self._start_agent(agent.agent_id, agent.incarnation)

    def _accept(self, version: int, what: str, agent: str, incarnation: int) -> None:
        if version == 0:
            self.stale = True
            return
        match self.policy.next_step(self.version, version):
            case Step.RESYNC:
                self.stale = True
            case Step.OBEY:
                self.version = version
                if what == "spawn":
                    self._start_agent(agent, incarnation)
                elif what == "terminate":
                    self.holds.pop(agent, None)
                elif what == "drain":
                    self.draining = True

    def _start_agent(self, name: str, incarnation: int) -> None:
        held = self.holds.get(name)
        if self.draining or (self.cut_off and name.startswith("x")) or (held and held[0] == incarnation):
            return
        self.holds[name] = [incarnation, False]
        self.process.run(self._bring_up(name, incarnation))

    def _bring_up(self, name: str, incarnation: int) -> Actor:
        yield Sleep(5 + 40 * self.world.random.random())
        if name in self.town.killers:
            self.process.end(f"{name} killed it")
            yield Sleep(0)
        while True:
            held = self.holds.get(name)
            if not held or held[0] != incarnation:
                return
            held[1] = True
            try:
                answer = yield Call("confirm_agent", self.id, name, incarnation)
            except Away:
                continue
            if answer[0] == "stale":
                self.resync()
            return

    def _leave(self) -> Any:
        """Hand everything over and retire."""
        for name, held in list(self.holds.items()):
            yield Sleep(self.times.stop_ms)
            if self.holds.get(name) is held:
                del self.holds[name]
            try:
                yield Call("release_agent", self.id, name, held[0])
            except Away:
                self.bell.ring()
                return
        # Those that were never started here, because it drains.
        try:
            answer = yield Call("read_worker", self.id)
            for name, incarnation in (answer[3] if answer[0] == "ok" else {}).items():
                yield Call("release_agent", self.id, name, incarnation)
            self.retiring = True
            answer = yield Call("retire_worker", self.id)
        except Away:
            self.retiring = False
            self.bell.ring()
            return
        if answer[0] == "busy":
            self.retiring = False
            self.bell.ring()
            return
        self.process.end("retired")


class Client:
    """Spawns and ends agents; `promised` are those that were acknowledged and not asked to end."""

    def __init__(self, town: Town, name: str, most: int, *, think_ms: float = 200, share: float = 0.6) -> None:
        self.town, self.world, self.name, self.most = town, town.world, name, most
        self.think_ms, self.share, self.stopped = think_ms, share, False
        self.promised: dict[str, str] = {}
        """Operation by agent."""
        self.ended: set[str] = set()
        self.process = Process(town.world, f"client {name}", f"host of {name}")
        self.process.run(self._run())

    def _run(self) -> Actor:
        random = self.world.random
        while not self.stopped:
            yield Sleep(self.think_ms * 2 * random.random())
            if len(self.promised) < self.most and random.random() < self.share:
                kind = random.choice("ax")
                agent, operation = self.town.new_id(kind), self.town.new_id("o")
                try:
                    answer = yield Call("place_agent", agent, operation, kind)
                except Away:
                    continue
                if answer[0] in ("placed", "pending"):
                    self.promised[agent] = operation
            elif self.promised:
                agent = random.choice(sorted(self.promised))
                del self.promised[agent]
                try:
                    yield Call("terminate_agent", agent)
                except Away:
                    continue
                self.ended.add(agent)
