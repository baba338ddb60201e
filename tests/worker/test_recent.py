"""What a worker keeps of what it handed in, and for how long."""

import msgspec

from agentpool.protocol.tasks import ClaimedTask, TaskEnvelope, TaskHeader
from agentpool.store.tasks import EndedTask
from agentpool_worker import recent
from agentpool_worker.recent import Recent


def batch(*ids: str, verdict: str = "done", size: int = 1) -> list[tuple[ClaimedTask, EndedTask]]:
    envelope = TaskEnvelope(msgspec.Raw(b"1" * size))
    return [
        (ClaimedTask(id, TaskHeader("", "", "R", "default"), envelope), EndedTask(id, "", verdict, b"{}")) for id in ids
    ]


def ids(kept: Recent) -> list[str]:
    return [task.id for task, _ in kept.all()]


def test_what_came_to_an_outcome_is_kept_for_a_while(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(recent, "monotonic", lambda: now[0])
    kept = Recent()
    kept.add(batch("a"))
    kept.add(batch("b", verdict="back") + batch("c", verdict="retry") + batch("d", verdict="dead"))
    assert ids(kept) == ["a", "d"]
    for second in range(1, 8):
        now[0] = float(second)
        kept.add(batch(f"at {second}"))
    assert ids(kept) == [f"at {second}" for second in range(2, 8)]


def test_an_outage_makes_nothing_older(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(recent, "monotonic", lambda: now[0])
    kept = Recent()
    kept.add(batch("before"))
    now[0] = 60.0
    kept.add(batch("after"))
    assert ids(kept) == ["before", "after"], "the server may have lost it while it was away"
    now[0] = 130.0
    kept.add(batch("later"))
    assert ids(kept) == ["after", "later"]


def test_it_is_bounded() -> None:
    kept = Recent()
    for n in range(30):
        kept.add(batch(*(f"{n}/{i}" for i in range(200))))
    assert len(ids(kept)) == recent.KEPT_TASKS
    kept.add(batch("large", size=recent.KEPT_BYTES))
    assert ids(kept) == [], "one that is too large is not kept, nor what was before it"
