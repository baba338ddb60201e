"""What a worker's file of marks says when the process has died, and who is blamed."""

from agentpool.protocol.marks import FILE_BYTES, SLOT_BYTES, Begun, agent_mark, blame, mark_path, read_marks, write_mark

LONGEST = "p" * 64 + "/" + "t" * 22


def file_of(*marks: tuple[str, float], on_cpu: int = 0) -> bytes:
    memory = bytearray(FILE_BYTES)
    memory[:4] = on_cpu.to_bytes(4, "little")
    for number, mark in enumerate(marks, 1):
        write_mark(memory, number, "x" * SLOT_BYTES, 1.0)  # who had it before leaves nothing behind
        write_mark(memory, number, *mark)
    return bytes(memory)


def test_marks_come_back() -> None:
    assert read_marks(file_of()) == ([], "")
    data = file_of(("p/a", 0.0), (LONGEST, 12.5), on_cpu=2)
    assert read_marks(data) == ([Begun("p/a"), Begun(LONGEST, 12.5)], LONGEST)
    assert read_marks(file_of(("p/a", 0.0), on_cpu=7)) == ([Begun("p/a")], ""), "its mark was taken away meanwhile"
    assert read_marks(b"") == ([], "")
    assert str(mark_path("/marks", "w1")) == "/marks/w1.marks"


def test_the_one_that_had_the_cpu_is_suspect_and_nobody_else() -> None:
    begun = [Begun("p/a", 9.0), Begun("p/b", 9.0)]
    assert blame(begun, "p/a", by_itself=True) == {"p/a": "suspect", "p/b": "started"}
    assert blame(begun, "p/a", by_itself=False) == {"p/a": "suspect", "p/b": "started"}


def test_where_none_had_it_all_are_or_none() -> None:
    begun = [Begun("p/a"), Begun("p/b")]
    assert blame(begun, "", by_itself=True) == dict.fromkeys(("p/a", "p/b"), "suspect")
    assert blame(begun, "", by_itself=False) == dict.fromkeys(("p/a", "p/b"), "started")
    assert blame([], "", by_itself=True) == {}


def test_of_agents_only_the_one_that_had_the_cpu_is_named() -> None:
    begun = [Begun("p/a"), Begun(agent_mark("one")), Begun(agent_mark("n" * 64))]
    assert blame(begun, agent_mark("one"), by_itself=True) == {"p/a": "started", "@one": "suspect"}
    assert blame(begun, agent_mark("one"), by_itself=False, killed_at=9.5)["@one"] == "suspect", "it has no deadline"
    assert blame(begun, "p/a", by_itself=True) == {"p/a": "suspect"}
    assert blame(begun, "", by_itself=True) == {"p/a": "suspect"}
    assert read_marks(file_of((agent_mark("n" * 64), 0.0), on_cpu=1))[1] == agent_mark("n" * 64)


def test_who_blocked_past_its_own_time_is_overdue() -> None:
    begun = [Begun("p/a", 9.0), Begun("p/b", 9.0), Begun("p/c")]
    assert blame(begun, "p/a", by_itself=False, killed_at=9.5) == {"p/a": "overdue", "p/b": "started", "p/c": "started"}
    assert blame(begun, "p/a", by_itself=False, killed_at=8.5)["p/a"] == "suspect"
    assert blame(begun, "p/c", by_itself=False, killed_at=9.5)["p/c"] == "suspect", "it had all the time there is"
    assert "overdue" not in blame(begun, "", by_itself=False, killed_at=9.5).values()
