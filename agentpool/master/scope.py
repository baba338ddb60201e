"""What all loops of one pool share: where it is, its settings as of now, and whether this master leads it."""

from pathlib import Path

import msgspec

from agentpool.config import PoolSettings, Settings
from agentpool.master.host import Host
from agentpool.policy.liveness import Deadlines
from agentpool.policy.reconcile import Limits
from agentpool.policy.scaling import Thresholds
from agentpool.protocol.limits import encode_limits
from agentpool.protocol.zygote import WorkerSettings
from agentpool.store import Store
from agentpool.store.hosts import ALIVE_MS

__all__ = ["PoolScope"]

OF_THE_POOL = tuple(name for name in WorkerSettings.__struct_fields__ if name in PoolSettings.__struct_fields__)
"""Settings that a worker is told as the pool has them."""


class PoolScope:
    """One pool as this master sees it. `settings` is replaced on a reload; `token` by leadership."""

    def __init__(self, store: Store, pool: str, host: Host, root: Settings, install: str) -> None:
        self.store, self.pool, self.host, self.root, self.install = store, pool, host, root, install
        self.settings: PoolSettings = root.pools[pool]
        self.token = ""
        """The leader's token, or '' while another leads. Scripts check it themselves; here it only saves calls."""
        self.types_hash = self.release = ""
        """Of the workers that this host starts now."""
        self.settled_at = 0.0
        """When, by this host's monotonic clock, workers have told again what a server that started anew may have lost.
        """

    @property
    def master(self) -> str:
        """The id of this master."""
        return self.host.master_id

    @property
    def alive_ms(self) -> int:
        """Time after its last beat in which a master counts as alive: no longer than a worker would."""
        return min(ALIVE_MS, int(self.settings.heartbeat_timeout * 1000))

    @property
    def stack_dir(self) -> str:
        """Folder of stack dumps."""
        return str(Path(self.root.data_dir) / "stacks")

    @property
    def mark_dir(self) -> str:
        """Folder in which workers mark what has begun."""
        return str(Path(self.root.data_dir) / "marks")

    @property
    def audit_dir(self) -> str:
        """Folder of the pool's audit files."""
        return str(Path(self.root.data_dir) / "audit" / self.pool)

    def limits(self) -> Limits:
        """Return what plans obey."""
        settings = self.settings
        return Limits(
            min_workers=settings.min_workers,
            max_workers=settings.max_workers,
            agents_per_worker=settings.agents_per_worker,
            worker_idle_ms=int(settings.worker_idle_timeout * 1000),
            thresholds=Thresholds(
                up=settings.scale_up_threshold,
                down=settings.scale_down_threshold,
                cooldown_ms=int(settings.scale_cooldown * 1000),
            ),
        )

    def deadlines(self) -> Deadlines:
        """Return when a worker counts as frozen or blocked."""
        return Deadlines(
            heartbeat_timeout_ms=int(self.settings.heartbeat_timeout * 1000),
            block_timeout_ms=int(self.settings.block_timeout * 1000),
        )

    def applied(self) -> dict[str, object]:
        """Return the settings as they are written to Redis."""
        settings = self.settings
        return {
            "role_type": settings.role_type,
            "min_workers": settings.min_workers,
            "max_workers": settings.max_workers,
            "agents_per_worker": settings.agents_per_worker,
            "placement": settings.placement,
            "max_input_bytes": settings.max_input_bytes,
            "max_queued": settings.max_queued,
            "max_pending": settings.max_pending,
            "heartbeat_interval_ms": int(settings.heartbeat_interval * 1000),
            "heartbeat_timeout_ms": int(settings.heartbeat_timeout * 1000),
            "result_ttl_ms": int(settings.result_ttl * 1000),
            "key_ttl_ms": int(settings.key_ttl * 1000),
            "batch_max_wait_ms": int(settings.batch_max_wait * 1000),
            "max_queued_pool": settings.max_queued_pool,
            "max_dead": settings.max_dead,
            "audit": int(settings.audit),
            "tenant_limits": encode_limits(
                {
                    "agents": settings.tenant_agents,
                    "running": settings.tenant_running,
                    "tokens_per_minute": settings.tenant_tokens_per_minute,
                    "tokens_per_task": settings.tenant_tokens_per_task,
                    "requests_per_minute": settings.tenant_requests_per_minute,
                }
            ),
            **{f"={tenant}": encode_limits(msgspec.to_builtins(own)) for tenant, own in settings.tenants.items()},
            "types_hash": self.types_hash,
            "restarts": "",
        }

    def worker_settings(self) -> WorkerSettings:
        """Return what a worker that starts now is told."""
        settings, root, host = self.settings, self.root, self.host
        return WorkerSettings(
            pool=self.pool,
            redis_url=self.store.connection.url,
            namespace=root.redis.namespace,
            install=self.install,
            host_id=host.host_id,
            host=host.name,
            boot_id=host.boot_id,
            pid_ns=host.pid_ns,
            capacity=settings.agents_per_worker,
            connect_timeout=root.redis.connect_timeout,
            command_timeout=root.redis.command_timeout,
            log_level=root.log.level,
            log_format=root.log.format,
            types_hash=self.types_hash,
            stack_dir=self.stack_dir,
            mark_dir=self.mark_dir,
            labels=root.labels,
            **{name: getattr(settings, name) for name in OF_THE_POOL},
        )
