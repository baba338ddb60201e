"""A real agentpool-master in a folder of its own, for system tests: `LiveMaster` with what all of them share."""

import sys
from pathlib import Path
from typing import Any

from agentpool.client import Client
from agentpool.protocol.records import WorkerRecord
from agentpool.testing import LiveMaster, clean_environ, ended, running_processes

__all__ = ["APPS", "Client", "Master", "clean_environ", "ended", "pid_of", "running_processes"]

APPS = Path(__file__).parent.parent / "system" / "apps"
BIN = Path(sys.executable).parent

BASE = {
    "agents": ["sample_agents:Echo"],
    "min_workers": 1,
    "max_workers": 4,
    "agents_per_worker": 10,
    "heartbeat_interval": 0.2,
    "heartbeat_timeout": 2.0,
    "drain_timeout": 5.0,
    "agent_stop_timeout": 2.0,
    "retry_attempts": 1,
}


class Master(LiveMaster):
    """One master process. `pools` maps names to settings over `BASE`; more top-level settings as keywords."""

    def __init__(self, folder: Path, pools: dict[str, dict[str, Any]] | None = None, **top: Any) -> None:
        self.within: list[str] = []
        """The beginning of its command line, when it is to run somewhere else, as in a namespace."""
        super().__init__(folder, pools or {"developer_pool": {}}, **top)

    def write_config(self, pools: dict[str, dict[str, Any]], **top: Any) -> None:  # type: ignore[override]
        own = {name: {**BASE, **settings} for name, settings in pools.items()}
        super().write_config(own, **{"app_dir": str(APPS), "leader_lease": 2.0, **top})

    def start(self, *, wait: bool = True, die_at: str = "", **environ: str) -> "Master":
        """Start it; with `die_at` it kills itself before or after it calls a script, see `dying_master.py`."""
        program = [str(BIN / "agentpool-master")]
        if die_at:
            program = [sys.executable, str(Path(__file__).parent / "dying_master.py")]
            environ = {**environ, "DIE_AT": die_at}
        self.program = [*self.within, *program]
        super().start(wait=wait, **environ)
        return self

    async def examine(self) -> None:
        """What must hold at the end of every test: doctor finds nothing."""
        found = await self.faults()
        assert found == [], found


def pid_of(workers: list[WorkerRecord], worker_id: str) -> int:
    """The pid of a worker."""
    return next(worker.pid for worker in workers if worker.process_id == worker_id)
