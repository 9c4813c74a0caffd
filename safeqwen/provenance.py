"""What a record is made with: versions of packages, and the commit of the code."""

import importlib.metadata
import subprocess
from pathlib import Path


def package_versions(packages):
    """`dict`: each package's version (`str`), or `None` if it is not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_commit():
    """`str` or `None`: the commit of the checkout this file is in; "-dirty" if it was changed since."""
    file = Path(__file__)
    git = ["git", "-C", str(file.parent)]
    tracked = [*git, "ls-files", "--error-unmatch", file.name]  # else it is somebody else's repository
    commit = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        subprocess.run(tracked, capture_output=True, check=True)
        return subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
