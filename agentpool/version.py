"""The release of this package, and the version of what it keeps in Redis."""

__version__ = "0.1.0"

SCHEMA_VERSION = 1
"""Raised when an older release could no longer read what this one writes."""
