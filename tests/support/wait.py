"""Waiting: what users' tests have, too."""

from agentpool.testing import wait_until, wait_until_sync

__all__ = ["wait_until", "wait_until_sync"]
