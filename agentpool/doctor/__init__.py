"""Is what stands in Redis, and what runs on this host, as it must be? Checks the invariants of the architecture.

May import store and what lies below. Begin at `examining.py`, which reads only; `survey.py` reads everything there is,
`checks.py` and `work_checks.py` are pure functions from that to violations, `processes.py` looks at this host. What can
be mended `remedies.py` says, purely, and `repairing.py` does.
"""

from agentpool.doctor.examining import examine
from agentpool.doctor.repairing import Report, repair
from agentpool.doctor.violations import NAMES, Violation

__all__ = ["NAMES", "Report", "Violation", "examine", "repair"]
