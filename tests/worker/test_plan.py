"""What a worker does to hold what it shall hold."""

from agentpool.protocol.records import DesiredAgent, WorkerView
from agentpool.protocol.states import WorkerStatus
from agentpool_worker.plan import CancelRun, CheckMailbox, Held, StartAgent, Step, StopAgent, diff, next_step


def desired(id: str, incarnation: int = 1, waiting: int = 0) -> DesiredAgent:
    return DesiredAgent(agent_id=id, agent_type="T", incarnation=incarnation, waiting=waiting)


def view(*agents: DesiredAgent, cancels: tuple[str, ...] = ()) -> WorkerView:
    return WorkerView(version=7, status=WorkerStatus.READY, agents=agents, cancels=cancels)


def test_nothing_to_do() -> None:
    assert diff(view(desired("p/a")), {"p/a": Held(1)}) == []


def test_what_is_missing_is_started_and_what_is_too_much_stopped_first() -> None:
    assert diff(view(desired("p/new")), {"p/old": Held(1)}) == [StopAgent("p/old"), StartAgent(desired("p/new"))]


def test_another_incarnation_is_another_agent() -> None:
    assert diff(view(desired("p/a", 3)), {"p/a": Held(1)}) == [StopAgent("p/a"), StartAgent(desired("p/a", 3))]


def test_mail_of_idle_agents_is_looked_at() -> None:
    agents = view(desired("p/a", waiting=2), desired("p/b", waiting=2), desired("p/c"))
    held = {"p/a": Held(1, idle=True), "p/b": Held(1), "p/c": Held(1, idle=True)}
    assert diff(agents, held) == [CheckMailbox("p/a")]


def test_tasks_are_cancelled_whether_they_run_already_or_not() -> None:
    assert diff(view(cancels=("p/t1", "p/t2")), {}) == [CancelRun("p/t1"), CancelRun("p/t2")]


def test_the_next_command_is_obeyed_an_earlier_one_is_known_a_later_one_means_that_one_was_missed() -> None:
    assert [next_step(5, version) for version in (4, 5, 6, 7)] == [Step.IGNORE, Step.IGNORE, Step.OBEY, Step.RESYNC]
