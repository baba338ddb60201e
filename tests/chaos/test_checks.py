"""A history in which all is well passes, and each way of breaking it is named."""

import copy
from collections.abc import Callable

import msgspec
import pytest
from chaos.checks import CHECKS, Record, check_all
from chaos.effects import Effect, Effects
from chaos.history import Fence, Loss, Operation, Outcome

SOUND_AT = 100.0


def _effects(*effects: Effect) -> Effects:
    found = Effects()
    for effect in effects:
        found.take(effect)
    return found


def _run(of: str, task: str, began: float, ended: float | None, how: str = "returned", **facts: object) -> list[Effect]:
    begin = Effect("begin", of, began, task=task, worker="w1", pid=1, tenant="small", agent_type="Clerk")
    begin = msgspec.structs.replace(begin, **facts)
    return [begin, *([] if ended is None else [Effect("end", of, ended, how)])]


def _life(of: str, began: float, ended: float, **facts: object) -> list[Effect]:
    start = Effect("start", of, began, agent="p/a", agent_type="Sole", worker="w1", pid=1, fence=1)
    count = round((ended - began) / 0.05)
    ticks = [Effect("tick", of, began + (ended - began) * step / count) for step in range(1, count + 1)]
    return [msgspec.structs.replace(start, **facts), *ticks]


def _sound() -> Record:
    """A spawn, a task of the agent, one that a killed worker gave back, one with a key, a refusal, a cancelled one."""
    operations = [
        Operation(0, "spawn", 100.0, "acknowledged", 100.5, agent="p/a"),
        Operation(1, "submit", 101.0, "acknowledged", 101.1, tasks=("p/t1",), agent="p/a", told="r1"),
        Operation(2, "submit", 101.0, "acknowledged", 101.1, tasks=("p/t2",), tenant="small", told="r3"),
        Operation(3, "submit", 101.0, "unknown", 104.0, key="k"),
        Operation(4, "submit", 104.0, "acknowledged", 104.1, tasks=("p/t3",), key="k", told="r4"),
        Operation(5, "submit", 105.0, "refused", 105.1, error="AgentLimitError: at its limit"),
        Operation(6, "submit", 106.0, "acknowledged", 106.1, tasks=("p/t4",), delay=1.0),
        Operation(7, "cancel", 106.2, "acknowledged", 106.3, tasks=("p/t4",)),
        Operation(8, "run", 107.0, "acknowledged", 107.3, told="r6"),
        Operation(9, "spawn", 100.0, "acknowledged", 100.5, agent="p/b"),
        Operation(10, "terminate", 108.0, "acknowledged", 108.1, agent="p/b"),
    ]
    effects = _effects(
        *_life("l1", 100.4, 103.0, fence=1),
        *_run("r1", "p/t1", 101.2, 101.5, agent="p/a", fence=1, op=1, tenant="default"),
        *_run("r2", "p/t2", 101.2, None, op=2),
        *_life("l2", 103.5, 110.0, fence=2, worker="w2", pid=2),
        *_run("r3", "p/t2", 102.5, 102.8, op=2, worker="w2", pid=2),
        *_run("r4", "p/t3", 104.2, 104.4, op=3, worker="w2", pid=2),
        *_run("r5", "p/t4", 107.1, 107.2, "cancelled", op=6, worker="w2", pid=2),
        *_run("r6", "p/t5", 107.1, 107.2, op=8, worker="w2", pid=2),
    )
    return Record(
        operations=operations,
        effects=effects,
        outcomes={
            "p/t1": Outcome("succeeded", "r1", "w1"),
            "p/t2": Outcome("succeeded", "r3", "w2"),
            "p/t3": Outcome("succeeded", "r4", "w2"),
            "p/t4": Outcome("cancelled", "", "w2", "TaskCancelled: on request"),
            "p/t5": Outcome("succeeded", "r6", "w2"),
        },
        alive=frozenset({"p/a"}),
        ended={"p/b": "agent.terminated: on request"},
        losses=[Loss("w1", 102.4, "killed by SIGKILL", "host-0", excused="worker killed")],
        fences=[
            Fence("p: fence", 5, 100.0),
            Fence("p: fence", 6, 101.0),
            Fence("p/a", 1, 100.0),
            Fence("p/a", 2, 104.0),
        ],
        limits={"small": 3},
    )


def test_a_sound_history_passes() -> None:
    assert check_all(_sound()) == []


def _lost_outcome(record: Record) -> None:
    del record.outcomes["p/t3"]


def _left_unfinished(record: Record) -> None:
    record.unfinished = frozenset({"p/unknown"})


def _ran_without_trace(record: Record) -> None:
    del record.outcomes["p/t5"]


def _changed_outcome(record: Record) -> None:
    record.changed["p/t1"] = "succeeded became failed"


def _told_otherwise(record: Record) -> None:
    record.operations[2].told = "r2"


def _told_of_nothing(record: Record) -> None:
    record.operations[8].told = "r99"


def _waited_in_vain(record: Record) -> None:
    record.operations[2].unheard = "TaskTimedOut: it goes on"


def _success_of_another(record: Record) -> None:
    record.outcomes["p/t3"] = Outcome("succeeded", "r3", "w2")
    record.operations[4].told = ""


def _success_of_a_dead_run(record: Record) -> None:
    record.outcomes["p/t2"] = Outcome("succeeded", "r2", "w1")
    record.operations[2].told = ""


def _success_elsewhere(record: Record) -> None:
    record.outcomes["p/t3"] = Outcome("succeeded", "r4", "w9")


def _failed_for_nothing(record: Record) -> None:
    record.outcomes["p/t2"] = Outcome("failed", "", "w2", "LookupError: x")
    record.operations[2].told = ""


def _cancelled_by_nobody(record: Record) -> None:
    record.operations[7].tasks = ()


def _blamed_too_early(record: Record) -> None:
    record.outcomes["p/t2"] = Outcome("worker_lost", "", "w2", "WorkerLost: 3 times")
    record.operations[2].told = ""


def _run_raised(record: Record) -> None:
    record.operations[8].told, record.operations[8].error = "", "TaskFailed: x"


def _ran_as_two_tasks(record: Record) -> None:
    record.effects.by_op[2].append(record.effects.runs["r4"])


def _key_means_two(record: Record) -> None:
    record.operations[3].tasks = ("p/t9",)
    record.outcomes["p/t9"] = Outcome("succeeded", "r1", "w1")


def _refused_and_ran(record: Record) -> None:
    record.effects.by_op[5] = record.effects.by_op[2]


def _began_early(record: Record) -> None:
    record.operations[6].delay = 1.3


def _agent_vanished(record: Record) -> None:
    record.alive = frozenset()


def _agent_outlived_its_end(record: Record) -> None:
    record.alive = frozenset({"p/a", "p/b"})


def _refused_agent_lives(record: Record) -> None:
    record.operations[0].answer = "refused"


def _ran_twice_at_once(record: Record) -> None:
    record.effects.lives["l1"].spans[-1][1] = 104.5


def _task_ran_twice_at_once(record: Record) -> None:
    for name in ("r3", "r4"):
        first = record.effects.runs[name].first
        facts = {"agent_type": "Sole", "task": "p/t2", "pid": int(name[1])}
        record.effects.runs[name].first = msgspec.structs.replace(first, **facts)
    record.effects.runs["r3"].spans[-1][1] = 104.5
    record.effects.by_task["p/t2"] = [record.effects.runs["r3"], record.effects.runs["r4"]]
    del record.effects.by_task["p/t3"]


def _fence_went_back(record: Record) -> None:
    record.fences.append(Fence("p: fence", 5, 105.0))


def _fence_given_twice(record: Record) -> None:
    life = record.effects.lives["l2"]
    life.first = msgspec.structs.replace(life.first, fence=1)


def _old_effect_accepted(record: Record) -> None:
    for effect in _run("r9", "p/t1", 104.0, 104.2, agent="p/a", fence=2, op=1, worker="w2", pid=2, tenant="default"):
        record.effects.take(effect)


def _over_its_limit(record: Record) -> None:
    for n in range(4):
        for effect in _run(f"x{n}", "p/t3", 104.2, 104.4, op=3, worker="w2"):
            record.effects.take(effect)


def _lost_for_nothing(record: Record) -> None:
    record.losses[0] = msgspec.structs.replace(record.losses[0], excused="")


def _foreign_error(record: Record) -> None:
    record.operations[3].answer = "broke"


def _never_answered(record: Record) -> None:
    record.operations[3].answer = "pending"


BROKEN: dict[Callable[[Record], None], str] = {
    _lost_outcome: "each accepted task has one outcome",
    _left_unfinished: "each accepted task has one outcome",
    _ran_without_trace: "each accepted task has one outcome",
    _changed_outcome: "each accepted task has one outcome",
    _told_otherwise: "callers were told what is recorded",
    _told_of_nothing: "callers were told what is recorded",
    _waited_in_vain: "callers were told what is recorded",
    _success_of_another: "a recorded success is of a run that returned",
    _success_of_a_dead_run: "a recorded success is of a run that returned",
    _success_elsewhere: "a recorded success is of a run that returned",
    _failed_for_nothing: "tasks ended as they should",
    _cancelled_by_nobody: "tasks ended as they should",
    _blamed_too_early: "tasks ended as they should",
    _run_raised: "calls that waited got a result",
    _ran_as_two_tasks: "one task for each request, none for a refusal",
    _key_means_two: "one task for each request, none for a refusal",
    _refused_and_ran: "one task for each request, none for a refusal",
    _began_early: "nothing began before its time",
    _agent_vanished: "spawned agents live, or ended with a reason",
    _agent_outlived_its_end: "spawned agents live, or ended with a reason",
    _refused_agent_lives: "spawned agents live, or ended with a reason",
    _ran_twice_at_once: "what must not run twice ran once at a time",
    _task_ran_twice_at_once: "what must not run twice ran once at a time",
    _fence_went_back: "fences only grew",
    _fence_given_twice: "fences only grew",
    _old_effect_accepted: "no effect of an old fence was accepted",
    _over_its_limit: "limits were kept",
    _lost_for_nothing: "nobody was given up without a cause",
    _foreign_error: "every call was answered, by ours",
    _never_answered: "every call was answered, by ours",
}


@pytest.mark.parametrize("corrupt", BROKEN, ids=lambda corrupt: corrupt.__name__.strip("_"))
def test_what_is_broken_is_named(corrupt: Callable[[Record], None]) -> None:
    record = copy.deepcopy(_sound())
    corrupt(record)
    assert BROKEN[corrupt] in {violation.check for violation in check_all(record)}


def test_every_check_is_seen_to_fail() -> None:
    assert set(BROKEN.values()) == set(CHECKS)


def test_limits_do_not_count_what_a_lost_worker_or_an_ended_agent_runs_on() -> None:
    record = _sound()
    for n in range(2):
        for effect in _run(f"x{n}", "p/t3", 101.3, 104.4, op=3, worker="w1"):  # given up at 102.4
            record.effects.take(effect)
        for effect in _run(f"y{n}", "p/t3", 103.0, 103.4, op=3, worker="w2"):
            record.effects.take(effect)
    assert [violation for violation in check_all(record) if violation.check == "limits were kept"] == []


def test_a_process_that_was_frozen_did_not_run_meanwhile() -> None:
    effects = _effects(
        *_life("l1", 100.0, 101.0), Effect("tick", "l1", 110.0), *_life("l2", 105.0, 112.0, pid=2, fence=2)
    )
    assert effects.lives["l1"].spans == [[100.0, 101.0], [110.0, 110.0]]
    assert [each for each in check_all(Record(effects=effects)) if each.check.startswith("what must not")] == []
