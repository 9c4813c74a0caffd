"""The remote-code files, importable as a package: they lie beside `safeqwen/`, in a checkout and installed."""

from pathlib import Path


__path__ = [str(Path(__file__).parents[2])]

# What a model's folder holds to be loaded without this package.
CODE_FILES = sorted(Path(__path__[0]).glob("*_safeqwen.py"))
