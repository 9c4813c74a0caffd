"""
The bytes of a picture file as samples, whole or refused: what is missing might be the harm.

libvips decodes PNG, JPEG and TIFF, and is told to fail on every warning. Pillow decodes GIF, WebP, AVIF, BMP and PPM,
whose data it knows to be whole or not. What neither of them checks is checked here: the ends of PNG, JPEG and GIF, the
frames of an APNG, the directories of a TIFF, the scans of a JPEG.

- **Animations** and pages of a TIFF are up to `MAX_FRAMES` frames, evenly spaced from the first to the last: what is
  only in between is not seen. An APNG's default image counts as its first frame. A multi-picture JPEG (MPO) is its
  first picture, and bytes behind the end of a picture are nothing, as in any viewer.
- **Damage** that a format cannot show is not seen: wrong bytes within JPEG, lossy WebP, BMP or plain TIFF data are the
  pixels that viewers make of them, and a progressive JPEG may lack its last refinements. A PNG is refused if a
  checksum is wrong, a JPEG if its decoder warns.

Several threads may call it, and forked processes. No setting of either library is changed, and of Pillow's only a
lower `Image.MAX_IMAGE_PIXELS` matters.
"""

import contextlib
import io
import logging
import re
import struct
import zlib

import numpy as np
import pyvips
from PIL import AvifImagePlugin, BmpImagePlugin, GifImagePlugin, Image, ImageFile, PpmImagePlugin, WebPImagePlugin

from safeqwen.pictures.appearance import Samples, picture_of, to_8_bits
from safeqwen.pictures.errors import UnreadableImage, one_line


MAX_FRAMES = 8  # of an animation
MAX_PIXELS = 2 * 89_478_485  # where Pillow's own limit against decompression bombs raises
MIN_SIDE = 14  # one patch of Qwen2.5-VL
MAX_ASPECT_RATIO = 200  # of Qwen2.5-VL's image processor

# To reach an animation's last frame most formats decode all before it: at 60 megapixels a second, 12 seconds.
MAX_PIXELS_PASSED = 4  # times max_pixels
MAX_FRAMES_PASSED = 10_000
# Every scan of a JPEG is a pass over all its pixels; encoders write about ten.
MAX_SCANS = 64
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
PILLOW = {  # not by `Image.open`, which warns of large pictures
    "GIF": GifImagePlugin.GifImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}
PNG = b"\x89PNG\r\n\x1a\n"
PNG_COLOURS = {  # chunk -> key of `Samples.about`, how to read it
    b"gAMA": ("gamma", lambda body: int.from_bytes(body, "big") / 100_000),
    b"cHRM": ("chromaticity", lambda body: [number / 100_000 for number in struct.unpack(">8I", body)]),
    b"sRGB": ("srgb", lambda body: body[0]),
    b"cICP": ("cicp", tuple),
}
EXIF_ORIENTATION = 0x0112
TIFF_PHOTOMETRIC, TIFF_EXTRA_SAMPLES = 262, 338

logging.getLogger("pyvips").addHandler(logging.NullHandler())  # what it warns of is in our errors


class _EndsEarly(Exception):
    """No OSError, which Pillow forgives while LOAD_TRUNCATED_IMAGES is set."""


def decode(data, name, max_pixels):
    """
    Yields the `Samples` of each frame of a file's bytes, up to `MAX_FRAMES`, in their order.

    Raises:
        UnreadableImage: if the bytes are no whole picture of a format in `SIGNATURES`, or its size is out of bounds.
    """
    if not data:
        raise UnreadableImage(f"{name}: is empty (0 bytes); get the file anew")
    format = signature(data)
    if format is None:
        kind = "a web page or drawing in XML, none" if data.lstrip()[:1] == b"<" else "none"
        raise UnreadableImage(
            f"{name}: is {kind} of the formats that are read ({', '.join(SIGNATURES)}); save it as PNG"
        )
    readers = {"PNG": _read_png, "JPEG": _read_jpeg, "TIFF": _read_tiff}
    with refusals(name):
        if format in readers:
            yield from readers[format](data, name, max_pixels)
        else:
            yield from _read_by_pillow(data, format, name, max_pixels)


def signature(data):
    """The format in `SIGNATURES` that the bytes begin as, or None."""
    head = bytes(data[:16])
    return next((format for format, start in SIGNATURES.items() if re.match(start, head, re.DOTALL)), None)


@contextlib.contextmanager
def refusals(name, remedy="get the whole file anew, or save it as PNG"):
    """Makes every failure of a decoder an UnreadableImage."""
    try:
        yield
    except UnreadableImage:
        raise
    except (_EndsEarly, struct.error):
        raise UnreadableImage(f"{name}: ends before the picture does; get the whole file anew") from None
    except MemoryError as error:
        raise UnreadableImage(f"{name}: does not fit into memory; shrink the picture") from error
    except Exception as error:  # a broken file leads the readers to any exception
        what = f"is damaged, unsupported or ends before the picture does ({one_line(error)})"
        raise UnreadableImage(f"{name}: {what}; {remedy}") from error


def check_size(width, height, name, max_pixels):
    size = f"{name}: is {width} x {height} pixels"
    if width * height > max_pixels:
        raise UnreadableImage(f"{size}, over the limit of {max_pixels}; shrink the picture or raise max_pixels")
    if Image.MAX_IMAGE_PIXELS and width * height > 2 * Image.MAX_IMAGE_PIXELS:
        raise UnreadableImage(f"{size}, over Pillow's limit; shrink the picture or raise PIL.Image.MAX_IMAGE_PIXELS")
    if min(width, height) < MIN_SIDE:
        raise UnreadableImage(f"{size}, too small for a patch of {MIN_SIDE} x {MIN_SIDE}; enlarge the picture")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise UnreadableImage(f"{size}, a ratio over {MAX_ASPECT_RATIO}; cut the picture into pieces")


def _chosen(count, width, height, name, max_pixels, direct=False):
    """The indices of the frames to return. `direct`: each can be reached without those before it."""
    check_size(width, height, name, max_pixels)
    if count > MAX_FRAMES_PASSED:
        raise UnreadableImage(f"{name}: has over {MAX_FRAMES_PASSED} frames; pass single frames")
    last = min(MAX_FRAMES, count) - 1
    wanted = sorted({round(i * (count - 1) / last) for i in range(last + 1)}) if last else [0]
    passed, pixels = len(wanted) if direct else count, width * height
    if count > 1 and (pixels * passed > MAX_PIXELS_PASSED * max_pixels or pixels * len(wanted) > max_pixels):
        raise UnreadableImage(
            f"{name}: {count} frames of {width} x {height} pixels are too much to read; pass single frames or raise "
            "max_pixels"
        )
    return wanted


# ---------------------------------------------------------------------------------------------------------- by libvips


def _open(load, data, **options):
    return load(data, fail_on="warning", access="sequential", **options)


def _samples(image, name, about=None):
    """The `Samples` of a libvips image."""
    if image.format not in ("uchar", "ushort"):
        raise UnreadableImage(
            f"{name}: has samples of 32 bits ({image.format}), whose black and white are not agreed on; scale them to "
            "8 bits"
        )
    # Strips in this thread: libvips' own threads do not survive a fork, and a data loader's process would wait for
    # them for ever. More rows at once are slower.
    region = pyvips.Region.new(image)
    samples = np.empty((image.height, image.width, image.bands), np.uint8 if image.format == "uchar" else np.uint16)
    for top in range(0, image.height, 32):
        rows = samples[top : top + 32]
        rows[:] = np.frombuffer(region.fetch(0, top, image.width, len(rows)), rows.dtype).reshape(rows.shape)
    mode = "CMYK" if image.interpretation == "cmyk" else "L" if image.bands < 3 else "RGB"
    colours = len(mode)
    keys = {"icc_profile": "icc-profile-data", "orientation": "orientation"}
    return Samples(
        samples[..., 0] if mode == "L" else samples[..., :colours],
        mode,
        samples[..., colours] if image.bands > colours else None,
        {key: image.get(field) for key, field in keys.items() if image.get_typeof(field)} | (about or {}),
    )


def _read_jpeg(data, name, max_pixels):
    image = _open(pyvips.Image.jpegload_buffer, data)
    check_size(image.width, image.height, name, max_pixels)
    if _count_scans(data) > MAX_SCANS:
        raise UnreadableImage(f"{name}: has over {MAX_SCANS} scans, which take too long to decode; save it as PNG")
    yield _samples(image, name)


def _count_scans(data):
    """The scans before the end marker: not those of a thumbnail in the header, nor of what follows the picture."""
    position, scans = 2, 0
    # 00 is a byte of the data, D0-D7 are restarts within them
    while marker := re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])").search(data, position):
        if marker[1] == b"\xd9":
            return scans
        scans += marker[1] == b"\xda"
        position = marker.end()
        if marker[1] not in b"\x01\xd8":
            position += int.from_bytes(data[position : position + 2], "big")
    raise _EndsEarly


def _read_tiff(data, name, max_pixels):
    image, extras = _open(pyvips.Image.tiffload_buffer, data), _tiff_pages(data)
    for page in _chosen(len(extras), image.width, image.height, name, max_pixels, direct=True):
        image = _open(pyvips.Image.tiffload_buffer, data, page=page)
        check_size(image.width, image.height, name, max_pixels)
        samples = _samples(image, name)
        if extras[page] not in (1, 2):  # what libvips takes for alpha is some other channel
            samples.alpha = None
        yield samples


def _tiff_pages(data):
    """The kind of extra channel (TIFF 6.0, ExtraSamples) of each page, whose directories must be there."""
    order, big = "<" if data[:2] == b"II" else ">", b"+" in data[2:4]
    number, entry, offset = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    (position,), extras = struct.unpack_from(order + offset, data, 8 if big else 4), []
    while position and len(extras) <= MAX_FRAMES_PASSED:
        (entries,) = struct.unpack_from(order + number, data, position)
        position += struct.calcsize(order + number)
        extras.append(0)
        for _ in range(min(entries, 2**16)):
            tag, _, count = struct.unpack_from(order + entry, data, position)
            position += struct.calcsize(order + entry)
            if tag == TIFF_EXTRA_SAMPLES and count == 1:
                (extras[-1],) = struct.unpack_from(order + "H", data, position)
            position += struct.calcsize(offset)
        (position,) = struct.unpack_from(order + offset, data, position)
    return extras


# ----------------------------------------------------------------------------------------------------------------- PNG


def _read_png(data, name, max_pixels):
    image, chunks = _open(pyvips.Image.pngload_buffer, data), list(_png_chunks(data))
    check_size(image.width, image.height, name, max_pixels)
    head = dict(chunks[: [kind for kind, _ in chunks].index(b"IDAT")])
    about = {key: read(head[kind]) for kind, (key, read) in PNG_COLOURS.items() if kind in head}
    if b"acTL" not in head:
        yield _samples(image, name, about)
        return
    about = _samples(image, name, about).about
    parts, canvas = list(_apng_parts(chunks)), Image.new("RGBA", (image.width, image.height))
    wanted = _chosen(len(parts), image.width, image.height, name, max_pixels)
    for index, (part, left, top, dispose, blend) in enumerate(parts):
        part = _to_rgba(_samples(_open(pyvips.Image.pngload_buffer, part), name))
        before = canvas.copy()
        if blend:
            canvas.alpha_composite(part, (left, top))
        else:
            canvas.paste(part, (left, top))
        if index in wanted:
            seen = np.asarray(canvas)
            yield Samples(seen[..., :3], "RGB", seen[..., 3], about)
        if dispose == 2 and index:
            canvas = before
        elif dispose:
            canvas.paste((0, 0, 0, 0), (left, top, left + part.width, top + part.height))


def _png_chunks(data):
    """The kind and body of each chunk, to the end."""
    position, kind = 8, None
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
        if zlib.crc32(body, zlib.crc32(kind)) != checksum:
            raise ValueError(f"wrong checksum of {kind!r}")
        yield kind, body
        position += 12 + length


def _apng_parts(chunks):
    """Each frame as a PNG of its own, and where and how it is drawn: left, top, dispose and blend."""
    header, palette, body, control = dict(chunks)[b"IHDR"], [], b"", None
    for kind, chunk in chunks:
        if kind in (b"fcTL", b"IEND") and body:
            control = control or bytes(4) + header[:8] + bytes(14)  # of a default image that is no frame
            own = [(b"IHDR", control[4:12] + header[8:]), *palette, (b"IDAT", body), (b"IEND", b"")]
            left, top, _, dispose, blend = struct.unpack(">IIIBB", control[12:])
            yield PNG + b"".join(map(_png_chunk, own)), left, top, dispose, blend
            body = b""
        if kind == b"fcTL":
            control = chunk
        elif kind in (b"IDAT", b"fdAT"):
            body += chunk if kind == b"IDAT" else chunk[4:]
        elif kind in (b"PLTE", b"tRNS"):
            palette.append((kind, chunk))


def _png_chunk(chunk):
    kind, body = chunk
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _to_rgba(samples):
    """The `Samples` of a part of an APNG as an RGBA picture."""
    picture = picture_of(to_8_bits(samples.colours), samples.mode).convert("RGBA")
    if samples.alpha is not None:
        picture.putalpha(picture_of(to_8_bits(samples.alpha), "L"))
    return picture


# ----------------------------------------------------------------------------------------------------------- by Pillow


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


def _read_by_pillow(data, format, name, max_pixels):
    if format == "GIF":
        _check_gif(data, name)
    image = PILLOW[format](_WholeFile(data))
    if any(tile[0] in SLOW_DECODERS for tile in image.tile) and image.width * image.height > MAX_PIXELS_SLOW:
        size = f"{image.width} x {image.height} pixels"
        raise UnreadableImage(f"{name}: is {size}, over {MAX_PIXELS_SLOW} in a slow encoding; save it as PNG")
    if format == "AVIF" and (found := re.search(rb"colrnclx(.{4})", data, re.DOTALL)):
        image.info.setdefault("cicp", struct.unpack(">HH", found[1]))
    yield from pillow_frames(image, name, max_pixels)


def pillow_frames(image, name, max_pixels):
    """Yields the `Samples` of up to `MAX_FRAMES` frames of a `PIL.Image.Image`."""
    animated = image.format != "MPO" and image.tell() == 0 and getattr(image, "is_animated", False)
    count = image.n_frames if animated else 1
    wanted = _chosen(count, *image.size, name, max_pixels)
    # A GIF draws each frame on the one before; Pillow loads that too, but not by our rules.
    for index in range(count) if image.format == "GIF" else wanted:
        if count > 1:
            image.seek(index)
        check_size(*image.size, name, max_pixels)
        image.tile = [_strict(tile) for tile in getattr(image, "tile", ())]
        image.load()
        if index in wanted:
            yield pillow_samples(image, name)


def _strict(tile):
    args = tile[3] if isinstance(tile[3], tuple) else () if tile[3] is None else (tile[3],)
    return type(tile)("safeqwen_strict", tile[1], tile[2], (tile[0], *args))


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
            else:  # browsers skip such bytes
                position += 1
                continue
            while data[position]:
                position += data[position] + 1
            position += 1
            if frames > MAX_FRAMES_PASSED:
                raise UnreadableImage(f"{name}: has over {MAX_FRAMES_PASSED} frames; pass single frames")
    except IndexError:
        raise _EndsEarly from None


def pillow_samples(image, name):
    """The `Samples` of a `PIL.Image.Image`."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # viewers show a picture with broken EXIF as it lies
        orientation = None
    about = {**image.info, "orientation": orientation}
    if about.get("icc_profile"):
        about.pop("cicp", None)  # of an AVIF
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        samples = np.asarray(image).astype(np.uint16)
        if getattr(image, "tag_v2", {}).get(TIFF_PHOTOMETRIC) == 0:  # white is zero: Pillow minds 8 bits only
            samples = 65535 - samples
        transparent = image.info.get("transparency")
        alpha = np.where(samples == transparent, 0, 255).astype(np.uint8) if isinstance(transparent, int) else None
        return Samples(samples, "L", alpha, about)
    if image.mode in ("I", "F"):
        raise UnreadableImage(
            f"{name}: has samples of 32 bits (mode {image.mode}), whose black and white are not agreed on; scale them "
            "to 8 bits"
        )
    if image.mode in ("La", "RGBa"):  # colours that were multiplied by alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("PA", "P") or "transparency" in image.info:
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        image = image.convert("RGB")
    samples, mode = np.asarray(image), image.mode.removesuffix("A")
    if mode == image.mode:
        return Samples(samples, mode, None, about)
    return Samples(samples[..., 0] if mode == "L" else samples[..., :3], mode, samples[..., -1], about)
