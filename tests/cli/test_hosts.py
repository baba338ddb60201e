"""`agentpool hosts`, and `agentpool-master upgrade` where there is nothing to upgrade."""

import subprocess
from pathlib import Path

from support.command import Cli
from support.master import BIN, clean_environ
from support.seeds import seed_host
from support.tiny_pool import POOL, TinyPool, tiny_pool


async def test_hosts_of_several_pools_are_one_row_each(cli: Cli, tiny: TinyPool, redis_url: str) -> None:
    assert (await cli("hosts")).out == "No hosts. Start agentpool-master on some.\n"
    async with tiny_pool(redis_url, "another_pool") as another:
        fields = {"cpus": 4.0, "workers": 3, "workers_max": 5, "memory_mb": 2000, "available_mb": 1500}
        for pool in (tiny, another):
            await seed_host(tiny.store, "master-1", ["gpu"], pool.name, **fields)
        await seed_host(tiny.store, "quiet", pool=POOL, closed="5 workers in a row failed to start")
        await tiny.store.connection.redis.hset(tiny.store.keys.host(POOL, "quiet"), "last_beat", 1)
        one, two = (await cli("hosts", "--json")).document
        assert (one["master"], one["pools"], one["leads"]) == (
            "master-1",
            ["another_pool", POOL],
            ["another_pool", POOL],
        )
        assert (one["status"], one["workers"], one["cpus"], one["labels"]) == ("beating", 3, 4.0, "gpu")
        assert (two["master"], two["status"], two["pools"], two["leads"]) == ("quiet", "silent", [POOL], [])
        assert [row["master"] for row in (await cli("hosts", "another_pool", "--json")).document] == ["master-1"]
        lines = (await cli("hosts")).out.splitlines()
        assert "another_pool, developer_pool" in lines[1]
        assert "3 of 5" in lines[1]
        assert "1500 of 2000 MB" in lines[1]
        assert lines[2].endswith("5 workers in a row failed to start")


def test_without_a_master_there_is_nothing_to_upgrade(tmp_path: Path) -> None:
    config = tmp_path / "agentpool.toml"
    config.write_text(f'data_dir = "{tmp_path}"\n[pools.p]\nagents = ["a:B"]\n')
    words = [str(BIN / "agentpool-master"), "upgrade", "--config", str(config)]
    done = subprocess.run(words, capture_output=True, text=True, env=clean_environ(), check=False)
    assert done.returncode == 1
    assert "so there is none to upgrade. Start agentpool-master." in done.stderr
