"""All pools of one master."""

import asyncio

import structlog

from agentpool.clock import monotonic
from agentpool.config import Settings
from agentpool.doctor.processes import local_workers
from agentpool.errors import AgentPoolError, ConfigError
from agentpool.master.host import Host
from agentpool.master.keeper import PoolKeeper
from agentpool.master.leadership import GAP_MS
from agentpool.master.leavings import sweep_leavings
from agentpool.master.scope import PoolScope
from agentpool.periodic import Periodic
from agentpool.store import Store
from agentpool.store.hosts import ALIVE_MS
from agentpool.store.subscription import Subscription

__all__ = ["Supervisor"]

log = structlog.get_logger("supervisor")


class Supervisor:
    """Opens, starts, reloads and stops a keeper for each pool."""

    def __init__(self, store: Store, host: Host, settings: Settings, hurry: asyncio.Event) -> None:
        self.settings = settings
        self.keepers: dict[str, PoolKeeper] = {}
        self._hurry = hurry
        self._leaving: dict[str, asyncio.Task[None]] = {}
        """Pools that were taken out of the configuration and still drain."""
        self._store, self._host = store, host
        self._install = ""
        self._hints: Subscription | None = None
        self._channels: dict[str, PoolKeeper] = {}

    async def open(self) -> None:
        """Import every pool's agents; raises one `ConfigError` with all that fails."""
        self._install = await self._store.pools.install_id()
        opened = await asyncio.gather(*(self._open(pool) for pool in self.settings.pools), return_exceptions=True)
        problems = [problem for result in opened if isinstance(result, ConfigError) for problem in result.problems]
        unexpected = [r for r in opened if isinstance(r, BaseException) and not isinstance(r, ConfigError)]
        if problems or unexpected:
            await self.abandon()
            raise ConfigError(*problems) if problems else unexpected[0]

    async def start(self) -> None:
        """Begin to supervise."""
        await self._store.connection.forget_old_scripts()
        await asyncio.gather(*(keeper.start() for keeper in self.keepers.values()))
        await self._leave_other_pools()
        await sweep_leavings(self.settings.data_dir, self._registered)
        await self._listen()

    async def apply(self, settings: Settings) -> list[str]:
        """Take new settings; returns what could not be applied, after which the rest goes on as before."""
        problems: list[str] = []
        previous, self.settings = self.settings, settings
        for pool in [pool for pool in self.keepers if pool not in settings.pools]:
            log.info("pool.removing", pool=pool)
            leaving = self.keepers.pop(pool).stop(self._hurry, remove=True)
            self._leaving[pool] = asyncio.create_task(leaving, name=f"removing {pool}")
        for pool, wanted in settings.pools.items():
            try:
                if pool in self._leaving and not self._leaving[pool].done():
                    problems.append(f"{pool}: it still drains since it was removed; reload again when it has")
                elif pool not in self.keepers:
                    await self._add(pool)
                else:
                    self.keepers[pool].scope.root = settings
                    await self.keepers[pool].apply(wanted)
            except AgentPoolError as error:
                problems.append(f"{pool}: {error}")
        if settings.redis != previous.redis or settings.data_dir != previous.data_dir:
            problems.append("redis and data_dir change only with a restart of the master")
        await self._listen()
        return problems

    async def stop(self) -> None:
        """Drain and end everything; when `hurry` is set, quickly."""
        await self._stop_listening()
        stops = [keeper.stop(self._hurry) for keeper in self.keepers.values()]
        await asyncio.gather(*stops, *self._leaving.values())

    async def abandon(self) -> None:
        """Leave all workers running."""
        await self._stop_listening()
        await asyncio.gather(*(keeper.abandon() for keeper in self.keepers.values()))

    async def note_upgrade(self, state: str, *, renew: bool = False) -> None:
        """Write down how far an upgrade of this master got; with `renew`, all workers of now are to be replaced."""
        store, master = self._store, self._host.master_id
        fields: dict[str, object] = {"upgrade": state}
        if renew:
            fields["renew_before"] = await store.connection.now_ms() + 1
        for pool in self.keepers:
            await store.hosts.mark(pool, master, **fields)

    async def hand_over(self) -> None:
        """Leave all workers running for the successor, and what this master leads to the others."""
        await self._stop_listening()
        await asyncio.gather(*(keeper.hand_over() for keeper in self.keepers.values()))

    @property
    def loops(self) -> list[Periodic]:
        """Every supervision loop of every pool."""
        return [loop for keeper in self.keepers.values() for loop in keeper.loops]

    def last_turns(self) -> list[float]:
        """Return when each supervision loop last turned, in monotonic seconds."""
        return [loop.last_turn for loop in self.loops]

    def redis_away_for(self) -> float:
        """Return for how many seconds no loop has got an answer from Redis; 0 while it answers."""
        if not any(loop.failing for loop in self.loops):
            return 0.0
        return monotonic() - max(loop.last_success for loop in self.loops)

    async def _open(self, pool: str) -> None:
        keeper = PoolKeeper(PoolScope(self._store, pool, self._host, self.settings, self._install), self._workers)
        await keeper.open()
        self.keepers[pool] = keeper

    async def _add(self, pool: str) -> None:
        """Open and start a pool; one that cannot start is let go, for the next reload to try."""
        await self._open(pool)
        try:
            await self.keepers[pool].start()
        except AgentPoolError:
            await self.keepers.pop(pool).hand_over()
            raise

    async def _registered(self) -> set[str]:
        """Return the workers of all pools."""
        pools = await self._store.pools.names()
        return {worker.process_id for pool in pools for worker in await self._store.workers.all(pool)}

    def _workers(self) -> int:
        return sum(keeper.workers for keeper in self.keepers.values())

    async def _leave_other_pools(self) -> None:
        """Workers of this host in pools that are configured no longer finish and leave."""
        running = await asyncio.to_thread(local_workers, self._install)
        for pool in sorted({*await self._store.pools.names(), *(worker.pool for worker in running)}):
            if pool in self.keepers:
                continue
            await self._finish_removal(pool)
            mine = [w for w in await self._store.workers.all(pool) if w.master == self._host.master_id]
            for worker in mine:
                log.warning("pool.not_configured", pool=pool, process_id=worker.process_id)
                await self._drain_quietly(pool, worker.process_id)

    async def _finish_removal(self, pool: str) -> None:
        """Take a pool out of service that only this master had, before it died over that, or while it was away."""
        store, master = self._store, self._host.master_id
        view = await store.hosts.view(pool)
        if master not in {host.master for host in view.hosts}:
            return
        if all(host.master == master for host in view.living(ALIVE_MS)):
            lease_ms = int(self.settings.leader_lease * 1000)
            lead = await store.locks.lead(pool, master, lease_ms=lease_ms, gap_ms=GAP_MS, hold_ms=0)
            if lead.token:
                log.warning("pool.removing", pool=pool)
                await store.pools.remove(pool, lead.token)
                await store.locks.release(pool, "leader", lead.token)
        await store.hosts.forget(pool, master)

    async def _drain_quietly(self, pool: str, worker: str) -> None:
        try:
            await self._store.workers.drain(pool, worker, reason="its pool is configured no longer")
        except AgentPoolError as error:
            log.warning("worker.drain_refused", pool=pool, process_id=worker, error=str(error))

    # -- hints --------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Follow the hints of all pools; each is looked after at its own interval, too."""
        await self._stop_listening()
        keys = self._store.keys
        self._channels = {keys.leader_channel(pool): keeper for pool, keeper in self.keepers.items()}
        self._hints = Subscription(
            self._store.connection, tuple(self._channels), on_message=self._on_hint, on_ready=self._on_ready
        )
        self._hints.start()

    async def _stop_listening(self) -> None:
        hints, self._hints = self._hints, None
        if hints:
            await hints.stop()

    def _on_hint(self, channel: str, text: str) -> None:
        keeper = self._channels.get(channel)
        if keeper is None:
            return
        if text == "leader resigned":
            keeper.wake_leadership()
        elif text.startswith("start "):
            if text == f"start {self._host.master_id}":
                keeper.wake_starts()
        elif text == "timer":
            keeper.wake_timers()
        else:
            keeper.wake()

    def _on_ready(self) -> None:
        for keeper in self.keepers.values():
            keeper.wake_all()
