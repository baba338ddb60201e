"""Lua scripts: found, assembled into one library of functions, called by name.

A script is one file `lua/<verb>_<noun>.lua`, and becomes one function of the library. Its header line `@flags` becomes
the function's: `allow-oom` for what ends, moves or keeps alive what exists and therefore must run when memory is full,
`no-writes` for reads. A script without flags accepts something new and is refused then.

What scripts share is in `lua/lib`; `@include` says of which of these files a script needs something, in their order.
All of it is defined once, when the library is loaded: a script that is sent defines its functions anew in every call,
which took longer than the rest of a small one. So the variables there are the library's, and each call sets those of
the files that it includes again before it does anything else, but for those in capitals, which are set with the
library: constants, and memories of what is the same in every call.

The names of library and functions end with a hash of the text, so an old and a new release run side by side.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from agentpool.protocol.keys import Keys

__all__ = ["LIBRARY_PREFIX", "Library", "Script", "is_known_library", "is_unknown_script", "library", "script"]

LIBRARY_PREFIX = "agentpool_"

_LUA = files("agentpool.store") / "lua"
_SHARED = ("base", "locks", "workers", "tenants", "tasks", "agents", "endings", "claiming", "admission", "giving")
"""Files of `lua/lib`, each after those that it needs."""
_FLAGS = re.compile(r"^-- @flags (.+)$", re.MULTILINE)
_INCLUDE = re.compile(r"^-- @include (.+)$", re.MULTILINE)
_FUNCTION = re.compile(r"^local function (\w+)\(.*?^end$", re.MULTILINE | re.DOTALL)
_VARIABLES = re.compile(r"^local ([\w, ]+?)(?: = (.*(?:\n .*)*))?$", re.MULTILINE)
_COMMENT = re.compile(r"^\s*--.*\n", re.MULTILINE)
_CALL = re.compile(r"(?<![.:\w])(\w+)(?=\()")


class Library:
    """All scripts as one text for `FUNCTION LOAD`, with its name and the end of its functions' names."""

    __slots__ = ("hash", "name", "text")

    def __init__(self, shared: Mapping[str, str], scripts: Iterable[tuple[str, str]]) -> None:
        text = _assembled(shared, scripts)
        self.hash = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:10]
        self.name = f"{LIBRARY_PREFIX}{self.hash}"
        self.text = f"#!lua name={self.name}\n" + text.replace("{hash}", self.hash)


class Script:
    """One script; `command` gives what to send, and `command_by_text` what to send where there is no library."""

    __slots__ = ("function", "name")

    def __init__(self, name: str) -> None:
        self.name, self.function = name, f"{name}_{library().hash}"

    def command(self, keys: Keys, pool: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the words of `FCALL`: the pool's key, the three common arguments, then the rest."""
        return ("FCALL", self.function, 1, keys.pool(pool), pool, keys.prefix, keys.channel_prefix, *arguments)

    def command_by_text(self, keys: Keys, pool: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the words of `EVAL`, for a server that takes no library as its memory is full."""
        return ("EVAL", _text_of(self.name), *self.command(keys, pool, arguments)[2:])


def _assembled(shared: Mapping[str, str], scripts: Iterable[tuple[str, str]]) -> str:
    """Return the text of a library, from the texts of the shared files and of the scripts by name.

    Shared functions are put into a table, of which there may be any number of entries: a Lua function has 200 local
    variables at most, and sees 60.
    """
    functions, variables = list[tuple[str, str]](), dict[str, list[tuple[str, str]]]()
    for file, text in shared.items():
        code = _COMMENT.sub("", text)
        functions += [(found[1], found[0].removeprefix("local ")) for found in _FUNCTION.finditer(code)]
        rest = _FUNCTION.sub("", code)
        variables[file] = [(found[1], found[2] or "nil") for found in _VARIABLES.finditer(rest)]
        if left := _VARIABLES.sub("", rest).strip():
            raise ValueError(f"neither a function nor a variable of lua/lib/{file}.lua: {left}")
    names = [name for name, _ in functions]
    if len(set(names)) < len(names):
        raise ValueError(f"a name is given twice in lua/lib: {sorted(names)}")
    every = [variable for of_file in variables.values() for variable in of_file]
    passing = {file: [one for one in of_file if not _lasts(*one)] for file, of_file in variables.items()}
    setters = [
        f"function lib.begin_{file}()\n" + "\n".join(f"  {name} = {value}" for name, value in of_file) + "\nend"
        for file, of_file in passing.items()
        if of_file
    ]
    return "\n\n".join(
        [
            "local lib, KEYS, ARGV = {}",
            f"local {', '.join(name for name, _ in every)}",
            "\n".join(f"{name} = {value}" for name, value in every if _lasts(name, value)),
            _through_table("\n\n".join([*(body for _, body in functions), *setters]), names),
            *(_registered(name, text, names, passing) for name, text in scripts),
        ]
    )


def _lasts(names: str, values: str) -> bool:
    """Tell whether variables keep their values from call to call."""
    return names.isupper() and "KEYS[" not in values


def _registered(name: str, text: str, functions: Iterable[str], passing: Mapping[str, Sequence[object]]) -> str:
    own = {found[1] for found in _FUNCTION.finditer(text)}
    body = _through_table(_COMMENT.sub("", text), [name for name in functions if name not in own])
    included = found[1].split() if (found := _INCLUDE.search(text)) else []
    begin = "\n".join(["KEYS, ARGV = keys, arguments", *(f"lib.begin_{file}()" for file in included if passing[file])])
    flags = f"flags = {{'{found[1]}'}}, " if (found := _FLAGS.search(text)) else ""
    call = f"callback = function(keys, arguments)\n{begin}\n{body}\nend"
    return f"redis.register_function{{function_name = '{name}_{{hash}}', {flags}{call}}}"


@cache
def _text_of(name: str) -> str:
    """Return a script with its whole library as text."""
    flags = _FLAGS.search((_LUA / f"{name}.lua").read_text())
    _, _, code = library().text.partition("\n")
    return "\n".join(
        [
            *([f"#!lua flags={flags[1]}"] if flags else []),
            "local given, words, scripts = KEYS, ARGV, {}",
            "local function register(script) scripts[script.function_name] = script.callback end",
            code.replace("redis.register_function{", "register{"),
            f"return scripts.{script(name).function}(given, words)",
        ]
    )


def _through_table(code: str, functions: Iterable[str]) -> str:
    names = frozenset(functions)
    return _CALL.sub(lambda found: f"lib.{found[1]}" if found[1] in names else found[1], code)


@cache
def library() -> Library:
    """Return the library of this release, read once per process."""
    scripts = sorted((path.name[:-4], path.read_text()) for path in _LUA.iterdir() if path.name.endswith(".lua"))
    return Library({name: (_LUA / "lib" / f"{name}.lua").read_text() for name in _SHARED}, scripts)


@cache
def script(name: str) -> Script:
    """Return the script of this name."""
    return Script(name)


def is_unknown_script(error: Exception) -> bool:
    """Tell whether the server does not have the library, so that nothing was done."""
    return "Function not found" in str(error)


def is_known_library(error: Exception) -> bool:
    """Tell whether the server has the library already: one of this name says the same."""
    return "already exists" in str(error)
