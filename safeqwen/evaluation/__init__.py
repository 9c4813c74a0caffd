"""Measuring a guard: benchmarks in, rows of verdicts and answers, and figures, plots and pages of those rows out."""

# The package is not on the index, where its name is another's to take.
INSTALL = 'pip install -e ".[evaluate]" in a checkout of SafeQwen'
