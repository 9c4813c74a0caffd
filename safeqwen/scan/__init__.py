"""Judging collections: places in, one row a picture out, nothing lost when a machine dies."""

# The package is not on the index, where its name is another's to take.
INSTALL = 'pip install -e ".[scan]" in a checkout of SafeQwen'


def __getattr__(name):
    if name == "Judge":  # loaded when asked for: with it come torch and transformers
        from safeqwen.scan.judge import Judge

        return Judge
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
