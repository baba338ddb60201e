"""agentpool-master, but killed by SIGKILL, its own, right before or after a script is called for the first time.

`DIE_AT=<script>:before` or `<script>:after` says where; the arguments are those of agentpool-master.
"""

import os
import signal
from typing import Any

from agentpool.cli.master import main
from agentpool.store import Connection

SCRIPT, WHEN = os.environ.pop("DIE_AT").split(":")
call = Connection.call


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def dying_call(self: Connection, name: str, pool: str, *arguments: Any, **options: Any) -> Any:
    if name == SCRIPT and WHEN == "before":
        die()
    answer = await call(self, name, pool, *arguments, **options)
    if name == SCRIPT:
        die()
    return answer


Connection.call = dying_call
if __name__ == "__main__":
    main()
