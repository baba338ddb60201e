"""What the daemon and its clients are told, read and checked before anything starts.

Imports errors only. Begin at `settings.py` (every setting and its default) and `loading.py` (precedence; `load` and
`load_client_target`); then `files.py` and `environment.py` (where values come from), `entries.py` (what they yield),
`checking.py` (what values must obey, pure), `urls.py`.
"""

from agentpool.config.checking import Finding, check
from agentpool.config.environment import RESERVED
from agentpool.config.files import MINIMAL_FILE
from agentpool.config.loading import ClientTarget, Loaded, load, load_client_target
from agentpool.config.settings import NAME_PATTERN, LogSettings, PoolSettings, RedisSettings, Settings
from agentpool.config.urls import redact_url, url_problem

__all__ = [
    "MINIMAL_FILE",
    "NAME_PATTERN",
    "RESERVED",
    "ClientTarget",
    "Finding",
    "Loaded",
    "LogSettings",
    "PoolSettings",
    "RedisSettings",
    "Settings",
    "check",
    "load",
    "load_client_target",
    "redact_url",
    "url_problem",
]
