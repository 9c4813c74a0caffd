"""Judging collections: places in, one row a picture out, nothing lost when a machine dies."""

# The package is not on the index, where its name is another's to take.
INSTALL = 'pip install -e ".[scan]" in a checkout of SafeQwen'
