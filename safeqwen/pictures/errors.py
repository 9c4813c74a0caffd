"""The one error of this folder, and how names and reasons are put into its line."""

import os
import re
import urllib.parse


class UnreadableImage(ValueError):
    """A picture that cannot be judged; the message names it, what is wrong and what to do, in one line."""


def check_bytes(size, name, max_bytes):
    if size > max_bytes:
        raise UnreadableImage(f"{name}: is larger than {max_bytes} bytes; shrink the picture or raise max_bytes")


def printable(path):
    """The path on one line, whatever its characters."""
    path = os.fsdecode(path)
    if len(path) > 500:
        return f"<string of {len(path)} characters>"
    return path if path.isprintable() else ascii(path)


def one_line(error):
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return text if text.isprintable() else ascii(text)


def without_secrets(url):
    """The URL without user, password, query and fragment."""
    scheme = re.match(r"[^:]*:/*", url)[0]
    rest = url[len(scheme) :]
    if re.match(r"https?:", scheme, re.IGNORECASE):
        try:
            parts = urllib.parse.urlsplit(url)
        except ValueError:  # such as brackets that hold no address
            return printable(scheme + "...")
        rest = parts.netloc.rpartition("@")[2] + parts.path
    else:  # keys of storage services may hold slashes and question marks
        rest = re.split(r"[?#]", rest.rpartition("@")[2], maxsplit=1)[0]
    return printable(scheme + rest)
