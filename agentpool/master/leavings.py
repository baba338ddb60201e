"""Files that a worker leaves in the data directory when it is killed: its marks and its stacks.

Its master removes them when it buries it. Those of workers that were killed and reaped while there was no master here
go when the next one starts.
"""

from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from agentpool.protocol.marks import mark_path

__all__ = ["remove_leavings", "sweep_leavings"]


def remove_leavings(data_dir: str, worker_id: str) -> None:
    """Remove the files of one worker."""
    root = Path(data_dir)
    for path in (mark_path(str(root / "marks"), worker_id), root / "stacks" / f"{worker_id}.stack"):
        path.unlink(missing_ok=True)


async def sweep_leavings(data_dir: str, registered: Callable[[], Awaitable[Collection[str]]]) -> None:
    """Remove the files of workers that are not registered.

    Who is registered is asked after the files were listed: an order stands in Redis before its worker has any.
    """
    owners = {path.stem for folder in ("marks", "stacks") for path in (Path(data_dir) / folder).glob("*.*")}
    for worker_id in owners.difference(await registered()) if owners else ():
        remove_leavings(data_dir, worker_id)
