"""Measuring a guard: benchmarks in, rows of verdicts and answers, and figures, plots and pages of those rows out."""
