"""The doors: where a picture's bytes or samples come from."""

import base64
import contextlib
import os
import re
import stat
import urllib.parse

import numpy as np
from PIL import Image

from safeqwen.pictures.appearance import views
from safeqwen.pictures.decode import MAX_PIXELS, decode, read_frames, refusals, signature
from safeqwen.pictures.errors import UnreadableImage, check_bytes, one_line, printable, without_secrets
from safeqwen.pictures.fetch import fetch


MAX_BYTES = 64 * 2**20
FRAME = "safeqwen_frame"  # the key in a view's `info`


def read_image(
    source,
    *,
    timeout_s=10.0,
    max_bytes=MAX_BYTES,
    max_pixels=MAX_PIXELS,
    private_networks=False,
    one_paper=False,
):
    """
    Returns the views of a picture: what a person may see of each frame, in their order.

    An animation has up to `MAX_FRAMES` frames, a still has one. A frame has one view, or two where it is transparent
    enough to look different on white and on black paper: first the one on white. Judge all views and let the least
    safe one count. To get the frames themselves, one picture each, pass `one_paper=True`.

    Args:
        source: one of
            - a path (`str` or `os.PathLike`), an http(s) URL, a `data:image/...;base64,` URL, or bare base64 text
              (padded or not, of either alphabet);
            - `bytes`, `bytearray`, `memoryview`, or a binary file object, read from its start;
            - a `PIL.Image.Image`. One that stands at the first frame of an animation is the whole animation;
            - a NumPy array or torch tensor of shape (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, in the
              order red, green, blue, alpha (OpenCV's is blue first: pass `array[..., ::-1]`): uint8, bool, uint16 (0
              to 65535), or floats in [0, 1];
            - a dict with "bytes" or "path", as the undecoded Image feature of Hugging Face datasets has.
        timeout_s (`float`): seconds that a download may take from first to last byte.
        max_bytes (`int`): size of the file, local or not.
        max_pixels (`int`): width x height, times the frames that are returned.
        private_networks (`bool`): whether URLs may lead to addresses that are not public (10.*, 127.0.0.1, ...), and
            whether the proxies of the environment are asked.
        one_paper (`bool`): whether to return one view a frame, for training: on white paper, or on black if next to
            nothing shows on white.

    Returns:
        `list[PIL.Image.Image]`: RGB pictures. `frame_numbers` tells which frame each one shows.

    Raises:
        UnreadableImage: if the source cannot be read, is no whole picture of a known format, exceeds a limit, has a
            side under 14 pixels or sides of a ratio over 200; if an array is black by its range alone.
    """
    label = None
    if isinstance(source, dict):
        label, data = source.get("path"), source.get("bytes")
        source = label if data is None else data
        if source is None:
            raise UnreadableImage('<dict>: holds neither "bytes" nor "path"; pass a dict with one of them')
    if isinstance(source, Image.Image):
        return _read_picture(source, max_bytes, max_pixels, one_paper)
    # torch tensors by what they have; files have a `detach` too
    if isinstance(source, np.ndarray) or hasattr(source, "detach") and hasattr(source, "ndim"):
        return _read_array(source, max_pixels, one_paper)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        name = f"<{len(data)} bytes>" if label is None else printable(label)
    elif isinstance(source, str):
        data, name = read_text(source, timeout_s, max_bytes, private_networks)
    elif isinstance(source, os.PathLike):
        data, name = read_path(os.fsdecode(source), max_bytes)
    elif hasattr(source, "read"):
        data, name = read_stream(source, max_bytes)
    else:
        raise UnreadableImage(
            f"<{type(source).__name__}>: expected a path, URL, base64 text, bytes, file, PIL image, array or dict; "
            "pass pictures one by one"
        )
    return read_bytes(data, name=name, max_bytes=max_bytes, max_pixels=max_pixels, one_paper=one_paper)


def read_bytes(data, *, name=None, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS, one_paper=False):
    """
    Returns the views of a picture file's bytes, as `read_image` does: the door for servers.

    It opens no path and no URL, whatever a stranger sends. `name` (`str`) stands for the picture in messages.

    Raises:
        UnreadableImage: as `read_image`.
        TypeError: if `data` is not `bytes`, `bytearray` or `memoryview`.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"expected the bytes of a picture file, got {type(data).__name__}; read_image takes the rest")
    data = bytes(data)
    name = name or f"<{len(data)} bytes>"
    check_bytes(len(data), name, max_bytes)
    return _numbered_views(decode(data, name, max_pixels), one_paper)


def frame_numbers(frames):
    """
    Returns which frame each view shows (`list[int]`, from 0), for what [`read_image`] or [`read_bytes`] returned.

    A frame has two views if it looks different on white and on black paper: an animation of two such frames gives
    [0, 0, 1, 1].

    Args:
        frames (`list[PIL.Image.Image]`): the views of one picture, all or some of them.

    Raises:
        ValueError: if one of them does not come from there, and says nothing of its frame.
    """
    numbers = [getattr(frame, "info", {}).get(FRAME) for frame in frames]
    if None in numbers:
        raise ValueError(
            f"view {numbers.index(None)} does not say which frame it shows: give the views that read_image returned, "
            "or number your own, two views of one frame alike"
        )
    return numbers


def _numbered_views(all_samples, one_paper):
    """The views of all frames; each carries its frame's number in `info`, which copies keep."""
    numbered = []
    for number, samples in enumerate(all_samples):
        for view in views(samples, one_paper):
            view.info[FRAME] = number
            numbered.append(view)
    return numbered


def read_text(text, timeout_s=10.0, max_bytes=MAX_BYTES, private_networks=False):
    """
    Returns the `bytes` that a text stands for (a path, URL, data URL or base64), and its name (`str`) in messages.

    Raises:
        UnreadableImage: if they cannot be read, or there are more than `max_bytes`.
    """
    if text[:5].lower() == "data:":
        name = f"<data URL of {len(text)} characters>"
        header, _, payload = text.partition(",")
        if not re.fullmatch(r"data:image/[^,]*;base64", header, re.IGNORECASE):
            raise UnreadableImage(f"{name}: expected data:image/...;base64,...; encode it so, or pass its bytes")
        check_bytes(len(payload) * 3 // 4, name, max_bytes)
        data = _from_base64(urllib.parse.unquote(payload))
        if data is None:
            raise UnreadableImage(f"{name}: is no valid base64; encode the picture anew, or pass its bytes")
        return data, name
    if re.match(r"\s*https?:", text, re.IGNORECASE):
        return fetch(text, timeout_s, max_bytes, private_networks)
    if os.path.lexists(text):
        return read_path(text, max_bytes)
    if scheme := re.match(r"[a-z][a-z0-9+.-]+(?=:)", text, re.IGNORECASE):
        raise UnreadableImage(
            f"{without_secrets(text)}: only http and https are fetched, not {scheme[0].lower()}; download the file "
            "and pass the path itself"
        )
    data = _from_base64(text)
    # Longer than any file name, it was not meant as a path.
    if data is not None and (signature(data) or len(text) > 255):
        return data, f"<base64 string of {len(text)} characters>"
    return read_path(text, max_bytes)


def _from_base64(text):
    """The bytes of base64 in the usual or the URL's alphabet, padded or not, or None."""
    text = "".join(text.split()).translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(text if text.endswith("=") else text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return None


def read_path(path, max_bytes=MAX_BYTES):
    """
    Returns the `bytes` of a file, and its name (`str`) in messages. Devices and pipes are not waited for.

    Raises:
        UnreadableImage: if it is no file or cannot be read, or has more than `max_bytes`.
    """
    name = printable(path)
    try:
        # Not blocking: to open a named pipe would wait for somebody who writes.
        with open(path, "rb", opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableImage(f"{name}: is a device or pipe; pass the path of a file, or the bytes")
            check_bytes(status.st_size, name, max_bytes)
            return file.read(status.st_size), name
    except FileNotFoundError:
        what = "there is no such file; check the path"
    except PermissionError:
        what = "permission denied; let this user read the file (chmod +r, and +x on its folders)"
    except IsADirectoryError:
        what = "is a folder; pass the pictures in it"
    except OSError as error:
        what = f"cannot be opened ({error.strerror}); check the path"
    except UnreadableImage:
        raise
    except ValueError:
        what = "is no path; check it for zero bytes"
    raise UnreadableImage(f"{name}: {what}")


def read_stream(stream, max_bytes=MAX_BYTES):
    """
    Returns a binary file object's `bytes`, read from its start, and the name (`str`) that it has in messages.

    Raises:
        UnreadableImage: if it cannot be read, gives text, or more than `max_bytes`.
    """
    label = getattr(stream, "name", None)
    name = printable(label) if isinstance(label, (str, os.PathLike)) else f"<{type(stream).__name__}>"
    with contextlib.suppress(AttributeError, OSError):  # a stream that cannot be rewound is read from where it is
        stream.seek(0)
    pieces, size = [], 0
    try:
        while piece := stream.read(2**20):
            if not isinstance(piece, bytes):
                raise UnreadableImage(f"{name}: gives text, not bytes; open it in binary mode, 'rb'")
            pieces.append(piece)
            size += len(piece)
            check_bytes(size, name, max_bytes)
    except UnreadableImage:
        raise
    except (OSError, ValueError) as error:
        raise UnreadableImage(f"{name}: cannot be read ({one_line(error)}); pass an open file or its path") from error
    return b"".join(pieces), name


def _read_picture(image, max_bytes, max_pixels, one_paper):
    """The views of a `PIL.Image.Image`: of its file where that is not decoded yet, else as it is."""
    name = getattr(image, "filename", "") or f"<PIL image, {image.mode}, {image.width} x {image.height}>"
    name = printable(name)
    file = getattr(image, "fp", None)
    if getattr(image, "tile", None) and file is not None and not file.closed and image.tell() == 0:
        with refusals(name):  # not decoded yet: from the file itself, by our rules
            position = file.tell()
            file.seek(0)
            data = file.read(max_bytes + 1)
            file.seek(position)
        return read_bytes(data, name=name, max_bytes=max_bytes, max_pixels=max_pixels, one_paper=one_paper)
    with refusals(name, remedy="pass the path, or a copy() of it made while its file was open"):
        position = image.tell()
        seen = _numbered_views(_checked(read_frames(image, name, max_pixels), name), one_paper)
        if image.tell() != position:
            image.seek(position)
    return seen


def _checked(all_samples, name):
    for samples in all_samples:
        if isinstance(samples.colours, np.ndarray):
            _check_range(samples.colours, name, 4095, "multiply them by 16 if they have 12 bits")
        yield samples


def _read_array(array, max_pixels, one_paper):
    name = f"<{type(array).__name__} of shape {tuple(array.shape)}, {array.dtype}>"
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = (array.float() if array.dtype.is_floating_point else array).numpy()
    if array.ndim == 3:
        first, last = (array.shape[axis] in (1, 3, 4) for axis in (0, -1))
        if first and not last:
            array = np.moveaxis(array, 0, -1)
        elif first == last:
            raise UnreadableImage(f"{name}: which axis holds 1, 3 or 4 channels is unclear; pass (H, W, C)")
    elif array.ndim != 2:
        raise UnreadableImage(f"{name}: expected (H, W), (H, W, C) or (C, H, W); pass pictures one by one")
    if array.size == 0:
        raise UnreadableImage(f"{name}: is empty; pass a picture")
    array = array if array.ndim == 3 else array[..., None]
    for part in (array[..., :3], array[..., 3:]):  # colours, alpha
        if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
            _check_range(part, name, 4095, "pass uint8 if they end at 255, multiply them by 16 if they have 12 bits")
        elif array.dtype == np.uint8:
            _check_range(part, name, 1, "pass bool, or multiply them by 255")
        elif array.dtype.kind == "f":
            _check_range(part, name, 1 / 255, "were they divided by 255 twice?")
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not 0 <= low <= high <= 1:  # NaN fails too
            raise UnreadableImage(
                f"{name}: expected floats in [0, 1], got {low:g} to {high:g}; undo the normalisation, or divide by 255"
            )
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise UnreadableImage(f"{name}: expected uint8, bool, uint16 or floats in [0, 1]; convert it to uint8")
    image = Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[-1] == 1 else array))
    with refusals(name):
        return _numbered_views(read_frames(image, name, max_pixels), one_paper)


def _check_range(values, name, bound, remedy):
    """Refuses values that end so low in their range that the picture would be black, but for a black picture."""
    high = values.max() if values.size else 0
    if 0 < high <= bound:
        raise UnreadableImage(f"{name}: holds values up to {high:g} only, which is black; {remedy}")
