"""The file of marks on a disk that is full: no worker dies of writing into it."""

import resource
import subprocess
import sys
from pathlib import Path

from agentpool.hosting import Marks
from agentpool.protocol.marks import FILE_BYTES, Begun, mark_path, read_marks
from agentpool_worker.marks import FileMarks, open_marks


def test_its_room_is_taken_when_it_is_made(tmp_path: Path) -> None:
    marks = open_marks(str(tmp_path), "w1")
    assert isinstance(marks, FileMarks)
    path = mark_path(str(tmp_path), "w1")
    assert path.stat().st_blocks * 512 >= FILE_BYTES, "a store into a hole ends the process when the disk is full"
    assert marks.begin("p/t1") == 1
    assert [begun.task_id for begun in read_marks(path.read_bytes())[0]] == ["p/t1"]
    assert marks.begin("p/t2", 5.0, mark=1) == 1
    assert read_marks(path.read_bytes())[0] == [Begun("p/t2", 5.0)]
    marks.end(1)
    assert read_marks(path.read_bytes())[0] == []


def test_without_room_for_it_there_are_no_marks(tmp_path: Path) -> None:
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, {resource.RLIM_INFINITY}))
from agentpool_worker.marks import open_marks
marks = open_marks({str(tmp_path)!r}, "w1")
assert marks.begin("p/t1") == 0, "nothing is marked"
print(type(marks).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout.splitlines()[-1:] == [Marks.__name__], done.stderr
