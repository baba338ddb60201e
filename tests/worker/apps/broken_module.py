"""Does not import."""

raise ImportError("libfrobnicate.so.3 is missing")
