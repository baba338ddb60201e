"""A module that does not import."""

import module_that_does_not_exist  # noqa: F401
