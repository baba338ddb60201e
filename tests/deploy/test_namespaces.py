"""Hosts as namespaces of the kernel (`make check-deploy`): a network and a process table of their own, cables to cut.

Needs root, `ip` and `unshare`. All interfaces are inside the namespaces: nothing of this machine's network is touched.
"""

import asyncio
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support.master import Master, ended
from support.wait import wait_until, wait_until_sync
from system.test_masters import POOL, all_idle, by_master, has, host, settings, shown_hosts

from agentpool import connect
from agentpool.client import Client
from agentpool.doctor import examine
from agentpool.redis_server import find_binary

pytestmark = pytest.mark.deploy


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


class Network:
    """A switch with the Redis server on it, and two hosts on cables."""

    def __init__(self, folder: Path) -> None:
        for tool in ("ip", "unshare"):
            assert shutil.which(tool), f"{tool} is not installed, and this check needs it: apt-get install iproute2"
        assert os.geteuid() == 0, "namespaces need root"
        name = f"ap{uuid.uuid4().hex[:6]}"
        self.switch, self.hosts = f"{name}s", [f"{name}h1", f"{name}h2"]
        self.socket = folder / "redis.sock"
        self.folder = folder

    def build(self) -> None:
        for namespace in (self.switch, *self.hosts):
            ip("netns", "add", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "addr", "add", "10.77.0.1/24", "dev", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        for number, namespace in enumerate(self.hosts, 1):
            cable = f"cable{number}"
            ip("-n", self.switch, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            ip("-n", self.switch, "link", "set", cable, "master", "bridge", "up")
            ip("-n", namespace, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "eth0")
            ip("-n", namespace, "link", "set", "eth0", "up")
        words = ["--bind", "10.77.0.1", "--port", "6379", "--protected-mode", "no", "--unixsocket", str(self.socket)]
        self.server = subprocess.Popen(
            ["ip", "netns", "exec", self.switch, str(find_binary("auto").path), *words, "--dir", str(self.folder)],
            stdout=subprocess.DEVNULL,
        )
        wait_until_sync(self.socket.exists)

    def cut(self, number: int, *, heal: bool = False) -> None:
        ip("-n", self.switch, "link", "set", f"cable{number}", "up" if heal else "down")

    def within(self, number: int) -> list[str]:
        """Run what follows on a host: in its network, and as the first process of a table of its own."""
        apart = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
        return ["ip", "netns", "exec", self.hosts[number - 1], *apart]

    def remove(self) -> None:
        if hasattr(self, "server"):
            self.server.kill()
            self.server.wait(5)
        for namespace in (self.switch, *self.hosts):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    network = Network(tmp_path)
    try:
        network.build()
        yield network
    finally:
        network.remove()


@pytest.fixture
def on_host(network: Network, tmp_path: Path) -> Iterator[Callable[..., Master]]:
    made: list[Master] = []

    def start(number: int, pools: dict[str, dict[str, object]]) -> Master:
        folder = tmp_path / f"h{number}"
        folder.mkdir()
        master = Master(folder, pools, redis={"url": "redis://10.77.0.1:6379/0", "command_timeout": 1.0})
        master.within = network.within(number)
        made.append(master)
        master.start(wait=False)
        wait_until_sync(lambda: master.logged("master.ready"), timeout=20, message=master.output)
        return master

    yield start
    for master in made:
        lose(master)


def lose(master: Master) -> None:
    """Pull the plug: with its first process all of a process table go."""
    processes = master.children()
    assert master.process
    master.process.kill()
    master.process.wait(5)
    wait_until_sync(lambda: all(ended(process.pid) for process in processes))


async def test_hosts_that_are_cut_off_and_lost(network: Network, on_host: Callable[..., Master]) -> None:
    pools = settings(min_workers=4, max_workers=4, heartbeat_timeout=1.5)
    async with connect(f"unix://{network.socket}") as client:
        first = on_host(1, pools)
        one = str(first.logged("master.ready")[0]["master"])
        await wait_until(lambda: has(client, **{one: 4}))
        second = on_host(2, pools)
        two = str(second.logged("master.ready")[0]["master"])
        pool = client.pool(POOL)
        for worker in (await pool.workers())[:2]:
            await client.drain(worker.process_id)
        await wait_until(lambda: has(client, **{one: 2, two: 2}), message=first.output)
        hosts = [await host(client, master) for master in (one, two)]
        assert len({found.boot_id for found in hosts if found}) == 1
        assert len({found.pid_ns for found in hosts if found}) == 2, "only this, and the host id, tell them apart"
        handles = await asyncio.gather(*(pool.spawn("Counter") for _ in range(8)))
        assert await asyncio.gather(*(handle.run(None) for handle in handles)) == [1] * 8

        network.cut(2)
        await wait_until(lambda: has(client, **{one: 4}), message=first.output)
        await wait_until(lambda: all_idle(client, 8))
        assert len(workers_of(second)) == 2, "they cannot know yet"
        network.cut(2, heal=True)
        await wait_until(lambda: not workers_of(second), timeout=20, message=second.output)
        victim = (await pool.workers())[0]
        await client.drain(victim.process_id)
        await wait_until(lambda: has(client, **{one: 3, two: 1}), timeout=20, message=first.output)
        assert (await shown_hosts(f"unix://{network.socket}"))[two]["status"] == "beating"

        lose(second)
        await wait_until(lambda: has(client, **{one: 4}), message=first.output)
        await wait_until(lambda: all_idle(client, 8))
        await wait_until(lambda: _alone(client, one), timeout=20)
        assert await examine(client.store) == []


def workers_of(master: Master) -> list[psutil.Process]:
    return [process for process in master.children() if "agentpool-worker" in " ".join(process.cmdline())]


async def _alone(client: Client, master: str) -> bool:
    view = await client.store.hosts.view(POOL)
    return [found.master for found in view.hosts] == [master] and set(await by_master(client)) == {master}
