"""What is said of an execution: in the audit who had what done, when, where and with what outcome; in the log what did
not go well.
"""

import msgspec
import structlog

from agentpool.clock import wall_ms
from agentpool.hosting import Ending, Run
from agentpool.protocol.codec import encode_json
from agentpool.protocol.zygote import WorkerSettings
from agentpool.store.tasks import EndedTask

__all__ = ["audit_line", "log_end"]

log = structlog.get_logger("worker")

NOTHING = msgspec.Raw(b"")
STATUSES = {"retry": "retried", "back": "given_back"}


class _Line(msgspec.Struct, omit_defaults=True, gc=False):
    """`at` is the time of this host in ms at which the execution ended."""

    at: int
    task_id: str
    status: str
    tenant: str
    project: str = ""
    agent_type: str = ""
    agent_id: str = ""
    process_id: str = ""
    attempt: int = 0
    duration_ms: float = 0.0
    tokens: int = 0
    error: str = ""
    input: msgspec.Raw = NOTHING
    result: msgspec.Raw = NOTHING


def audit_line(settings: WorkerSettings, run: Run, ending: Ending) -> bytes:
    """Return the line as JSON; empty when there is no audit, or when nothing was executed."""
    if not settings.audit or (ending.verdict == "back" and not run.has_begun):
        return b""
    task, outcome = run.task, ending.outcome
    header, envelope = task.header, task.envelope
    line = _Line(
        wall_ms(),
        task.id,
        STATUSES.get(ending.verdict) or outcome.status,
        header.tenant,
        envelope.project if envelope else "",
        header.agent_type,
        outcome.agent_id,
        outcome.process_id,
        outcome.attempts,
        run.duration_ms,
        outcome.tokens,
    )
    if outcome.error:
        line.error = f"{outcome.error.type}: {outcome.error.message}"[:500]
    if not (settings.audit_payload and envelope):
        return encode_json(line)
    line.input, line.result = envelope.input, outcome.result
    # What an agent returned as JSON that it wrote itself may have line ends between its words.
    return encode_json(line).replace(b"\n", b" ")


def log_end(run: Run, ended: EndedTask, *, late: bool) -> None:
    """Log what did not go well: as a warning, with the agent's own words and traceback. `late`: it was not recorded."""
    task = run.task
    bound = log.bind(
        task_id=task.id,
        agent=task.header.agent_name or task.header.agent_type,
        duration_ms=run.duration_ms,
        attempt=task.attempt,
        late=late,
    )
    outcome = msgspec.json.decode(ended.outcome)
    error = outcome.get("error") if isinstance(outcome, dict) else None
    has_ended = ended.verdict in ("done", "dead", "unstarted")
    status = outcome.get("status", ended.verdict) if has_ended and isinstance(outcome, dict) else ended.verdict
    if not error or ended.verdict == "back":
        bound.debug(f"task.{status}")
        return
    text = f"{error.get('type', '')}: {error.get('message', '')}"
    traceback = error.get("traceback")
    again = {"again_in_s": ended.delay_ms / 1000} if ended.verdict == "retry" else {}
    bound.warning(f"task.{status}", error=text, **again, **({"exception": traceback} if traceback else {}))
