"""Reads the code itself: layers, headers of scripts, where keys are spelled, what the wheel holds."""

import ast
import inspect
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.seeds import SETTINGS

from agentpool.protocol.events import EventName
from agentpool.protocol.keys import Keys
from agentpool.protocol.states import OUTCOMES, AgentStatus, TaskStatus, WorkerStatus
from agentpool.store.scripts import library, script

ROOT = Path(__file__).resolve().parents[1]
LUA = ROOT / "agentpool" / "store" / "lua"
SCRIPTS = sorted(LUA.glob("*.lua"))
LIBRARIES = {path.stem: path for path in (LUA / "lib").glob("*.lua")}
PYTHON = [path for folder in ("agentpool", "workers") for path in sorted((ROOT / folder).rglob("*.py"))]

HEADER_WORDS = ("RETURNS", "AGAIN")
# Placeholders of headers, and what takes their places when a pattern of Keys is shown.
PLACEHOLDERS = {
    "pool": "{p}", "tenant": "{t}", "lane": "{lane}", "name": "{n}", "worker_id": "{w}", "id": "{id}",
    "master_id": "{m}",
    "digest": "{digest}",
}  # fmt: skip
# What stands behind the words of a pool's keys that go on, as Lua builds them.
TAILS = {
    "mailbox": "{n}", "snapshot": "{n}", "ended": "{n}", "turns": "{lane}", "errors": "{id}", "letter": "{id}",
    "key": "{digest}", "children": "{id}", "trail": "{id}",
    "host": "{m}",
}  # fmt: skip
STATUSES = {str(status) for table in (WorkerStatus, AgentStatus, TaskStatus) for status in table}
POOL_STATUSES = {"removed"}

each_script = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)


def header_of(path: Path) -> str:
    """The comment lines at the top, without their dashes."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("--"):
            break
        lines.append(line[2:].removeprefix(" "))
    return "\n".join(lines)


def body_of(path: Path) -> str:
    """The code, without comments."""
    return re.sub(r"--.*", "", path.read_text())


def entry_of(header: str, word: str) -> str:
    """What the header says behind a word, with its continuation lines."""
    match = re.search(rf"^{re.escape(word)}\s+(.*(?:\n\s+.*)*)", header, re.MULTILINE)
    return match[1] if match else ""


def included(path: Path) -> list[Path]:
    return [LIBRARIES[name] for name in entry_of(header_of(path), "@include").split()]


def key_patterns() -> set[str]:
    """Every key that `Keys` can spell, with placeholders, as headers write them."""
    keys, patterns = Keys(), set()
    for name, method in inspect.getmembers(Keys, inspect.isfunction):
        if name.startswith("_") or name.endswith("_channel"):
            continue
        parameters = list(inspect.signature(method).parameters)[1:]
        special = {"agent_id": "{p}/{n}", "task_id": "{p}/{id}"}
        patterns.add(method(keys, *(special.get(word) or PLACEHOLDERS[word] for word in parameters)))
    return patterns


# Each function of a library, and what is left of a script without them, is looked at once.
FUNCTION = re.compile(r"^local function (\w+)\(.*?^end$", re.MULTILINE | re.DOTALL)
LOCK = "lock:pool:{p}:"


def keys_spelled_in(code: str) -> set[str]:
    """The patterns of the keys that a piece of Lua builds itself, or by the functions that do nothing else."""
    found = {f"pool:{{p}}:{word}" for word in re.findall(r"POOL \.\. ':([a-z]+)'", code)}
    for word in re.findall(r"POOL \.\. ':([a-z]+):'", code):
        found |= {f"pool:{{p}}:{word}:{TAILS[word]}"} if word in TAILS else set()
    if re.search(r"POOL \.\. ':' \.\. index", code):
        lists = re.findall(r"index in ipairs\(\{([^}]*)\}\)", code)
        words = re.findall(r"'([a-z]+)'", " ".join(lists)) or re.findall(r"\bsize\('([a-z]+)'\)", code)
        found |= {f"pool:{{p}}:{word}" for word in words}
    for word in re.findall(r"\bheld\(\w+(?:\.\w+)?, ('?\w+'?)\)", code):
        for what in [word.strip("'")] if word.startswith("'") else ["tasks", "runs"]:
            found.add(f"pool:{{p}}:worker:{{w}}:{what}")
    found |= {f"tenant:{{p}}:{{t}}:{word}" for word in re.findall(r"tenant_key\([^()]+(?:\[\d\])?, '(\w+)'\)", code)}
    found |= {f"tenant:{{p}}:{{t}}:{word}" for word in re.findall(r"(?:read|add_to)_window\([^,]+, '(\w+)'", code)}
    found |= {f"tenant:{{p}}:{{t}}:{word}" for word in re.findall(r"'tenant:' [^']*':' [^']*':(\w+)'", code)}
    for made, pattern in (
        (r"\bprocess_key\(|prefix \.\. 'process:'", "process:{w}"),
        (r"\btask_key\(", "task:{p}/{id}"),
        (r"\bagent_key\(|prefix \.\. 'agent:'", "agent:{p}/{n}"),
        (r"\blane_key\(", "pool:{p}:lane:{lane}:{t}"),
        (r"holds\('leader'|\btake\('leader'|lock:pool:' \.\. pool \.\. ':leader'", LOCK + "leader"),
        (r"holds\('placement'", LOCK + "placement"),
        (r"holds\(ARGV|\btake\(ARGV|lock:pool:' \.\. pool \.\. ':' \.\. ARGV", LOCK + "{lock}"),
    ):
        found |= {pattern} if re.search(made, code) else set()
    return found


def keys_built_by(path: Path) -> set[str]:
    """The patterns of all keys that a script may build, by itself or in the functions that it calls."""
    functions = {match[1]: match[0] for part in included(path) for match in FUNCTION.finditer(body_of(part))}
    reached, waiting, found = set[str](), [body_of(path)], set[str]()
    while waiting:
        code = waiting.pop()
        found |= keys_spelled_in(code)
        for name in set(re.findall(r"\b(\w+)\(", code)) & functions.keys() - reached:
            reached.add(name)
            waiting.append(functions[name].partition("\n")[2])
    return found


# -- layers -----------------------------------------------------------------------------------------------------


def test_imports_point_down() -> None:
    program = Path(sys.executable).parent / "lint-imports"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'workers'}"}
    done = subprocess.run(
        [program, "--no-cache"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_in_agentpool_imports_the_worker_package() -> None:
    for path in (ROOT / "agentpool").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("agentpool_worker")], path


# -- headers of scripts -----------------------------------------------------------------------------------------


@each_script
def test_header_is_a_full_signature(path: Path) -> None:
    header = header_of(path)
    first = header.splitlines()[0]
    assert re.match(r"^[A-Z].*", first), f"{path.name}: begins with a sentence"
    assert "." in header.split("\n\n")[0], f"{path.name}: the summary is a sentence"
    assert entry_of(header, "@include").split()[0] == "base"
    assert re.search(r"^KEYS\[1\]\s+pool:\{p\}\s+HASH$", header, re.MULTILINE)
    assert "KEYS[2]" not in path.read_text(), "other keys are built, as BUILDS tells"
    for word in ("BUILDS", "RETURNS", "AGAIN"):
        assert entry_of(header, word), f"{path.name}: no {word}"


@each_script
def test_header_names_each_argument(path: Path) -> None:
    header, body = header_of(path), body_of(path)
    documented = {int(n): bool(more) for n, more in re.findall(r"^ARGV\[(\d+)(…?)\]", header, re.MULTILINE)}
    fixed = {n for n, more in documented.items() if not more}
    variadic = {n for n, more in documented.items() if more}
    used = {int(n) for n in re.findall(r"ARGV\[(\d+)\]", body)}
    starts = {
        int(n) for n in re.findall(r"(?:for i = (?=\d+, (?:#ARGV|last_\w+))|unpack\(ARGV, |local place = )(\d+)", body)
    }
    assert used == fixed, f"{path.name}: body uses {sorted(used)}, header names {sorted(fixed)}"
    assert starts == variadic, f"{path.name}: body unpacks from {starts}, header says {variadic}"
    assert sorted(documented) == list(range(4, 4 + len(documented))), f"{path.name}: indexes have a gap"


@each_script
def test_header_builds_only_keys_that_python_can_spell(path: Path) -> None:
    known = key_patterns()
    built = entry_of(header_of(path), "BUILDS").split()
    expanded = {
        pattern.replace("{lock}", lock) for pattern in built for lock in ("leader", "placement")
    }  # a lock's name is an argument of two scripts
    assert expanded <= known, f"{path.name}: {sorted(expanded - known)}"
    assert len(built) == len(set(built)), f"{path.name}: named twice"


@each_script
def test_header_names_each_key_that_is_built(path: Path) -> None:
    named, built = set(entry_of(header_of(path), "BUILDS").split()), keys_built_by(path)
    assert built - named == set(), f"{path.name}: not named"
    assert named - built == set(), f"{path.name}: named, but never built"


@each_script
def test_header_includes_what_the_body_needs(path: Path) -> None:
    functions = {
        name: library
        for library, source in LIBRARIES.items()
        for name in re.findall(r"^local function (\w+)", source.read_text(), re.MULTILINE)
    }
    assembled = "\n".join(body_of(part) for part in (*included(path), path))
    assembled = re.sub(r"'[^'\n]*'", "''", assembled)  # the words of commands are no calls
    libraries = {part.stem for part in included(path)}
    needed = {functions[name] for name in re.findall(r"(?<!\.)\b(\w+)\(", assembled) if name in functions}
    assert needed <= libraries, f"{path.name}: needs {sorted(needed - libraries)}"


def needed_by(path: Path) -> set[str]:
    """The files of the library that one of them needs, as its first lines say."""
    return set(re.findall(r"\b(\w+)\.lua\b", header_of(path).partition("Needs ")[2].partition("\n\n")[0]))


@pytest.mark.parametrize("path", LIBRARIES.values(), ids=lambda path: path.stem)
def test_a_file_of_the_library_names_those_whose_variables_it_uses(path: Path) -> None:
    variables = {
        name: library
        for library, source in LIBRARIES.items()
        for names in re.findall(r"^local ((?!function)[\w, ]+?)(?: =|$)", body_of(source), re.MULTILINE)
        for name in names.split(", ")
    }
    body = re.sub(r"'[^'\n]*'", "''", body_of(path))
    own = set(re.findall(r"local (?:function )?([\w, ]+)", body))
    own = {name for names in own for name in names.split(", ")} | set(re.findall(r"(\w+)(?=[\w, ]*\))", body))
    used = {variables[name] for name in set(re.findall(r"(?<![.\w])\w+", body)) - own if name in variables}
    assert used - {path.stem} <= needed_by(path)


@each_script
def test_header_includes_what_its_files_need_in_their_order(path: Path) -> None:
    libraries = [part.stem for part in included(path)]
    for place, part in enumerate(included(path)):
        assert needed_by(part) <= set(libraries[:place]), part.stem


@each_script
def test_header_flags_are_known(path: Path) -> None:
    flags = entry_of(header_of(path), "@flags")
    writes = re.search(
        r"redis\.p?call\('(HSET|ZADD|SET|MSET|MSETEX|DEL|SADD|SREM|SPOP|ZREM|HDEL|XADD|HINCRBY|ZPOPMIN|P?EXPIRE)'",
        body_of(path),
    )
    assert flags in ("", "allow-oom", "no-writes")
    if flags == "no-writes":
        assert not writes
    registered = f"function_name = '{script(path.stem).function}', " + (
        f"flags = {{'{flags}'}}" if flags else "callback"
    )
    assert registered in library().text


def test_only_what_adds_something_new_is_refused_when_memory_is_full() -> None:
    refused = {path.stem for path in SCRIPTS if not entry_of(header_of(path), "@flags")}
    assert refused == {
        "place_agent", "submit_tasks", "follow_task", "report_progress", "replay_task", "limit_tenant",
    }  # fmt: skip


# -- bodies of scripts ------------------------------------------------------------------------------------------


@each_script
def test_script_has_one_caller(path: Path) -> None:
    calls = [
        (source.relative_to(ROOT), match)
        for source in PYTHON
        for match in re.findall(rf'\.call\(\s*"{path.stem}"', source.read_text())
    ]
    assert len(calls) == 1, calls
    assert calls[0][0].parent == Path("agentpool/store")


def test_no_call_names_a_script_that_is_not_there() -> None:
    called = {name for source in PYTHON for name in re.findall(r'\.call\(\s*"(\w+)"', source.read_text())}
    assert called == {path.stem for path in SCRIPTS}


@pytest.mark.parametrize("path", [*SCRIPTS, *LIBRARIES.values()], ids=lambda path: path.stem)
def test_script_stays_away_from_what_grows_or_spoils(path: Path) -> None:
    body = body_of(path)
    commands = set(re.findall(r"redis\.p?call\('(\w+)'", body))
    assert not commands & {"KEYS", "SCAN", "SSCAN", "ZSCAN", "HSCAN", "INCR", "LPUSH", "RPUSH", "SORT"}
    assert all(command.isupper() for command in commands)
    assert "cjson.decode" not in body
    assert "pcall" not in re.sub(r"redis\.pcall\('(PUBLISH|INFO)'", "", body), "what a user may not do"


ITEMS_MAX = 100
# What is read whole although no argument bounds it: it is as long as people wrote settings or set limits, or as one
# record.
WHOLE = {
    "POOL .. ':lanes'", "POOL .. ':types'", "POOL .. ':labels'", "POOL .. ':limits'", "POOL .. ':errors:' .. id",
    "held(worker, 'cancels'", "held(worker, 'agents'", "key", "tenant_key(tenant, what", "tenant_key(tenant, 'agents'",
}  # fmt: skip


OF_ALL = {"mend_pool"}
"""Repairs that must see everything at once, as they count it: as long as the transaction in which doctor found that."""


@pytest.mark.parametrize(
    "path", [path for path in (*SCRIPTS, *LIBRARIES.values()) if path.stem not in OF_ALL], ids=lambda path: path.stem
)
def test_script_touches_a_hundred_items_at_most(path: Path) -> None:
    body = body_of(path)
    whole = re.findall(r"redis\.call\('(?:SMEMBERS|HGETALL|HKEYS|HVALS)', ((?:held|tenant_key)\([^)]*|[^)]*)\)", body)
    assert set(whole) <= WHOLE
    for command, rest in re.findall(r"redis\.call\('(Z\w*RANGE\w*|SPOP|SRANDMEMBER|ZPOPMIN)', ([^\n]*)", body):
        if command in ("ZRANGE", "ZREVRANGE"):
            assert not re.search(r"0, -1", rest), f"{command} {rest}"
        if command.endswith("BYSCORE"):
            assert "LIMIT" in rest or "LIMIT" in body.partition(rest)[2][:80], f"{command} {rest}"
    bounds = [int(bound) for bound in re.findall(r"at most (\d+)", header_of(path).replace("\n", " "))]
    assert all(bound <= ITEMS_MAX for bound in bounds)


@each_script
def test_each_list_of_ids_in_a_header_has_its_bound(path: Path) -> None:
    header = header_of(path)
    lists = re.findall(r"^ARGV\[\d+…\] ([^\n]*(?:\n\s+[^\n]*)*)", header, re.MULTILINE)
    lists += re.findall(r"^ARGV\[\d+\]\s+limit ([^\n]*)", header, re.MULTILINE)
    for text in lists:
        of_one = (
            "of the process hash" in text
            or "of settings" in text
            or "of the host" in text
            or "each task that had begun" in text
        )
        assert of_one or re.search(r"at most \d+", text), text


@pytest.mark.parametrize("path", [*SCRIPTS, *LIBRARIES.values()], ids=lambda path: path.stem)
def test_every_state_of_a_script_is_in_the_tables(path: Path) -> None:
    body = re.sub(r"'HMGET', (?:[^()]|\([^()]*\))*\)", "", body_of(path))  # names of fields
    states = set(re.findall(r"'status', '(\w+)'", body))
    states |= set(re.findall(r"\b(?:status|state)\s*[=~]=\s*'(\w+)'", body))
    states |= set(re.findall(r"HGET', [^\n]*'status'\)\s*[=~]=\s*'(\w+)'", body))
    states |= set(re.findall(r"(?:end_agent|forget_worker)\(\w+, '(\w+)'", body))
    outcomes = set(re.findall(r"(?:plain_outcome|finish_task)\(\w+, '(\w+)'", body))
    outcomes |= set(re.findall(r"empty_mailbox\(\w+, \d+, '(\w+)'", body))
    assert states <= STATUSES | POOL_STATUSES
    assert outcomes <= {str(outcome) for outcome in OUTCOMES}


def test_every_event_of_a_script_has_a_name() -> None:
    names = {str(name) for name in EventName}
    found = set()
    for path in (*SCRIPTS, *LIBRARIES.values()):
        body = body_of(path)
        found |= set(re.findall(r"\bnote\('([a-z_.]+)',", body))
        found |= {f"agent.{status}" for status in re.findall(r"end_agent\(\w+, '(\w+)'", body)}
    assert found <= names
    assert len(found) > 10


# -- keys -------------------------------------------------------------------------------------------------------

KEY = re.compile(r"^(?:pool|agent|process|task|tenant|lock|worker|client):|:(?:pool|agent|process|task|tenant|lock):")


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_keys_are_spelled_in_one_module(path: Path) -> None:
    if path == ROOT / "agentpool" / "protocol" / "keys.py":
        return
    tree = ast.parse(path.read_text())
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    spelled = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in prose
        and KEY.search(node.value)
        and " " not in node.value  # a message to people
    ]
    assert not spelled, f"{path}: {spelled}"


def test_every_key_is_used_and_has_a_type() -> None:
    types = ("SET", "ZSET", "HASH", "STRING", "STREAM")
    for name, method in inspect.getmembers(Keys, inspect.isfunction):
        if not name.startswith("_") and not name.endswith("_channel"):
            assert (method.__doc__ or "").startswith(types), name


# -- the wheel --------------------------------------------------------------------------------------------------


def test_wheel_has_exactly_two_packages(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
    tops = {file.split("/")[0] for file in files}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"agentpool", "agentpool_worker"}
    for path in (*SCRIPTS, *LIBRARIES.values()):
        assert str(path.relative_to(ROOT)) in files, "scripts are in the wheel"
    assert "agentpool/py.typed" in files


def test_seeds_apply_settings_that_scripts_read() -> None:
    read = set()
    for path in (*SCRIPTS, *LIBRARIES.values()):
        for words in re.findall(r"HMGET', POOL, ([^)]*)\)|HGET', POOL, ('\w+')", body_of(path)):
            read |= set(re.findall(r"'(\w+)'", "".join(words)))
    decided = {"status", "schema", "tick", "hold_until", "fence", "desired", "floor"}
    decided |= {"schema_min", "release", "scaled_at", "renewing", "server_run", "restarted_at", "unsure_until"}
    measured = {
        "queued",
        "rate",
        "rate_since",
        "rate_count",
        "turn",
        "virtual_time",
        "delayed",
        "mean_ms",
        "clearing",
        "room_wanted_at",
    }
    assert read - decided - measured - {"labels"} <= set(SETTINGS)
