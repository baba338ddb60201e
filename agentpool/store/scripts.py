"""Lua scripts: found, assembled, called by SHA.

A script is one file `lua/<verb>_<noun>.lua`; its header line `@include` names the files of `lua/lib` from which what it
needs is put before it, and `@flags` becomes the shebang: `allow-oom` for what ends, moves or keeps alive what exists
and therefore must run when memory is full, `no-writes` for reads. A script without flags accepts something new and is
refused then.
Addressing by SHA lets an old and a new release run side by side.
"""

import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Any

from agentpool.protocol.keys import Keys

__all__ = ["Script", "script"]

_LUA = files("agentpool.store") / "lua"
_INCLUDE = re.compile(r"^-- @include (.+)$", re.MULTILINE)
_FLAGS = re.compile(r"^-- @flags (.+)$", re.MULTILINE)
_FUNCTION = re.compile(r"^local function (\w+)\(.*?^end$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"^\s*--.*\n", re.MULTILINE)
_CALL = re.compile(r"(?<![.:\w])(\w+)(?=\()")
_TABLE = "lib"


class Script:
    """One script's text and SHA-1; `command` gives what to send."""

    __slots__ = ("name", "sha", "text")

    def __init__(self, name: str) -> None:
        self.name = name
        body = (_LUA / f"{name}.lua").read_text()
        include, flags = _INCLUDE.search(body), _FLAGS.search(body)
        shebang = [f"#!lua flags={flags[1]}"] if flags else []
        libraries = [(_LUA / "lib" / f"{lib}.lua").read_text() for lib in (include[1].split() if include else [])]
        self.text = "\n".join([*shebang, _assembled("\n".join(libraries), body)])
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def command(self, keys: Keys, pool: str, arguments: tuple[Any, ...], *, by_text: bool = False) -> tuple[Any, ...]:
        """Return the words of `EVALSHA` (or `EVAL`): the pool's key, the three common arguments, then the rest."""
        head = ("EVAL", self.text) if by_text else ("EVALSHA", self.sha)
        return (*head, 1, keys.pool(pool), pool, keys.prefix, keys.channel_prefix, *arguments)


def _assembled(libraries: str, body: str) -> str:
    """Return the body behind those functions of the libraries that it uses, directly or not, and without comments.

    They are put into a table: as variables each of them would cost a search and two more objects in every call of the
    script that only declares it.
    """
    code = _COMMENT.sub("", libraries)
    functions = {found[1]: found[0] for found in _FUNCTION.finditer(code)}
    used, new = set[str](), [body, _FUNCTION.sub("", code)]
    while new:
        names = set(_CALL.findall(new.pop())) & functions.keys() - used
        used |= names
        new += [functions[name] for name in names]
    code = _FUNCTION.sub(lambda found: found[0].removeprefix("local ") if found[1] in used else "", code)
    text = f"local {_TABLE} = {{}}\n{code}\n{_COMMENT.sub('', body)}"
    return _CALL.sub(lambda found: f"{_TABLE}.{found[0]}" if found[1] in used else found[0], text)


@cache
def script(name: str) -> Script:
    """Return the script of this name, read once per process."""
    return Script(name)
