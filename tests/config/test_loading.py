"""Where settings come from, which source wins, and what a user reads when one is wrong."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentpool.config import (
    MINIMAL_FILE,
    ClientTarget,
    Loaded,
    PoolSettings,
    Settings,
    load,
    load_client_target,
    redact_url,
    url_problem,
)
from agentpool.config import files as config_files
from agentpool.config.entries import POOL_TYPES, SECTION_TYPES, TENANT_TYPES, TOP_TYPES
from agentpool.config.settings import TenantOverrides
from agentpool.errors import ConfigError

ENVIRON = {"HOME": "/home/nobody"}
POOL = '[pools.developer_pool]\nagents = ["myapp.agents:Reviewer"]\n'
ACME = POOL + "[pools.developer_pool.tenants.acme]\n"


@pytest.fixture(autouse=True)
def _no_system_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a configuration of the machine that runs the tests out of them."""
    monkeypatch.setattr(config_files, "SYSTEM_FILE", tmp_path / "etc" / "agentpool.toml")


Loads = Callable[..., Loaded]


@pytest.fixture
def load_text(tmp_path: Path) -> Loads:
    """Load settings from a text; keywords are variables."""

    def load_it(text: str | None = POOL, flags: Mapping[str, object] | None = None, **environ: str) -> Loaded:
        if text is not None:
            (tmp_path / "agentpool.toml").write_text(text, encoding="utf-8")
        return load(flags=flags, environ=ENVIRON | environ, cwd=tmp_path)

    return load_it


def problems_of(call: Callable[..., object], *args: Any, **kwargs: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    return caught.value.problems


def pool_of(loaded: Loaded) -> PoolSettings:
    return loaded.settings.pools["developer_pool"]


# -- the file -------------------------------------------------------------------------------------------------------


def test_the_minimal_file_loads_without_a_warning(load_text: Loads, tmp_path: Path) -> None:
    loaded = load_text(MINIMAL_FILE)
    assert pool_of(loaded) == PoolSettings(role_type="developer", agents=("myapp.agents:Reviewer",))
    assert loaded.warnings == ()
    assert loaded.path == tmp_path / "agentpool.toml"


def test_a_named_file_wins_over_the_default_places(load_text: Loads, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(POOL + "max_workers = 3\n")
    (tmp_path / "agentpool.toml").write_text(POOL)
    by_flag = load(config_path=other, environ=ENVIRON, cwd=tmp_path)
    by_variable = load(environ=ENVIRON | {"AGENTPOOL_CONFIG": "other.toml"}, cwd=tmp_path)
    assert pool_of(by_flag).max_workers == pool_of(by_variable).max_workers == 3


def test_the_system_file_is_the_last_place(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "agentpool.toml").write_text(POOL)
    assert load(environ=ENVIRON, cwd=tmp_path).path == tmp_path / "etc" / "agentpool.toml"


def test_without_a_file_the_error_shows_one(tmp_path: Path) -> None:
    (problem,) = problems_of(load, environ=ENVIRON, cwd=tmp_path)
    assert "./agentpool.toml" in problem
    assert MINIMAL_FILE in problem


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    (problem,) = problems_of(load, config_path="nowhere.toml", environ=ENVIRON, cwd=tmp_path)
    assert problem.startswith("nowhere.toml: no such file")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "agentpool.toml").mkdir()
    (problem,) = problems_of(load, environ=ENVIRON, cwd=tmp_path)
    assert problem.startswith("agentpool.toml: cannot be read: Is a directory")


def test_no_file_is_needed_when_the_environment_defines_a_pool(tmp_path: Path) -> None:
    environ = ENVIRON | {"AGENTPOOL_POOLS__Build__AGENTS": "a:A, b.c:B"}
    loaded = load(environ=environ, cwd=tmp_path, require_file=False)
    assert loaded.settings.pools == {"build": PoolSettings(agents=("a:A", "b.c:B"))}
    assert loaded.path is None


@pytest.mark.parametrize("text", ["", "[pools]\n", "[redis]\nport = 7000\n"])
def test_a_file_without_pools_is_an_error_with_an_example(load_text: Loads, text: str) -> None:
    (problem,) = problems_of(load_text, text)
    assert problem.startswith("agentpool.toml: pools: no pool is defined")
    assert MINIMAL_FILE in problem


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (POOL + "min_workers 2\n", "agentpool.toml:3:13: "),
        (POOL + 'role_type = "dev\n', "agentpool.toml:3:"),
        (POOL + POOL, "agentpool.toml:3:"),
        ("a = [", "agentpool.toml:1:"),
        ("a = " + "9" * 5000, "agentpool.toml:1: "),
    ],
)
def test_a_syntax_error_names_file_and_line(load_text: Loads, text: str, place: str) -> None:
    (problem,) = problems_of(load_text, text)
    assert problem.startswith(place)
    assert "(at " not in problem or "end of document" in problem


def test_a_file_that_is_not_utf8_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "agentpool.toml").write_bytes(POOL.encode() + b'role_type = "d\xe9v"\n')
    (problem,) = problems_of(load, environ=ENVIRON, cwd=tmp_path)
    assert problem.startswith("agentpool.toml:3: is not UTF-8")


def test_a_byte_order_mark_is_read_over(load_text: Loads) -> None:
    assert pool_of(load_text("\ufeff" + POOL))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (POOL + "min_worker = 2", 'pools.developer_pool.min_worker: unknown key. Did you mean "min_workers"?'),
        ("[pool.x]\n" + POOL, 'pool: unknown key. Did you mean "pools"?'),
        ("[redis]\nulr = 'x'\n" + POOL, 'redis.ulr: unknown key. Did you mean "url"?'),
        ("[redis]\nzzz = 1\n" + POOL, "redis.zzz: unknown key. Known: url, binary,"),
        ("min_workers = 1\n" + POOL, "min_workers: unknown key. It belongs in the table of a pool, [pools.<name>]."),
        (POOL + "level = 'info'\n", "pools.developer_pool.level: unknown key. It belongs in [log]."),
        ("[redis]\ndata_dir = 'x'\n" + POOL, "redis.data_dir: unknown key. It belongs at the top of the file"),
        ("redis = 'redis://h'\n" + POOL, 'redis: must be a table, as [redis]; it is "redis://h"'),
        ("pools = 3", "pools: must be a table, as [pools]; it is 3"),
        ("[pools]\nx = 3\n", "pools.x: must be a table, as [pools.x]; it is 3"),
        (POOL + "min_workers = '2'", 'pools.developer_pool.min_workers: must be a whole number; it is "2"'),
        (POOL + "min_workers = true", "pools.developer_pool.min_workers: must be a whole number; it is true"),
        (POOL + "min_workers = 1.5", "pools.developer_pool.min_workers: must be a whole number; it is 1.5"),
        (POOL + "start_timeout = []", "pools.developer_pool.start_timeout: must be a number; it is a list"),
        (POOL + "role_type = {}", "pools.developer_pool.role_type: must be text; it is a table"),
        ("data_dir = 2020-01-01\n" + POOL, "data_dir: must be text; it is a date"),
        ("[log]\nlevel = 'x'\n" + POOL, 'log.level: must be one of "debug", "info", "warning", "error"; it is "x"'),
        ("[pools.x]\nagents = 'a:A'", "pools.x.agents: must be a list of texts"),
        ("[pools.x]\nagents = [1]", 'it is a list holding something else'),
        (POOL + '"a\\nb" = 1', 'pools.developer_pool."a\\nb": unknown key.'),
        (POOL + "audit = 1", "pools.developer_pool.audit: must be true or false; it is 1"),
        (POOL + "retry_atempts = 1", 'pools.developer_pool.retry_atempts: unknown key. Did you mean "retry_attempts"?'),
        (POOL + "running = 1", "It belongs in the table of a tenant, [pools.<name>.tenants.<tenant>]."),
        ("[tenants.acme]\n" + POOL, "tenants: unknown key. It belongs in the table of a pool, [pools.<name>]."),
        (POOL + "[pools.developer_pool.tennants.a]", 'developer_pool.tennants: unknown key. Did you mean "tenants"?'),
        (POOL + "tenants = 3", "tenants: must be a table, as [pools.developer_pool.tenants]; it is 3"),
        (POOL + "tenants.acme = 3", "tenants.acme: must be a table, as [pools.developer_pool.tenants.acme]; it is 3"),
        (ACME + "runing = 3", 'pools.developer_pool.tenants.acme.runing: unknown key. Did you mean "running"?'),
        (ACME + "tenant_running = 3", "acme.tenant_running: unknown key. It belongs in the table of a pool"),
        (ACME + "running = 'x'", 'pools.developer_pool.tenants.acme.running: must be a whole number; it is "x"'),
        (ACME + "weight = true", "pools.developer_pool.tenants.acme.weight: must be a number; it is true"),
        (ACME + "weight = 0", "pools.developer_pool.tenants.acme.weight: must be from 0.001 to 1000; it is 0"),
        ("labels = 'gpu'\n" + POOL, 'labels: must be a list of texts, as ["gpu"]; it is "gpu"'),
        ("labels = ['a b']\n" + POOL, 'labels: a label must be 1 to 64 letters, digits, dots, dashes or underscores'),
    ],
)  # fmt: skip
def test_one_fault_is_one_line(load_text: Loads, text: str, problem: str) -> None:
    problems = problems_of(load_text, text)
    assert any(line.startswith("agentpool.toml: ") and problem in line for line in problems), problems
    assert "\n" not in problems[0]


def test_every_fault_is_reported_at_once(load_text: Loads) -> None:
    text = "colour = 1\n[redis]\nport = 99999\n" + POOL + "min_workers = 9\nmax_workers = 'x'\nresult_ttl = -1\n"
    problems = problems_of(load_text, text, AGENTPOOL_HOST_IDD="x", AGENTPOOL_LEADER_LEASE="soon")
    starts = [
        "agentpool.toml: colour:",
        "AGENTPOOL_HOST_IDD:",
        "agentpool.toml: pools.developer_pool.max_workers:",
        "AGENTPOOL_LEADER_LEASE:",
        "agentpool.toml: redis.port:",
        "agentpool.toml: pools.developer_pool.result_ttl:",
    ]
    assert len(problems) == len(starts)
    assert all(line.startswith(start) for line, start in zip(problems, starts, strict=True)), problems


@given(
    key=st.text(min_size=1).filter(lambda key: key not in POOL_TYPES),
    table=st.sampled_from(["", "[redis]\n", "[log]\n", "[pools.developer_pool]\nagents = ['a:A']\n"]),
)
def test_any_unknown_key_is_reported_on_one_line(
    tmp_path_factory: pytest.TempPathFactory, key: str, table: str
) -> None:
    if key in (*TOP_TYPES, *TENANT_TYPES, "redis", "log", "pools", "tenants"):
        return
    if any(key in known for known in SECTION_TYPES.values()):
        return
    spelled = "".join(f"\\U{ord(c):08x}" for c in key if not 0xD800 <= ord(c) <= 0xDFFF)
    if len(spelled) != 10 * len(key):
        return
    path = tmp_path_factory.mktemp("any") / "agentpool.toml"
    path.write_text(f'{table}"{spelled}" = 1\n' + ("" if "pools" in table else POOL))
    (problem,) = problems_of(load, config_path=path, environ=ENVIRON)
    assert ": unknown key. " in problem
    assert len(problem.splitlines()) == 1


# -- precedence -----------------------------------------------------------------------------------------------------

SOURCES: list[tuple[str, dict[str, str], dict[str, object], str, int]] = [
    # file's line, variables, flags, who wins, value
    ("", {}, {}, "default", 15),
    ("", {"MAX_WORKERS": "16"}, {}, "flat name", 16),
    ("max_workers = 17", {"MAX_WORKERS": "16"}, {}, "file", 17),
    ("max_workers = 17", {"AGENTPOOL_POOLS__DEVELOPER_POOL__MAX_WORKERS": "18"}, {}, "variable", 18),
    ("max_workers = 17", {"AGENTPOOL_POOLS__Developer_Pool__MAX_WORKERS": " 18 "}, {}, "any case", 18),
    ("max_workers = 17", {"AGENTPOOL_POOLS__DEVELOPER_POOL__MAX_WORKERS": ""}, {}, "empty is unset", 17),
    (
        "max_workers = 17",
        {"AGENTPOOL_POOLS__DEVELOPER_POOL__MAX_WORKERS": "18", "MAX_WORKERS": "16"},
        {"pools.developer_pool.max_workers": 19},
        "flag",
        19,
    ),
    ("max_workers = 17", {}, {"pools.developer_pool.max_workers": None}, "flag not given", 17),
]


@pytest.mark.parametrize(("line", "environ", "flags", "winner", "value"), SOURCES, ids=[row[3] for row in SOURCES])
def test_precedence(
    load_text: Loads, line: str, environ: dict[str, str], flags: dict[str, object], winner: str, value: int
) -> None:
    assert pool_of(load_text(POOL + line, flags, **environ)).max_workers == value


FILE_URL = '[redis]\nurl = "redis://file:1/0"\n'
URLS: list[tuple[str, dict[str, str], dict[str, object], str | None]] = [
    ("", {}, {}, None),
    (FILE_URL, {}, {}, "redis://file:1/0"),
    (FILE_URL, {"REDIS_HOST": "host"}, {}, "redis://host:6379/0"),
    ("", {"REDIS_PORT": "7000"}, {}, "redis://localhost:7000/0"),
    ("", {"REDIS_DB": "3"}, {}, "redis://localhost:6379/3"),
    ("", {"REDIS_HOST": "::1", "REDIS_PORT": "7000", "REDIS_DB": "2"}, {}, "redis://[::1]:7000/2"),
    (FILE_URL, {"REDIS_HOST": "", "REDIS_PORT": ""}, {}, "redis://file:1/0"),
    (FILE_URL, {"REDIS_HOST": "host", "REDIS_URL": "redis://whole:2"}, {}, "redis://whole:2"),
    (FILE_URL, {"REDIS_URL": "redis://whole:2", "AGENTPOOL_REDIS__URL": "unix:///s"}, {}, "unix:///s"),
    ("", {"REDIS_PORT": "nonsense", "AGENTPOOL_REDIS__URL": "unix:///s"}, {}, "unix:///s"),
    ("", {"AGENTPOOL_REDIS__URL": "unix:///s"}, {"redis_url": "rediss://flag"}, "rediss://flag"),
    (FILE_URL, {"REDIS_URL": "redis://whole:2", "AGENTPOOL_REDIS__URL": "unix:///s"}, {"embedded": True}, None),
    ("", {"REDIS_PORT": "nonsense"}, {"embedded": True}, None),
    (FILE_URL, {}, {"embedded": False}, "redis://file:1/0"),
]


@pytest.mark.parametrize(("text", "environ", "flags", "url"), URLS)
def test_precedence_of_the_redis_url(
    load_text: Loads, text: str, environ: dict[str, str], flags: dict[str, object], url: str | None
) -> None:
    assert load_text(text + POOL, flags, **environ).settings.redis.url == url


def test_embedded_and_a_url_as_flags_contradict(load_text: Loads) -> None:
    assert "contradict" in problems_of(load_text, POOL, {"embedded": True, "redis_url": "redis://h"})[0]


def test_a_link_made_by_kubernetes_is_no_port(load_text: Loads) -> None:
    loaded = load_text(POOL, REDIS_PORT="tcp://10.0.0.1:6379", AGENTPOOL_PORT="tcp://10.0.0.2:80",
                       AGENTPOOL_SERVICE_HOST="10.0.0.2", AGENTPOOL_SERVICE_PORT_HTTP="80",
                       AGENTPOOL_PORT_80_TCP_ADDR="10.0.0.2", AGENTPOOL_MASTER_SERVICE_PORT="80")  # fmt: skip
    assert loaded.settings.redis.url is None
    assert [line.split(":")[0] for line in loaded.warnings] == ["REDIS_PORT"]


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("MIN_WORKERS", "2", "min_workers", 2),
        ("MAX_WORKERS", "3", "max_workers", 3),
        ("DEFAULT_CONCURRENCY", "5", "agents_per_worker", 5),
        ("MAX_AGENTS_PER_WORKER", "6", "agents_per_worker", 6),
        ("AGENTS_PER_WORKER", "7", "agents_per_worker", 7),
        ("HEARTBEAT_INTERVAL", "2.5", "heartbeat_interval", 2.5),
        ("HEARTBEAT_TIMEOUT", "20", "heartbeat_timeout", 20.0),
        ("WORKER_HEARTBEAT_TIMEOUT_MS", "60000", "heartbeat_timeout", 60.0),
        ("SCALE_UP_THRESHOLD", "0.8", "scale_up_threshold", 0.8),
        ("SCALE_DOWN_THRESHOLD", "0.3", "scale_down_threshold", 0.3),
        ("SCALE_COOLDOWN", "5", "scale_cooldown", 5.0),
        ("SCALE_COOLDOWN_MS", "5000", "scale_cooldown", 5.0),
        ("AGENT_TIMEOUT_MS", "1500", "task_timeout", 1.5),
    ],
)
def test_flat_names_apply_to_every_pool(load_text: Loads, name: str, text: str, key: str, value: object) -> None:
    pools = load_text(POOL + '[pools.two]\nagents = ["a:A"]\n', **{name: text}).settings.pools
    assert [getattr(pool, key) for pool in pools.values()] == [value, value]


@pytest.mark.parametrize("name", ["MIN_WORKERS", "SCALE_COOLDOWN_MS"])
def test_a_wrong_flat_name_is_named(load_text: Loads, name: str) -> None:
    (problem,) = problems_of(load_text, POOL, **{name: "many"})
    assert problem.startswith(f"{name} (for pools.developer_pool.")


# -- variables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("AGENTPOOL_DATADIR", '"AGENTPOOL_DATA_DIR"'),
        ("AGENTPOOL_REDIS_URL", '"AGENTPOOL_REDIS__URL"'),
        ("AGENTPOOL_REDIS__PORTT", '"AGENTPOOL_REDIS__PORT"'),
        ("AGENTPOOL_POOLS__DEVELOPER_POOL__MAXWORKERS", '"AGENTPOOL_POOLS__DEVELOPER_POOL__MAX_WORKERS"'),
        ("AGENTPOOL_POOLS__NEW__MAXWORKERS", '"AGENTPOOL_POOLS__NEW__MAX_WORKERS"'),
        ("AGENTPOOL_POOLS__DEVELOPER_POOL_MAX_WORKERS", '"AGENTPOOL_POOLS__DEVELOPER_POOL__MAX_WORKERS"'),
        (
            "AGENTPOOL_POOLS__DEVELOPER_POOL__TENANTS__ACME__RUNING",
            '"AGENTPOOL_POOLS__DEVELOPER_POOL__TENANTS__ACME__RUNNING"',
        ),
        ("AGENTPOOL_POOLS__DEVELOPER_POOL__AUDITS", '"AGENTPOOL_POOLS__DEVELOPER_POOL__AUDIT"'),
        ("AGENTPOOL_POOLS", "AGENTPOOL_POOLS__<POOL>__MAX_WORKERS"),
        ("AGENTPOOL_QQQQ", "AGENTPOOL_POOLS__<POOL>__MAX_WORKERS"),
        ("AGENTPOOL_", "AGENTPOOL_POOLS__<POOL>__MAX_WORKERS"),
    ],
)
def test_an_unknown_variable_names_the_nearest(load_text: Loads, name: str, hint: str) -> None:
    (problem,) = problems_of(load_text, POOL, **{name: "1"})
    assert problem.startswith(f"{name}: unknown setting. ")
    assert hint in problem


def test_a_new_pool_from_a_variable_is_lower_case_and_needs_agents(load_text: Loads) -> None:
    (problem,) = problems_of(load_text, POOL, AGENTPOOL_POOLS__DEVELOPR_POOL__MAX_WORKERS="3")
    assert "pools.developr_pool.agents: names no agent class" in problem
    assert 'Did you mean "developer_pool"?' in problem


def test_a_pools_name_may_hold_two_underscores_and_upper_case(load_text: Loads) -> None:
    text = '[pools.A__b]\nagents = ["a:A"]\n'
    assert load_text(text, AGENTPOOL_POOLS__A__B__MAX_WORKERS="3").settings.pools["A__b"].max_workers == 3


def test_a_variable_that_fits_two_pools_is_refused(load_text: Loads) -> None:
    text = '[pools.a]\nagents = ["a:A"]\n[pools.A]\nagents = ["a:A"]\n'
    (problem,) = problems_of(load_text, text, AGENTPOOL_POOLS__A__MAX_WORKERS="3")
    assert problem == "AGENTPOOL_POOLS__A__MAX_WORKERS: could mean any of the pools a, A; rename all but one"


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"REDIS_PORT": "0"}, 'REDIS_PORT: must be from 1 to 65535; it is "0"'),
        ({"REDIS_PORT": "x"}, 'REDIS_PORT: must be from 1 to 65535; it is "x"'),
        ({"REDIS_DB": "-1"}, 'REDIS_DB: must be the number of a database, as 0; it is "-1"'),
        ({"REDIS_HOST": "redis://h"}, "REDIS_HOST: must be a host name or address alone; put a URL into REDIS_URL"),
        ({"REDIS_URL": "http://h"}, 'REDIS_URL: must begin with redis://, rediss:// or unix://; it is "http://h"'),
        (
            {"AGENTPOOL_LOG__LEVEL": "loud"},
            'AGENTPOOL_LOG__LEVEL: must be one of "debug", "info", "warning", "error"; it is "loud"',
        ),
    ],
)
def test_a_wrong_variable_is_named(load_text: Loads, environ: dict[str, str], problem: str) -> None:
    assert problems_of(load_text, POOL, **environ) == (problem,)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"data_dirr": "x"}, '--data-dirr: unknown setting. Did you mean "data_dir"?'),
        ({"pools.x": 1}, "--pools.x: unknown setting. "),
        ({"log_level": "loud"}, "--log-level: must be one of"),
        ({"redis.port": "x"}, '--redis.port: must be a whole number; it is "x"'),
        ({"p.max_workers": 1}, "--p.max_workers: unknown setting. "),
        (
            {"pools.developer_pool.tenants.a.running": -1},
            "--pools.developer_pool.tenants.a.running: must be at least 0",
        ),
    ],
)
def test_a_wrong_flag_is_named(load_text: Loads, flags: dict[str, object], problem: str) -> None:
    assert problems_of(load_text, POOL, flags)[0].startswith(problem)


def test_tenants_from_everywhere(load_text: Loads) -> None:
    text = (
        ACME + "weight = 2\nrunning = 3\n"
        "[pools.developer_pool.tenants.Big-Co]\nagents = 7\n"
        "[pools.two]\nagents = ['a:A']\n[pools.two.tenants]\nacme = {queued = 1}\n"
    )
    variable = "AGENTPOOL_POOLS__DEVELOPER_POOL__TENANTS__"
    environ = {f"{variable}ACME__RUNNING": "4", f"{variable}BIG-CO__QUEUED": "0", f"{variable}NEW__WEIGHT": "0.5"}
    loaded = load_text(text, {"pools.two.tenants.acme.running": 9}, **environ)
    assert pool_of(loaded).tenants == {
        "acme": TenantOverrides(weight=2.0, running=4),
        "Big-Co": TenantOverrides(agents=7, queued=0),
        "new": TenantOverrides(weight=0.5),
    }
    assert loaded.settings.pools["two"].tenants == {"acme": TenantOverrides(queued=1, running=9)}
    assert loaded.warnings == ()


def test_a_variable_that_fits_two_tenants_is_refused(load_text: Loads) -> None:
    text = POOL + "tenants.a.running = 1\ntenants.A.running = 1\n"
    (problem,) = problems_of(load_text, text, AGENTPOOL_POOLS__DEVELOPER_POOL__TENANTS__A__RUNNING="3")
    assert problem.endswith("could mean any of the tenants a, A; rename all but one")


def test_a_tenant_of_a_misspelled_pool_is_a_new_pool_without_agents(load_text: Loads) -> None:
    (problem,) = problems_of(load_text, POOL, AGENTPOOL_POOLS__DEVELOPR_POOL__TENANTS__A__AGENTS="3")
    assert "pools.developr_pool.agents: names no agent class" in problem
    assert 'Did you mean "developer_pool"?' in problem


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("YES", True), ("on", True), ("1", True), ("False", False), ("no", False)]
)
def test_a_switch_from_a_variable(load_text: Loads, text: str, value: bool) -> None:
    assert pool_of(load_text(POOL, AGENTPOOL_POOLS__DEVELOPER_POOL__AUDIT_PAYLOAD=text)).audit_payload is value


def test_a_wrong_switch_is_named(load_text: Loads) -> None:
    (problem,) = problems_of(load_text, POOL, AGENTPOOL_POOLS__DEVELOPER_POOL__AUDIT="maybe")
    assert problem == 'AGENTPOOL_POOLS__DEVELOPER_POOL__AUDIT: must be true or false; it is "maybe"'


def test_labels(load_text: Loads) -> None:
    assert load_text("labels = ['gpu', 'eu.west']\n" + POOL).settings.labels == ("gpu", "eu.west")
    assert load_text(POOL, AGENTPOOL_LABELS="gpu, big").settings.labels == ("gpu", "big")


def times() -> st.SearchStrategy[float]:
    return st.floats(min_value=0.001, max_value=1e6)


@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "max_workers": st.integers(1, 10**6),
            "agents_per_worker": st.integers(1, 10**6),
            "start_timeout": times(),
            "scale_up_threshold": st.floats(min_value=0.3, max_value=1),
            "placement": st.sampled_from(["least_loaded", "pack", "round_robin", "tenant_affinity"]),
            "retry_attempts": st.integers(1, 10**6),
            "retry_backoff": st.floats(min_value=1, max_value=100),
            "audit_file_mb": st.floats(min_value=0.1, max_value=1e6),
            "agents": st.lists(st.sampled_from(["a:A", "b.c:B", "d:D"]), unique=True, min_size=1),
            "max_queued": st.integers(1, 10**9),
        },
    )
)
def test_variables_and_file_give_equal_settings(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("equal")
    values = {"agents": ["a:A"]} | values
    lines = "".join(f"{key} = {value!r}\n" for key, value in values.items())
    (folder / "agentpool.toml").write_text("[pools.p]\n" + lines)
    texts = {key: ",".join(value) if isinstance(value, list) else str(value) for key, value in values.items()}
    environ = {f"AGENTPOOL_POOLS__P__{key.upper()}": text for key, text in texts.items()}
    by_file = load(environ=ENVIRON, cwd=folder)
    by_environ = load(environ=ENVIRON | environ, cwd=folder / "none", require_file=False)
    assert by_file.settings.pools == by_environ.settings.pools


# -- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("", {}, "/home/nobody/.local/state/agentpool"),
        ("", {"XDG_STATE_HOME": "/var/state"}, "/var/state/agentpool"),
        ("", {"XDG_STATE_HOME": "relative"}, "/home/nobody/.local/state/agentpool"),
        ("data_dir = '~/pool'\n", {}, "/home/nobody/pool"),
        ("data_dir = '~'\n", {}, "/home/nobody"),
        ("data_dir = './.agentpool'\n", {}, "{cwd}/.agentpool"),
        ("data_dir = '/srv/../pool/'\n", {}, "/pool"),
        ("data_dir = '/file'\n", {"AGENTPOOL_DATA_DIR": "/variable"}, "/variable"),
    ],
)
def test_data_dir_is_absolute(
    load_text: Loads, tmp_path: Path, text: str, environ: dict[str, str], expected: str
) -> None:
    expected = expected.replace("{cwd}", str(tmp_path))
    assert load_text(text + POOL, **environ).settings.data_dir == expected
    assert load_client_target(environ=ENVIRON | environ, cwd=tmp_path).data_dir == expected


@pytest.mark.parametrize(("given", "expected"), [(".", ""), ("src", "/src"), ("../x", "/../x")])
def test_app_dir_is_absolute(load_text: Loads, tmp_path: Path, given: str, expected: str) -> None:
    found = Path(load_text(f"app_dir = '{given}'\n" + POOL).settings.app_dir)
    assert found.is_absolute()
    assert found == Path(f"{tmp_path}{expected}").resolve()


# -- clients --------------------------------------------------------------------------------------------------------


@pytest.fixture
def target(tmp_path: Path) -> Callable[..., ClientTarget]:
    def find(text: str | None = None, environ: Mapping[str, str] | None = None, **kwargs: Any) -> ClientTarget:
        if text is not None:
            (tmp_path / "agentpool.toml").write_text(text)
        return load_client_target(environ=ENVIRON | dict(environ or {}), cwd=tmp_path, **kwargs)

    return find


CLIENT_FILE = 'data_dir = "/file"\n[redis]\nurl = "redis://file"\nnamespace = "team"\n'
EVERYWHERE = {"REDIS_URL": "redis://env", "AGENTPOOL_REDIS__URL": "redis://own"}


@pytest.mark.parametrize(
    ("text", "environ", "kwargs", "url", "data_dir", "namespace"),
    [
        (None, {}, {}, None, "/home/nobody/.local/state/agentpool", ""),
        ('data_dir = "/file"', {}, {}, None, "/file", ""),
        (CLIENT_FILE, {}, {}, "redis://file", "/file", "team"),
        (CLIENT_FILE, {"REDIS_HOST": "h"}, {}, "redis://h:6379/0", "/file", "team"),
        (CLIENT_FILE, EVERYWHERE, {}, "redis://own", "/file", "team"),
        (CLIENT_FILE, EVERYWHERE, {"data_dir": "/given"}, None, "/given", "team"),
        (CLIENT_FILE, EVERYWHERE, {"data_dir": Path("~/x")}, None, "/home/nobody/x", "team"),
        (CLIENT_FILE, EVERYWHERE, {"url": "unix:///s"}, "unix:///s", "/file", "team"),
        (CLIENT_FILE, EVERYWHERE, {"url": "unix:///s", "data_dir": "/given"}, "unix:///s", "/given", "team"),
        (CLIENT_FILE, {"AGENTPOOL_DATA_DIR": "/var"}, {}, "redis://file", "/var", "team"),
        ("", {"AGENTPOOL_DATA_DIR": "/var", "AGENTPOOL_REDIS__NAMESPACE": "n"}, {}, None, "/var", "n"),
    ],
)
def test_a_client_finds_redis(
    target: Callable[..., ClientTarget],
    text: str | None,
    environ: dict[str, str],
    kwargs: dict[str, Any],
    url: str | None,
    data_dir: str,
    namespace: str,
) -> None:
    assert target(text, environ, **kwargs) == ClientTarget(url, data_dir, namespace, ())


def test_a_client_and_the_daemon_find_the_same_redis(load_text: Loads, target: Callable[..., ClientTarget]) -> None:
    settings = load_text(CLIENT_FILE + POOL, REDIS_HOST="h").settings
    found = target(None, {"REDIS_HOST": "h"})
    assert (found.url, found.data_dir, found.namespace) == (
        settings.redis.url,
        settings.data_dir,
        settings.redis.namespace,
    )


def test_a_client_does_not_mind_the_pools(target: Callable[..., ClientTarget]) -> None:
    found = target(CLIENT_FILE + "[pools.x]\nmin_worker = 'x'\n", {"AGENTPOOL_COLOUR": "red"})
    assert found.url == "redis://file"
    assert [line.split(":")[0] for line in found.warnings] == ["agentpool.toml", "AGENTPOOL_COLOUR"]


def test_a_clients_broken_file_matters_only_when_it_is_needed(target: Callable[..., ClientTarget]) -> None:
    assert problems_of(target, "a = [")[0].startswith("agentpool.toml:1:")
    found = target("a = [", url="redis://h")
    assert found.url == "redis://h"
    assert found.warnings[0].startswith("agentpool.toml:1:")


def test_a_clients_named_file_must_exist(target: Callable[..., ClientTarget]) -> None:
    assert problems_of(target, url="redis://h", config="nowhere.toml")[0].startswith("nowhere.toml: no such file")


@pytest.mark.parametrize(
    ("environ", "kwargs", "problem"),
    [
        ({}, {"url": "localhost:6379"}, "url: must begin with redis://"),
        ({"REDIS_PORT": "x"}, {}, "REDIS_PORT: must be from 1 to 65535"),
        ({"AGENTPOOL_REDIS__NAMESPACE": "a:b"}, {}, "AGENTPOOL_REDIS__NAMESPACE: must be 1 to 64 letters"),
    ],
)
def test_a_clients_wrong_target_is_named(
    target: Callable[..., ClientTarget], environ: dict[str, str], kwargs: dict[str, str], problem: str
) -> None:
    assert problems_of(target, None, environ, **kwargs)[0].startswith(problem)


# -- passwords ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user@host:6379/0", "redis://user@host:6379/0"),
        ("redis://:secret@host", "redis://:***@host"),
        ("rediss://user:secret@host:6379/0", "rediss://user:***@host:6379/0"),
        ("redis://user:s:e/c@ret@host", "redis://user:***@host"),
        ("unix://user:secret@/run/redis.sock", "unix://user:***@/run/redis.sock"),
        ("unix:///run/redis.sock?db=1&password=secret", "unix:///run/redis.sock?db=1&password=***"),
        ("user:secret@host", "user:***@host"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_a_password_is_hidden(url: str, shown: str) -> None:
    assert redact_url(url) == shown


@given(password=st.text(alphabet="s3cret/@:#?% []\n", min_size=3).map(lambda tail: "S3CRET" + tail))
def test_no_problem_shows_a_password(password: str) -> None:
    for scheme in ("redis", "http", "unix"):
        assert "S3CRET" not in (url_problem(f"{scheme}://user:{password}@host:6379/0") or "")


def test_no_error_of_load_shows_a_password(load_text: Loads) -> None:
    (problem,) = problems_of(load_text, '[redis]\nurl = "http://u:secret@h"\n' + POOL)
    assert "secret" not in problem
    assert "http://u:***@h" in problem


def test_settings_are_values() -> None:
    assert Settings() == Settings()
