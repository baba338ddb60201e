"""An agent type as the caller gave it: a class, whose hints check input and type results, or a name, plain JSON."""

import math
from functools import lru_cache
from typing import Any

import msgspec

from agentpool.agent import Agent, AgentType, check_agent_class, result_type_of
from agentpool.errors import ConfigError, InvalidInput, TaskFailed
from agentpool.protocol.codec import encode_json

__all__ = ["UNTYPED", "Kind", "check_count", "kind_of", "milliseconds"]


_PLAIN = (str, int, bool)
"""Types of input that are right as they are: what is of just this type needs no second look."""


class Kind:
    """Encodes input and decodes results of an agent type of which only the name is known, or not even that."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def encode(self, input: Any) -> msgspec.Raw:
        """Return the input as JSON; raises `InvalidInput`."""
        return _as_json(input)

    def decode(self, task_id: str, raw: msgspec.Raw) -> Any:
        """Return the result from JSON."""
        return msgspec.json.decode(raw)


class _ClassKind(Kind):
    """Input is checked against the hints of `run` before it is sent, and its result comes back as it declares."""

    def __init__(self, cls: type[Agent]) -> None:
        super().__init__(cls.__name__)
        self._type = AgentType(check_agent_class(cls.__name__, cls))
        self._plain = self._type.input_type if self._type.input_type in _PLAIN else None
        try:
            self._result = msgspec.json.Decoder(result_type_of(cls))
        except TypeError as error:
            raise ConfigError(f"{cls.__name__}.run: its result type cannot be decoded from JSON: {error}") from None

    def encode(self, input: Any) -> msgspec.Raw:
        raw = _as_json(input)
        # By way of JSON, because a struct is not checked when it is made, and because the worker will do the same.
        if type(input) is not self._plain:
            self._type.decode(raw)
        return raw

    def decode(self, task_id: str, raw: msgspec.Raw) -> Any:
        try:
            return self._result.decode(raw)
        except msgspec.ValidationError as error:
            hint = (
                f"the result is not what {self.name}.run declares here: {error}. Does the worker have another release?"
            )
            raise TaskFailed(task_id, "ValidationError", hint) from None


def _as_json(input: Any) -> msgspec.Raw:
    try:
        raw = encode_json(input)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"The input cannot be written as JSON: {error}") from None
    # NaN and infinities become null; without one there is nothing to look for. (`in` would try first whether the word
    # is a number, and raise and catch an error each time.)
    if raw.find(b"null") >= 0:
        _refuse_odd_floats(input)
    return msgspec.Raw(raw)


def _refuse_odd_floats(input: Any) -> None:
    """Raise `InvalidInput` for a number that JSON cannot hold, naming its path."""
    waiting = [("$", msgspec.to_builtins(input, str_keys=True, enc_hook=lambda _: None))]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidInput(f"The input cannot be written as JSON: {path} is {value}, which is no number.", path)
        if isinstance(value, dict):
            waiting += [(f"{path}.{name}", item) for name, item in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(f"{path}[{place}]", item) for place, item in enumerate(value)]


UNTYPED = Kind()


def kind_of(agent_type: str | type[Agent]) -> Kind:
    """Return how to speak with agents of this type; raises `ConfigError` for a class that is none."""
    return Kind(agent_type) if isinstance(agent_type, str) else _kind_of_class(agent_type)  # type: ignore[arg-type]


@lru_cache(maxsize=256)
def _kind_of_class(cls: type[Agent]) -> Kind:
    return _ClassKind(cls)


def milliseconds(name: str, seconds: float | None) -> int:
    """Return a positive time in whole ms, rounded up, or 0 for None; raises `InvalidInput` naming the parameter."""
    if seconds is None:
        return 0
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not math.isfinite(seconds) or not 0 < seconds <= 1e9:
        raise InvalidInput(f"{name} is {seconds!r}: it must be a positive number of seconds, or None.", f"$.{name}")
    return math.ceil(seconds * 1000)


def check_count(name: str, count: int) -> int:
    """Return how many of something are wanted, a whole number ≥ 1; raises `InvalidInput` naming the parameter."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InvalidInput(f"{name} is {count!r}: it must be a whole number of at least 1.", f"$.{name}")
    return count
