"""What a record is made with: the command, versions of packages, the commit; and what of it may leave the machine."""

import importlib.metadata
import re
import shlex
import subprocess
from pathlib import Path, PurePosixPath, PureWindowsPath

from safeqwen.pictures.errors import without_secrets


# The folders of an absolute path within a text. A URL's slashes stand after a colon and side by side, those of a
# relative path after a word or a dot.
FOLDERS = re.compile(r"""(?<![\w./~-])(?:~[\w.-]*/|/(?=[^\s/])|[A-Za-z]:[\\/])(?:[^\s"'<>|,;:=()\[\]{}\\/]+[\\/])*""")
TOKEN = re.compile(r"--(to(k(en?)?)?|[\w-]+[-_]token)")  # argparse takes the beginning of a name for the name
URL = re.compile(r"https?://.*", re.IGNORECASE | re.DOTALL)


def command_line(words):
    """
    Returns a command (`str`) for a record, without its secrets: tokens, and what of a URL may be a key.

    `["scan", "https://a.b/c.png?key=1", "--token", "hf_x"]` -> `"scan https://a.b/c.png --token HIDDEN"`.
    """
    shown = []
    for before, word in zip(["", *words], words):
        name, equals, _ = word.partition("=")
        if TOKEN.fullmatch(before):
            word = "HIDDEN"
        elif equals and TOKEN.fullmatch(name):
            word = f"{name}=HIDDEN"
        shown.append(URL.sub(lambda url: without_secrets(url[0]), word))
    return shlex.join(shown)


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


def without_folders(value, key=None):
    """Returns a value of JSON with absolute paths cut to their last part, so that no folder of a machine is published.

    `{"files": ["/home/me/rows.jsonl", "data/more.jsonl"]}` -> `{"files": ["rows.jsonl", "data/more.jsonl"]}`.
    URLs, names of categories and keys stay as they are.

    Args:
        value: dictionaries and lists of texts and other things.
        key (`str`, *optional*): under which it stands; a `"command"` is cut word by word.
    """
    if isinstance(value, dict):
        return {name: without_folders(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return value if key in ("safety_categories", "categories") else [without_folders(item) for item in value]
    if not isinstance(value, str):
        return value
    if key == "command":
        try:
            words = shlex.split(value)
        except ValueError:  # a quote that does not end
            words = value.split()
        return shlex.join("=".join(map(without_folders, word.split("=", 1))) for word in words)
    value = value.replace("file://", "")
    for path in (PurePosixPath(value), PureWindowsPath(value)):
        if path.is_absolute():
            return path.name
    return FOLDERS.sub("", value)
