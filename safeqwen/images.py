"""
Pictures from wherever they come, as a person would see them, or a refusal that says why.

`read_image` is the only door. What it returns is whole: a file that ends early, or whose data do not fill the picture,
is refused, for what is missing might be the harm. The choices it makes where viewers differ:

- **Turned** as EXIF says.
- **Transparency** lies on white paper. If nothing shows there (a white drawing), it lies on black.
- **Colours** are converted to sRGB by the picture's ICC profile; without a usable one, CMYK is converted plainly.
- **16-bit** samples lose their lower byte: the full range stays, nothing is clipped. 32-bit integers and floats in
  files have no agreed range and are refused.
- **Animations** and pages of a TIFF are up to `MAX_FRAMES` frames, evenly spaced from the first to the last: what is
  only in between is not seen. An APNG's default image counts as its first frame. A multi-picture JPEG (MPO) is its
  first picture, and bytes behind the end of a picture are nothing, as in any viewer.
- **Damage** that a format cannot show is not seen: wrong bytes within JPEG, lossy WebP, BMP or plain TIFF data are the
  pixels that viewers make of them, and a progressive JPEG may lack its last refinements. A PNG is refused if any
  checksum is wrong.

Several threads may call it. No setting of Pillow is changed or matters, but that a lower `Image.MAX_IMAGE_PIXELS` is
honoured: `ImageFile.LOAD_TRUNCATED_IMAGES` lets nothing through. A picture that was already decoded (PIL, arrays) is
taken as it is. URLs are fetched from wherever they point to, inside a private network too: who lets strangers choose
them must guard the network.
"""

import base64
import contextlib
import http.client
import io
import os
import re
import stat
import struct
import threading
import urllib.error
import urllib.parse
import urllib.request
import warnings
import zlib

import numpy as np
from PIL import Image, ImageCms, ImageFile


MAX_FRAMES = 8  # of an animation
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 2 * 89_478_485  # where Pillow's own limit against decompression bombs raises
MIN_SIDE = 14  # one patch of Qwen2.5-VL
MAX_ASPECT_RATIO = 200  # of Qwen2.5-VL's image processor
MAX_REDIRECTS = 5

# To reach an animation's last frame most formats decode all before it: at 60 megapixels a second, 12 seconds.
MAX_PIXELS_PASSED = 4  # times max_pixels
MAX_FRAMES_PASSED = 10_000
# Pillow decodes these pixel by pixel in Python, two seconds a megapixel.
SLOW_DECODERS = ("bmp_rle", "ppm", "ppm_plain")
MAX_PIXELS_SLOW = 2_000_000

# The formats that are read, by how their files begin. Not among them: what runs a program (EPS, WMF), what needs a
# plugin, and ICO, which Pillow decodes before its size can be checked.
SIGNATURES = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "AVIF": rb"....ftyp(?:avif|avis|mif1|msf1)",
    "PPM": rb"P[1-6]\s",
}
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
EXIF_ORIENTATION = 0x0112
TIFF_PHOTOMETRIC, TIFF_PLANAR = 262, 284


class UnreadableImage(ValueError):
    """A picture that cannot be judged; the message names it, what is wrong and what to do, in one line."""


def read_image(source, *, timeout_s=10.0, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS):
    """
    Returns the frames of a picture: one for a still, up to `MAX_FRAMES` for an animation, in their order.

    Args:
        source: one of
            - a path (`str` or `os.PathLike`), an http(s) URL, a `data:image/...;base64,` URL, or bare base64 text;
            - `bytes`, `bytearray`, `memoryview`, or a binary file object, read from its start;
            - a `PIL.Image.Image`. One that stands at the first frame of an animation is the whole animation;
            - a NumPy array or torch tensor of shape (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels: uint8,
              bool, uint16 (0 to 65535), or floats in [0, 1];
            - a dict with "bytes" or "path", as the undecoded Image feature of Hugging Face datasets has.
        timeout_s (`float`): seconds that a download may take from first to last byte.
        max_bytes (`int`): size of the file, local or not.
        max_pixels (`int`): width x height, times the frames that are returned.

    Returns:
        `list[PIL.Image.Image]`: RGB frames.

    Raises:
        UnreadableImage: if the source cannot be read, is no whole picture of a known format, exceeds a limit, has a
            side under 14 pixels or sides of a ratio over 200.
    """
    label = None
    if isinstance(source, dict):
        label, data = source.get("path"), source.get("bytes")
        source = label if data is None else data
        if source is None:
            raise UnreadableImage('<dict>: holds neither "bytes" nor "path"; pass a dict with one of them')
    if isinstance(source, Image.Image):
        return _read_picture(source, max_bytes, max_pixels)
    # torch tensors by what they have; files have a `detach` too
    if isinstance(source, np.ndarray) or hasattr(source, "detach") and hasattr(source, "ndim"):
        return _read_array(source, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        name = f"<{len(data)} bytes>" if label is None else _printable(label)
    elif isinstance(source, str):
        data, name = _read_text(source, timeout_s, max_bytes)
    elif isinstance(source, os.PathLike):
        data, name = _read_path(os.fsdecode(source), max_bytes)
    elif hasattr(source, "read"):
        data, name = _read_stream(source, max_bytes)
    else:
        raise UnreadableImage(
            f"<{type(source).__name__}>: expected a path, URL, base64 text, bytes, file, PIL image, array or dict; "
            "pass pictures one by one"
        )
    return _read_file_bytes(data, name, max_bytes, max_pixels)


# --------------------------------------------------------------------------------------------------- getting the bytes


def _read_text(text, timeout_s, max_bytes):
    """The bytes that a `str` stands for, and the name for messages."""
    if text[:5].lower() == "data:":
        name = f"<data URL of {len(text)} characters>"
        header, _, payload = text.partition(",")
        if not re.fullmatch(r"data:image/[^,]*;base64", header, re.IGNORECASE):
            raise UnreadableImage(f"{name}: expected data:image/...;base64,...; encode it so, or pass its bytes")
        _check_bytes(len(payload) * 3 // 4, name, max_bytes)
        data = _from_base64(urllib.parse.unquote(payload))
        if data is None:
            raise UnreadableImage(f"{name}: is no valid base64; encode the picture anew, or pass its bytes")
        return data, name
    if re.match(r"https?:", text, re.IGNORECASE):
        return _download(text, timeout_s, max_bytes)
    if os.path.lexists(text):
        return _read_path(text, max_bytes)
    if scheme := re.match(r"[a-z][a-z0-9+.-]+(?=:)", text, re.IGNORECASE):
        raise UnreadableImage(
            f"{_without_secrets(text)}: only http and https are fetched, not {scheme[0].lower()}; download the file "
            "and pass the path itself"
        )
    data = _from_base64(text)
    # Longer than any file name, it was not meant as a path.
    if data is not None and (_signature(data) or len(text) > 255):
        return data, f"<base64 string of {len(text)} characters>"
    return _read_path(text, max_bytes)


def _from_base64(text):
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return None


def _read_path(path, max_bytes):
    name = _printable(path)
    try:
        # Not blocking: to open a named pipe would wait for somebody who writes.
        with open(path, "rb", opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableImage(f"{name}: is a device or pipe; pass the path of a file, or the bytes")
            _check_bytes(status.st_size, name, max_bytes)
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


def _read_stream(stream, max_bytes):
    label = getattr(stream, "name", None)
    name = _printable(label) if isinstance(label, (str, os.PathLike)) else f"<{type(stream).__name__}>"
    with contextlib.suppress(AttributeError, OSError):  # a stream that cannot be rewound is read from where it is
        stream.seek(0)
    pieces, size = [], 0
    try:
        while piece := stream.read(2**20):
            if not isinstance(piece, bytes):
                raise UnreadableImage(f"{name}: gives text, not bytes; open it in binary mode, 'rb'")
            pieces.append(piece)
            size += len(piece)
            _check_bytes(size, name, max_bytes)
    except UnreadableImage:
        raise
    except (OSError, ValueError) as error:
        raise UnreadableImage(f"{name}: cannot be read ({_one_line(error)}); pass an open file or its path") from error
    return b"".join(pieces), name


def _check_bytes(size, name, max_bytes):
    if size > max_bytes:
        raise UnreadableImage(f"{name}: is larger than {max_bytes} bytes; shrink the picture or raise max_bytes")


def _printable(path):
    """The path on one line, whatever its characters."""
    path = os.fsdecode(path)
    if len(path) > 500:
        return f"<string of {len(path)} characters>"
    return path if path.isprintable() else ascii(path)


def _without_secrets(url):
    """The URL without user, password, query and fragment."""
    url = re.split(r"[?#]", url, maxsplit=1)[0]
    return _printable(re.sub(r"(?<=:)(/*)[^/]*@", r"\1", url, count=1))


def _one_line(error):
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return text if text.isprintable() else ascii(text)


# ----------------------------------------------------------------------------------------------------------- downloads


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = max_repeats = MAX_REDIRECTS


class _Download(threading.Thread):
    """Fetches a URL aside: no socket's timeout bounds the whole of resolving, connecting, headers and body."""

    def __init__(self, request, timeout_s, max_bytes):
        super().__init__(daemon=True)
        self.request, self.timeout_s, self.max_bytes = request, timeout_s, max_bytes
        self.data = self.error = None
        self.abandoned = False
        self.connections = []

    def run(self):
        try:
            self.data = self.fetch()
        except Exception as error:  # told to the thread that waits
            self.error = error

    def fetch(self):
        class Http(urllib.request.HTTPHandler):
            def http_open(handler, request):
                return handler.do_open(self.noted(http.client.HTTPConnection), request)

        class Https(urllib.request.HTTPSHandler):
            def https_open(handler, request):
                return handler.do_open(self.noted(http.client.HTTPSConnection), request)

        opener = urllib.request.OpenerDirector()  # build_opener would add ftp, file and data
        opener.addheaders = [("User-Agent", "safeqwen"), ("Accept", "image/*")]
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.UnknownHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            _Redirects(),
            Http(),
            Https(),
        ):
            opener.add_handler(handler)
        with opener.open(self.request, timeout=self.timeout_s) as response:
            announced = int(response.headers.get("Content-Length") or -1)
            pieces, size = [], 0
            while not self.abandoned and max(size, announced) <= self.max_bytes and (piece := response.read1(2**16)):
                pieces.append(piece)
                size += len(piece)
        if max(size, announced) > self.max_bytes:
            raise _TooLong
        if size < announced:
            raise http.client.IncompleteRead(b"", announced - size)
        return b"".join(pieces)

    def noted(self, kind):
        def connect(*args, **kwargs):
            self.connections.append(kind(*args, **kwargs))
            return self.connections[-1]

        return connect

    def abandon(self):
        self.abandoned = True
        for connection in self.connections:  # wakes a thread that waits for headers
            with contextlib.suppress(AttributeError, OSError):
                connection.sock.shutdown(2)


class _TooLong(Exception):
    pass


def _download(url, timeout_s, max_bytes):
    name = _without_secrets(url)
    try:
        parts = urllib.parse.urlsplit(url.strip())
        if not parts.hostname or parts.port == 0:
            raise ValueError
        host = parts.netloc.rpartition("@")[2].encode("idna").decode()
        path, query = (urllib.parse.quote(part, safe="%/:=&?~+!$,;'@()*[]") for part in (parts.path, parts.query))
        request = urllib.request.Request(parts._replace(netloc=host, path=path, query=query, fragment="").geturl())
    except ValueError:
        raise UnreadableImage(f"<URL of {len(url)} characters>: is not valid; check host and port") from None
    if parts.username is not None:
        user, password = (urllib.parse.unquote(part or "") for part in (parts.username, parts.password))
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")

    download = _Download(request, timeout_s, max_bytes)
    download.start()
    download.join(timeout_s)
    if download.is_alive():
        download.abandon()
        error = TimeoutError()
    else:
        error = download.error
    if error is None:
        return download.data, name
    reason = getattr(error, "reason", error)
    if isinstance(error, _TooLong):
        what = f"is larger than {max_bytes} bytes; pass a smaller picture or raise max_bytes"
    elif isinstance(error, urllib.error.HTTPError) and error.code < 400:
        what = f"redirects more than {MAX_REDIRECTS} times, or not to http(s); pass the address it ends at"
    elif isinstance(error, urllib.error.HTTPError):
        status = f"{error.code} {http.client.responses.get(error.code, '')}".strip()
        what = f"the server answered {status}; check the address and the access to it"
    elif isinstance(reason, TimeoutError):
        what = f"gave no whole picture within {timeout_s:g} s; try again, raise timeout_s or pass the file"
    elif isinstance(reason, http.client.HTTPException):
        what = f"the answer is broken or ends early ({type(reason).__name__}); try again, or pass the file"
    else:  # not the error's own words if they could hold the address; those of the system do not
        why = getattr(reason, "strerror", None) or (reason if isinstance(reason, str) else type(reason).__name__)
        what = f"cannot be fetched ({_one_line(why)}); check the address and the network"
    raise UnreadableImage(f"{name}: {what}") from None


# -------------------------------------------------------------------------------------------------- from Pillow, whole


class _EndsEarly(Exception):
    """No OSError, which Pillow forgives while LOAD_TRUNCATED_IMAGES is set."""


class _WholeFile(io.BytesIO):
    """A file that raises when more is read than it has; Pillow, if so set, would leave the rest of a picture black."""

    def read(self, size=-1):
        data = super().read(size)
        # Of blocks as large as these Pillow takes what there is.
        if len(data) < size and (not data or size not in (ImageFile.MAXBLOCK, ImageFile.SAFEBLOCK)):
            raise _EndsEarly
        return data


class _StrictDecoder:
    """One of Pillow's decoders, whose errors are raised; Pillow, if so set, would show what came before them."""

    def __init__(self, mode, name, *args):
        self.decoder = Image._getdecoder(mode, name, args)

    def decode(self, buffer):
        consumed, error = self.decoder.decode(buffer)
        if error < 0:
            raise ValueError(f"decoder error {error}")
        return consumed, error

    def __getattr__(self, name):
        return getattr(self.decoder, name)


Image.register_decoder("safeqwen_strict", _StrictDecoder)


class _OwnWarnings(threading.local):
    """Matches the warnings of a thread while it is in `read_image`, as a pattern would match their text."""

    ignored = False

    def match(self, text):
        return self.ignored


_own_warnings = _OwnWarnings()
_IGNORE_OWN = ("ignore", _own_warnings, Warning, None, 0)


@contextlib.contextmanager
def _reading(name, remedy="save it as PNG"):
    """Makes every failure of Pillow's an UnreadableImage, and its warnings silent for this thread alone."""
    # catch_warnings would change the filters under other threads. This one lets all other warnings pass.
    if warnings.filters[:1] != [_IGNORE_OWN]:
        warnings.filters.insert(0, _IGNORE_OWN)
    _own_warnings.ignored = True
    try:
        yield
    except UnreadableImage:
        raise
    except _EndsEarly:
        raise UnreadableImage(f"{name}: ends before the picture does; get the whole file anew") from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage(
            f"{name}: {_one_line(error)}; shrink the picture or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except MemoryError as error:
        raise UnreadableImage(f"{name}: does not fit into memory; shrink the picture") from error
    except Exception as error:  # a broken file leads Pillow's readers to any exception
        raise UnreadableImage(f"{name}: is damaged or unsupported ({_one_line(error)}); {remedy}") from error
    finally:
        _own_warnings.ignored = False


def _signature(data):
    head = bytes(data[:16])
    return next((format for format, start in SIGNATURES.items() if re.match(start, head, re.DOTALL)), None)


def _read_file_bytes(data, name, max_bytes, max_pixels):
    _check_bytes(len(data), name, max_bytes)
    if not data:
        raise UnreadableImage(f"{name}: is empty (0 bytes); get the file anew")
    format = _signature(data)
    if format is None:
        kind = "a web page or drawing in XML, none" if data.lstrip()[:1] == b"<" else "none"
        raise UnreadableImage(
            f"{name}: is {kind} of the formats that are read ({', '.join(SIGNATURES)}); save it as PNG"
        )
    with _reading(name):
        try:
            image = Image.open(_WholeFile(data), formats=[format])
        except Image.UnidentifiedImageError:
            what = f"its {format} header is damaged or of an unsupported kind"
            raise UnreadableImage(f"{name}: {what}; save it as PNG") from None
        with image:
            _check_size(image, name, max_pixels)
            if format == "PNG":
                _check_png(data, name)
                _scale_transparency(image, data)
            elif format == "GIF":
                _check_gif(data, name)
            frames = _read_frames(image, _count_frames(image, name), name, max_pixels)
            if format == "JPEG" and _looks_cut(image):
                # Data that end early, before an end marker, leave mid-grey. Other data in their place change it.
                end = _end_of_jpeg(data)
                longer = data[:end] + b"\x55" * 64 + data[end:]
                with Image.open(_WholeFile(longer), formats=[format]) as other:
                    if _read_frames(other, 1, name, max_pixels)[0].tobytes() != frames[0].tobytes():
                        raise _EndsEarly
            return frames


def _read_picture(image, max_bytes, max_pixels):
    """The frames of a `PIL.Image.Image`."""
    name = getattr(image, "filename", "") or f"<PIL image, {image.mode}, {image.width} x {image.height}>"
    name = _printable(name)
    file = getattr(image, "fp", None)
    if getattr(image, "tile", None) and file is not None and not file.closed and image.tell() == 0:
        with _reading(name):  # not decoded yet: from the file itself, by our rules
            position = file.tell()
            file.seek(0)
            data = file.read(max_bytes + 1)
            file.seek(position)
        return _read_file_bytes(data, name, max_bytes, max_pixels)
    with _reading(name, remedy="pass the path, or a copy() of it made while its file was open"):
        if image.format == "MPO" or image.tell() != 0 or not getattr(image, "is_animated", False):
            return _read_frames(image, 1, name, max_pixels)
        try:
            return _read_frames(image, _count_frames(image, name), name, max_pixels)
        finally:
            image.seek(0)


def _count_frames(image, name):
    if image.format == "MPO":
        return 1
    if image.format != "TIFF":
        return getattr(image, "n_frames", 1)
    # Pillow's n_frames compares each page with all before, which takes hours for a file made of tiny pages.
    for page in range(1, MAX_FRAMES_PASSED + 1):
        try:
            image.seek(page)
        except EOFError:
            image.seek(0)
            return page
    raise UnreadableImage(f"{name}: has over {MAX_FRAMES_PASSED} pages; pass them as pictures of their own")


def _read_frames(image, count, name, max_pixels):
    last = min(MAX_FRAMES, count) - 1
    wanted = {round(i * (count - 1) / last) for i in range(last + 1)} if last else {0}
    passed = len(wanted) if image.format == "TIFF" else count
    if count > 1:
        pixels = image.width * image.height
        too_many = passed > MAX_FRAMES_PASSED or pixels * passed > MAX_PIXELS_PASSED * max_pixels
        if too_many or pixels * len(wanted) > max_pixels:
            raise UnreadableImage(
                f"{name}: {count} frames of {image.width} x {image.height} pixels are too much to read; pass single "
                "frames or raise max_pixels"
            )
    frames = []
    # GIF and APNG draw each frame on the one before; Pillow loads those too, but not by our rules.
    for index in range(count) if image.format in ("GIF", "PNG") else sorted(wanted):
        if count > 1:
            try:
                image.seek(index)
            except EOFError:
                raise _EndsEarly from None
        _check_size(image, name, max_pixels)
        _load(image, name)
        if index in wanted:
            frames.append(_as_seen(image, name))
    return frames


def _check_size(image, name, max_pixels):
    width, height = image.size
    size = f"{name}: is {width} x {height} pixels"
    if width * height > max_pixels:
        raise UnreadableImage(f"{size}, over the limit of {max_pixels}; shrink the picture or raise max_pixels")
    if min(width, height) < MIN_SIDE:
        raise UnreadableImage(f"{size}, too small for a patch of {MIN_SIDE} x {MIN_SIDE}; enlarge the picture")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise UnreadableImage(f"{size}, a ratio over {MAX_ASPECT_RATIO}; cut the picture into pieces")
    if any(tile[0] in SLOW_DECODERS for tile in getattr(image, "tile", ())) and width * height > MAX_PIXELS_SLOW:
        raise UnreadableImage(f"{size}, over {MAX_PIXELS_SLOW} in a slow encoding; save it as PNG")


def _load(image, name):
    tiles = getattr(image, "tile", None)
    if tiles and tiles[0][0] != "libtiff":  # libtiff's errors are always raised
        if image.format == "TIFF":
            layers = len(image.getbands()) if image.tag_v2.get(TIFF_PLANAR) == 2 else 1
            covered = sum((right - left) * (bottom - top) for _, (left, top, right, bottom), *_ in tiles)
            if covered < layers * image.width * image.height:
                raise UnreadableImage(f"{name}: has data for only a part of the picture; get the whole file anew")
        strict = []
        for tile in tiles:
            args = tile[3] if isinstance(tile[3], tuple) else () if tile[3] is None else (tile[3],)
            strict.append(type(tile)("safeqwen_strict", tile[1], tile[2], (tile[0], *args)))
        image.tile = strict
    image.load()


# -------------------------------------------------------------------------------- what Pillow does not check in a file


def _check_png(data, name):
    """Refuses wrong checksums, a missing end, and data that do not fill the picture, which Pillow leaves black."""
    position, size, inflater, missing = 8, None, None, 0
    try:
        while True:
            length, kind = struct.unpack_from(">I4s", data, position)
            body = memoryview(data)[position + 8 : position + 8 + length]
            (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
            if zlib.crc32(body, zlib.crc32(kind)) != checksum:
                raise UnreadableImage(f"{name}: is damaged (PNG checksum of {kind!r}); get the whole file anew")
            position += 12 + length
            if kind == b"IHDR":
                *size, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", body)
                bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
            elif kind == b"fcTL":
                size = struct.unpack_from(">II", body, 4)
            if kind in (b"IHDR", b"fcTL", b"IEND"):
                if inflater and missing > 0:
                    raise _EndsEarly
                inflater = None
            if kind == b"IEND":
                return
            if kind in (b"IDAT", b"fdAT"):
                if inflater is None:
                    inflater, missing = zlib.decompressobj(), _png_bytes(*size, bits, interlaced)
                body = bytes(body[4:] if kind == b"fdAT" else body)
                while body and missing > 0 and not inflater.eof:
                    missing -= len(inflater.decompress(body, min(missing, 2**20)))
                    body = inflater.unconsumed_tail
    except struct.error:
        raise _EndsEarly from None


def _png_bytes(width, height, bits, interlaced):
    """Bytes of the rows, each with its filter's byte, before compression."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    total = 0
    for left, top, right, down in passes if interlaced else ((0, 0, 1, 1),):
        columns, rows = -((left - width) // right), -((top - height) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _scale_transparency(image, data):
    """Brings a PNG's one transparent colour to the 8 bits of Pillow's samples."""
    transparency, depth = image.info.get("transparency"), data[24]
    if isinstance(transparency, tuple) and depth == 16:
        image.info["transparency"] = tuple(sample >> 8 for sample in transparency)
    elif isinstance(transparency, int) and image.mode == "L" and depth < 8:
        image.info["transparency"] = transparency * 255 // (2**depth - 1)


def _end_of_jpeg(data):
    """The position of the end marker, which is not that of a thumbnail in the header."""
    position = 2
    # 00 is a byte of the data, D0-D7 are restarts within them
    while marker := re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])").search(data, position):
        position = marker.end()
        if marker[1] == b"\xd9":
            return marker.start()
        if marker[1] not in b"\x01\xd8":
            position += int.from_bytes(data[position : position + 2], "big")
    raise _EndsEarly


def _looks_cut(image):
    """Whether the last pixel has the grey of a JPEG block without data."""
    pixel = image.getpixel((image.width - 1, image.height - 1))
    return set(pixel if isinstance(pixel, tuple) else (pixel,)) <= {127, 128}


def _check_gif(data, name):
    """Refuses files without their end, and those with so many frames that counting them takes a minute."""
    frames = 0
    try:
        position = 13 + (6 << (data[10] & 7) if data[10] & 0x80 else 0)
        while data[position] != 0x3B:
            if data[position] == 0x21:
                position += 2
            elif data[position] == 0x2C:
                frames += 1
                flags = data[position + 9]
                position += 11 + (6 << (flags & 7) if flags & 0x80 else 0)
            else:  # Pillow and browsers skip such bytes
                position += 1
                continue
            while data[position]:
                position += data[position] + 1
            position += 1
            if frames > MAX_FRAMES_PASSED:
                raise UnreadableImage(f"{name}: has over {MAX_FRAMES_PASSED} frames; pass single frames")
    except IndexError:
        raise _EndsEarly from None


# ---------------------------------------------------------------------------------------------------- as a person sees


def _as_seen(image, name):
    """A new RGB picture without metadata, so that nobody turns it again."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # viewers show a picture with broken EXIF as it lies
        orientation = None
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        seen = _from_16_bits(image)
    elif image.mode in ("I", "F"):
        raise UnreadableImage(
            f"{name}: has samples of 32 bits (mode {image.mode}), whose black and white are not agreed on; scale them "
            "to 8 bits"
        )
    else:
        seen = image
    if seen.mode in ("La", "RGBa"):  # colours that were multiplied by alpha
        seen = seen.convert({"La": "LA", "RGBa": "RGBA"}[seen.mode])
    if seen.mode in ("PA", "P") or "transparency" in seen.info:
        transparent = seen.mode == "PA" or "transparency" in seen.info
        seen = seen.convert("RGBA" if transparent else "RGB")
    if seen.mode in ("LA", "RGBA"):
        seen = _on_paper(seen)
    elif seen.mode == "1":
        seen = seen.convert("L")
    elif seen.mode not in ("L", "RGB", "CMYK"):
        seen = seen.convert("RGB")
    seen = _to_srgb(seen, profile)
    if orientation in ORIENTATIONS:
        seen = seen.transpose(ORIENTATIONS[orientation])
    if seen is image:
        seen = image.copy()
    seen.info = {}
    return seen


def _from_16_bits(image):
    samples = np.asarray(image)
    if getattr(image, "tag_v2", {}).get(TIFF_PHOTOMETRIC) == 0:  # white is zero, which Pillow minds up to 8 bits only
        samples = 65535 - samples
    seen = Image.fromarray((samples >> 8).astype(np.uint8))
    if isinstance(image.info.get("transparency"), int):
        seen.putalpha(Image.fromarray(np.where(samples == image.info["transparency"], 0, 255).astype(np.uint8)))
    return seen


def _on_paper(image):
    opaque = image.mode[:-1]
    alpha, colours = image.getchannel("A"), image.convert(opaque)
    white, black = (Image.new(opaque, image.size, colour) for colour in ("white", "black"))
    seen = Image.composite(colours, white, alpha)
    shows = np.asarray(seen).min() < 250
    if shows or alpha.getextrema()[1] == 0:
        return seen
    return Image.composite(colours, black, alpha)


def _to_srgb(image, profile):
    if profile:
        try:
            transform = ImageCms.buildTransform(
                ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), image.mode, "RGB"
            )
            if image.mode != "RGB" or _changes_colours(transform):
                return transform.apply(image)
        except Exception:  # a broken profile, or one for another kind of samples: viewers ignore it
            pass
    return image if image.mode == "RGB" else image.convert("RGB")


def _changes_colours(transform):
    """Whether a profile is anything but sRGB, which most are; their pictures need no conversion."""
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    probe = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    converted = np.asarray(transform.apply(Image.fromarray(probe)))
    return np.abs(converted.astype(int) - probe).max() > 3


# -------------------------------------------------------------------------------------------------------------- arrays


def _read_array(array, max_pixels):
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
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
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
    image = Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array))
    with _reading(name):
        return _read_frames(image, 1, name, max_pixels)
