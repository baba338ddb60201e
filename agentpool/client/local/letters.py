"""The dead letters of a local pool: tasks that are not tried again."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import msgspec

from agentpool.client.local.waiting import LocalTask
from agentpool.client.requests import Request
from agentpool.clock import wall_ms
from agentpool.errors import UnknownTask
from agentpool.protocol.codec import encode_json
from agentpool.protocol.tasks import DeadLetter, Outcome

__all__ = ["LocalLetters"]


class LocalLetters:
    """Letters by the id of their task, oldest first, with what it takes to submit it anew; `bound` of them."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._letters: OrderedDict[str, tuple[DeadLetter, Request]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._letters)

    def bury(self, task: LocalTask, outcome: Outcome) -> None:
        """Keep a task that failed for good; when there are too many, the oldest goes."""
        request = task.request
        letter = DeadLetter(
            task_id=request.task_id,
            kind="failed",
            tenant=task.tenant,
            agent_type=request.agent_type,
            agent_name=request.agent_name,
            died_at=wall_ms(),
            attempts=task.attempts,
            starts=task.starts,
            outcome=msgspec.Raw(encode_json(outcome)),
            input=request.envelope.input,
            errors=task.errors,
        )
        self._letters[request.task_id] = letter, request
        if len(self._letters) > self._bound:
            self._letters.popitem(last=False)

    def all(self, *, older_than_ms: int, agent_type: str, tenant: str) -> list[DeadLetter]:
        """Return the letters that fit, oldest first; what is 0 or '' fits all."""
        latest = wall_ms() - older_than_ms
        wanted = {name: value for name, value in {"agent_type": agent_type, "tenant": tenant}.items() if value}
        return [letter for letter, _ in self._letters.values() if letter.died_at <= latest and _fits(letter, wanted)]

    def get(self, task_id: str) -> DeadLetter:
        """Return a letter; raises `UnknownTask`."""
        return self._find(task_id)[0]

    def request(self, task_id: str) -> Request:
        """Return what was asked for with a dead task; raises `UnknownTask`."""
        return self._find(task_id)[1]

    def purge(self, task_ids: Iterable[str]) -> int:
        """Throw letters away; returns how many there were."""
        return sum(self._letters.pop(task_id, None) is not None for task_id in task_ids)

    def _find(self, task_id: str) -> tuple[DeadLetter, Request]:
        if task_id not in self._letters:
            raise UnknownTask(task_id, hint=" It is no dead letter. List them with: pool.dead_letters()")
        return self._letters[task_id]


def _fits(letter: DeadLetter, wanted: dict[str, Any]) -> bool:
    return all(getattr(letter, name) == value for name, value in wanted.items())
