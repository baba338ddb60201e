"""The release of this package, and the version of what it keeps in Redis."""

__version__ = "0.1.0"

SCHEMA_VERSION = 1
"""Raised when what stands in Redis changes so that another release could misread it."""
SCHEMA_OLDEST = 1
"""Oldest schema whose releases work beside this one: that of the release before. Older ones are refused."""
