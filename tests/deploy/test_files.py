"""The files in deploy/ say what the code says: every setting, its default, and times that fit together."""

import configparser
import re
import shlex
import tomllib
from pathlib import Path

import msgspec
import pytest

from agentpool.config import LogSettings, PoolSettings, RedisSettings, Settings, load
from agentpool.master.watcher import DRAIN_MARGIN

DEPLOY = Path(__file__).parents[2] / "deploy"
EXAMPLE = (DEPLOY / "agentpool.toml").read_text()

WITHOUT_DEFAULT = {"url", "agents"}
"""`url` has no default that TOML could spell, and `agents` must be given."""

SERVER_STOP_S = 20
"""SHUTDOWN, SIGTERM, SIGKILL: ten seconds for the first and five for each of the others."""
POOL = PoolSettings()
STOP_S = POOL.drain_timeout + POOL.agent_stop_timeout + DRAIN_MARGIN + SERVER_STOP_S
"""The longest that a stop with default settings can take."""


def uncommented(text: str) -> str:
    """The example's first pool with every default in force, and without what has none."""
    text = text.partition("#[pools.")[0]
    lines = [re.sub(r"^#(\w+ = )", r"\1", line) for line in text.splitlines()]
    return "\n".join(line for line in lines if not re.match(r"url = ", line))


def example_lines() -> dict[tuple[str, str], str]:
    """Each setting's line by table and name; the commented second pool is no table."""
    table, found = "", {}
    for line in EXAMPLE.splitlines():
        if match := re.match(r"\[(.+)\]", line):
            table = match[1]
        elif match := re.match(r"#?(\w+) = ", line):
            found.setdefault((table, match[1]), line)
    return found


def names(struct: type[msgspec.Struct], *but: str) -> set[str]:
    return {field.name for field in msgspec.structs.fields(struct)} - set(but)


class TestExample:
    def test_loads_as_it_stands(self, tmp_path: Path) -> None:
        loaded = load(config_path=DEPLOY / "agentpool.toml", environ={"HOME": str(tmp_path)})
        assert loaded.settings.pools == {"developer_pool": PoolSettings(agents=("myapp.agents:Reviewer",))}
        assert loaded.warnings == ()

    def test_names_every_setting(self) -> None:
        lines = set(example_lines())
        assert {name for table, name in lines if table == ""} == names(Settings, "redis", "log", "pools")
        assert {name for table, name in lines if table == "redis"} == names(RedisSettings)
        assert {name for table, name in lines if table == "log"} == names(LogSettings)
        assert {name for table, name in lines if table == "pools.developer_pool"} == names(PoolSettings)

    def test_every_setting_has_its_comment(self) -> None:
        assert [line for line in example_lines().values() if not re.search(r" # \S", line)] == []

    def test_shows_the_defaults(self) -> None:
        document = tomllib.loads(uncommented(EXAMPLE))
        tables = {
            Settings: {name: value for name, value in document.items() if not isinstance(value, dict)},
            RedisSettings: document["redis"],
            LogSettings: document["log"],
            PoolSettings: document["pools"]["developer_pool"],
        }
        for struct, table in tables.items():
            defaults = msgspec.json.decode(msgspec.json.encode(struct()))
            shown = {name: value for name, value in table.items() if name not in WITHOUT_DEFAULT}
            assert shown == {name: defaults[name] for name in shown}

    def test_loads_with_everything_uncommented(self, tmp_path: Path) -> None:
        file = tmp_path / "agentpool.toml"
        file.write_text(re.sub(r"(?m)^#(\[pools|\w+ = )", r"\1", EXAMPLE))
        settings = load(config_path=file, environ={"HOME": str(tmp_path)}).settings
        assert set(settings.pools) == {"developer_pool", "tester_pool"}
        assert settings.redis.url == "redis://localhost:6379/0"


class TestEnvironmentExample:
    def test_every_variable_is_known(self, tmp_path: Path) -> None:
        text = (DEPLOY / "agentpool.env.example").read_text()
        variables = dict(re.findall(r"(?m)^#?([A-Z_]+)=(\S+)$", text))
        assert len(variables) >= 10
        # It would name a file that is not on this machine.
        config = variables.pop("AGENTPOOL_CONFIG")
        assert config == "/etc/agentpool/agentpool.toml"
        loaded = load(config_path=DEPLOY / "agentpool.toml", environ={"HOME": str(tmp_path), **variables})
        assert loaded.settings.redis.url == variables["REDIS_URL"]
        assert loaded.settings.pools["developer_pool"].max_workers == 30
        assert len(loaded.settings.pools["developer_pool"].agents) == 2

    def test_systemd_can_read_it(self) -> None:
        lines = (DEPLOY / "agentpool.env.example").read_text().splitlines()
        assert [line for line in lines if line and not re.match(r"#|[A-Z_]+=\S*$", line)] == []


def unit() -> dict[str, str]:
    """The unit's settings; of those given more than once the last."""
    text = (DEPLOY / "agentpool-master.service").read_text()
    return dict(re.findall(r"(?m)^(\w+)=(.*)$", text))


class TestUnit:
    def test_tells_systemd_and_is_watched(self) -> None:
        assert unit()["Type"] == "notify"
        assert unit()["NotifyAccess"] == "main"

    def test_watchdog_leaves_time_for_a_redis_that_is_away(self) -> None:
        assert float(unit()["WatchdogSec"]) >= 4 * RedisSettings().command_timeout

    def test_stopping_has_time_to_drain(self) -> None:
        assert float(unit()["TimeoutStopSec"]) > STOP_S + 30

    def test_leaves_workers_alone(self) -> None:
        assert unit()["KillMode"] == "process"
        assert unit()["OOMPolicy"] == "continue"

    @pytest.mark.parametrize("name", ["PrivateTmp", "ProcSubset", "PrivateUsers", "DynamicUser"])
    def test_hardening_that_would_break_adoption_is_absent(self, name: str) -> None:
        assert name not in unit()


def program() -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    parser.read(DEPLOY / "supervisord.conf")
    return parser["program:agentpool-master"]


class TestSupervisorProgram:
    def test_stopping_has_time_to_drain(self) -> None:
        assert program()["stopsignal"] == "TERM"
        assert program().getfloat("stopwaitsecs") > STOP_S + 30

    def test_only_the_master_is_signalled(self) -> None:
        assert not program().getboolean("stopasgroup")
        assert not program().getboolean("killasgroup")
        assert shlex.split(program()["command"])[-1].startswith("exec ")
