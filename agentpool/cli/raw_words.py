"""Which words of `agentpool redis …` are ours, and which belong to Redis."""

import click
from rich_click import RichCommand

__all__ = ["RawCommand"]

FLAG = "--json"
VALUED = ("--config", "--data-dir", "--redis-url")


class RawCommand(RichCommand):
    """Takes our options before the first word of Redis and at the very end; `--` says that none are at the end."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        start = _first_word(args)
        words = args[start:]
        split = len(words) if words[:1] == ["--"] else _end_of_words(words)
        return super().parse_args(ctx, args[:start] + words[split:] + words[:split])


def _first_word(args: list[str]) -> int:
    """Return where our options end: at a word, or at `--`."""
    at = 0
    while at < len(args) and args[at].startswith("-") and args[at] != "--":
        at += 2 if args[at] in VALUED else 1
    return at


def _end_of_words(words: list[str]) -> int:
    """Return where our options at the end begin."""
    end = len(words)
    while size := _option_size(words[1:end]):
        end -= size
    return end


def _option_size(words: list[str]) -> int:
    """Return how many words the option takes that is last, 0 when none is."""
    if words[-2:-1] and words[-2] in VALUED:
        return 2
    if words and (words[-1] == FLAG or words[-1].startswith(tuple(f"{name}=" for name in VALUED))):
        return 1
    return 0
