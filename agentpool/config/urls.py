"""Redis URLs: what is wrong with one, and how to show one without its password."""

import re
from urllib.parse import SplitResult, parse_qs, urlsplit

__all__ = ["redact_url", "url_problem"]

# Possessive, so that `redis://user@host:6379` is not read as scheme-less user "redis". Greedy up to the last "@", so
# that a password with an unescaped "/" or "@" is hidden whole.
_LOGIN = re.compile(r"^((?:[^:/@]+://)?+[^:@/]*+):.*@", re.DOTALL)
_QUERY = re.compile(r"([?&](?:ssl_)?password=)[^&#]*", re.IGNORECASE)

SCHEMES = ("redis", "rediss", "unix")


def redact_url(url: str) -> str:
    """Return the URL with its password replaced by `***`; a malformed URL rather loses too much than too little."""
    return _QUERY.sub(r"\1***", _LOGIN.sub(r"\1:***@", url))


def url_problem(url: str) -> str | None:
    """Return what is wrong with a Redis URL and what to write instead, or None. Never shows the password.

    redis-py lets a wrong database number or a relative socket path pass and silently uses another one.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        # The library's own message could quote a piece of the password.
        return (
            "host or port cannot be read; write redis://[user:password@]host:port/db, "
            "and in a password / as %2F, @ as %40, : as %3A"
        )
    if parts.scheme not in SCHEMES or "://" not in url:
        return f'must begin with redis://, rediss:// or unix://; it is "{_printable(redact_url(url))}"'
    if any(letter.isspace() or not letter.isprintable() for letter in url):
        return "contains a blank or an unprintable character; write it without"
    return _socket_problem(parts) if parts.scheme == "unix" else _tcp_problem(parts)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _socket_problem(parts: SplitResult) -> str | None:
    if parts.hostname or not parts.path.strip("/"):
        return "must name a socket by its absolute path, with three slashes: unix:///run/redis.sock"
    return _database_problem("", parts.query)


def _tcp_problem(parts: SplitResult) -> str | None:
    if parts.port == 0:
        return "port must be from 1 to 65535; it is 0"
    return _database_problem(parts.path.strip("/"), parts.query)


def _database_problem(path: str, query: str) -> str | None:
    for number in (path, *parse_qs(query).get("db", ())):
        if number and not (number.isascii() and number.isdigit()):
            return f'database must be a number, as in redis://host:6379/0; it is "{_printable(number)}"'
    return None
