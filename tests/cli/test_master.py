"""`agentpool-master`: what check finds, and one clear line for whatever is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from support.master import clean_environ

from agentpool.cli import checking
from agentpool.cli import master as program
from agentpool.cli.checking import Report, check_everything
from agentpool.config import load

POOLS = """
[pools.slow]
agents = ["hangs:Echo"]
[pools.wrong]
agents = ["module_that_does_not_exist:Echo"]
"""


def check_in(folder: Path, redis_url: str, text: str = "", namespace: str = "") -> Report:
    config = folder / "agentpool.toml"
    space = f'namespace = "{namespace}"\n' if namespace else ""
    config.write_text(f'app_dir = "{folder}"\n[redis]\nurl = "{redis_url}"\n{space}{text}')
    return check_everything(lambda: load(config_path=str(config), flags={}))


def test_a_module_that_hangs_is_an_error_line(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "IMPORT_TIMEOUT_S", 2.0)
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(600)\n")
    report = check_in(tmp_path, redis_url, POOLS)
    assert len(report.errors) == 2
    assert report.errors[0].startswith('pool "slow": importing its agents did not end within 2 s.')
    assert report.errors[1].startswith('pool "wrong": ')
    assert report.facts["role"] == "master", "the server is asked all the same"


@pytest.mark.parametrize(("namespace", "faults"), [("", 1), ("mine", 0), ("other", 1)])
def test_keys_that_may_not_be_written_are_an_error(tmp_path: Path, redis_url: str, namespace: str, faults: int) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.execute_command("ACL", "SETUSER", "narrow", "on", ">right", "~mine:*", "&*", "+@all")
        try:
            url = redis_url.replace("unix://", "unix://narrow:right@")
            report = check_in(tmp_path, url, '[pools.p]\nagents = ["json:Echo"]', namespace)
        finally:
            client.execute_command("ACL", "DELUSER", "narrow")
    assert sum("the user's ACL does not permit" in line for line in report.errors) == faults


@pytest.mark.parametrize("as_json", [False, True])
def test_a_bug_is_one_line_that_says_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(program, "_load", fail)
    monkeypatch.setattr(sys, "argv", ["agentpool-master", "check", *(["--json"] if as_json else [])])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    message = json.loads(err)["error"]["message"] if as_json else err
    assert "internal error: ZeroDivisionError: odd (at " in message
    assert "test_master.py:" in message
    assert not as_json or json.loads(err)["error"]["code"] == "INTERNAL"


def test_an_output_that_is_full_is_one_line(tmp_path: Path) -> None:
    code = "from agentpool.cli.master import main; main()"
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", code, "check", "--data-dir", str(tmp_path)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr == "agentpool-master: Could not write the output: No space left on device.\n"


def test_a_master_has_nothing_to_do_where_agents_live_in_programs(tmp_path: Path, redis_url: str) -> None:
    (tmp_path / "agentpool.toml").write_text('[pools.p]\nagents = ["json:Echo"]\n')
    done = subprocess.run(
        [Path(sys.executable).parent / "agentpool-master", "run", "--data-dir", tmp_path / "data"],
        cwd=tmp_path,
        env=clean_environ(USE_MULTIPROCESSING="false"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "USE_MULTIPROCESSING is off" in done.stderr
    assert "Unset it" in done.stderr
    assert not (tmp_path / "data").exists()
