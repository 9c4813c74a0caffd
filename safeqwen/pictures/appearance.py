"""
Decoded samples as a person sees them: 8 bits of sRGB, on paper, upright.

- **Colours** are converted to sRGB as browsers do: by cICP (an AVIF's nclx too), else by the ICC profile, else by a
  PNG's gAMA and cHRM. HDR is mapped to the range of a plain screen. A profile that cannot be used is ignored; CMYK
  without one is converted plainly.
- **16-bit** samples lose their lower byte: the full range stays, nothing is clipped. Of 16-bit colours that byte is
  gone before a gamma is applied.
- **Transparency** may lie on any paper. Where white and black paper look different there is a view on each.
- **Turned** as EXIF says.
"""

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageCms


VISIBLE = 8  # levels of 255 by which two papers must differ somewhere to look different
SHOWS = 0.001  # of the pixels, so many must be visible for a drawing to show on a paper

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# By the code points of ITU-T H.273, as cICP and nclx hold them. Those that are not here look like sRGB's.
PRIMARIES = {  # x and y of white, red, green and blue, as in a PNG's cHRM
    9: (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),  # BT.2020
    12: (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),  # Display P3
}
SCREEN_WHITE = 203  # nits of HDR that are a plain screen's white (ITU-R BT.2408)


@dataclass
class Samples:
    """
    One decoded frame.

    Args:
        colours (`PIL.Image.Image` of mode "L", "RGB" or "CMYK", or `np.ndarray` of shape `(height, width)`): the
            array is uint16.
        alpha (`PIL.Image.Image` of mode "L", *optional*): 0 is transparent.
        about (`dict`): what the file says of its look: "icc_profile" (`bytes`), "orientation" (1 to 8), "cicp" (code
            points), "srgb", "gamma" (`float`), "chromaticity" (8 floats as in `PRIMARIES`).
    """

    colours: Image.Image | np.ndarray
    alpha: Image.Image | None = None
    about: dict = field(default_factory=dict)


def views(samples, one_paper=False):
    """
    Returns what a person may see of a frame, a list of RGB `PIL.Image.Image` without metadata.

    That is one picture. It is two, on white and on black paper, where the two look different; with `one_paper` the
    one on white, or on black if next to nothing shows on white.
    """
    curve, profile = _colour_space(samples.about)
    opaque = _to_srgb(_to_8_bits(samples.colours, curve), profile)
    seen = [opaque]
    if samples.alpha is not None:
        alpha = samples.alpha
        papers = [Image.new("RGB", opaque.size, colour) for colour in ("white", "black")]
        seen = [Image.composite(opaque, paper, alpha) for paper in papers]
        if 255 - alpha.getextrema()[0] < VISIBLE:
            seen = seen[:1]
        elif one_paper:
            seen = seen[:1] if _shows(seen[0], papers[0]) or not _shows(seen[1], papers[1]) else seen[1:]
    turn = TURNS.get(samples.about.get("orientation"))
    seen = [picture.copy() if turn is None else picture.transpose(turn) for picture in seen]
    for picture in seen:
        picture.info = {}  # nobody turns it again
    return seen


def _shows(picture, paper):
    differs = np.abs(np.asarray(picture).astype(np.int16) - np.asarray(paper)).max(axis=-1) >= VISIBLE
    return differs.mean() >= SHOWS


# ----------------------------------------------------------------------------------------------------- colour spaces


def _colour_space(about):
    """The curve from samples to light in [0, 1], and the ICC profile of what sRGB's curve then makes of the light."""
    if about.get("cicp"):
        primaries, transfer = about["cicp"][:2]
        return CURVES.get(transfer), _profile_of(PRIMARIES.get(primaries))
    if about.get("icc_profile"):
        return None, about["icc_profile"]
    if about.get("srgb") is not None:
        return None, None
    gamma, curve = about.get("gamma") or 0, None
    if gamma > 0 and abs(gamma * 2.2 - 1) > 0.05:  # the usual 0.45455 is meant as sRGB's
        curve = lambda encoded: encoded ** (1 / gamma)  # noqa: E731
    return curve, _profile_of(about.get("chromaticity"))


def _to_8_bits(colours, curve):
    if curve is None:
        return Image.fromarray((colours >> 8).astype(np.uint8)) if isinstance(colours, np.ndarray) else colours
    light = curve(np.linspace(0, 1, 2**16 if isinstance(colours, np.ndarray) else 256))
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    table = np.rint(255 * encoded).astype(np.uint8)
    if isinstance(colours, np.ndarray):
        return Image.fromarray(table[colours])
    return colours.point(table.tolist() * len(colours.getbands()))


def _on_plain_screen(nits, peak):
    """Light in [0, 1] by Reinhard's curve: nothing up to the peak becomes one white (Reinhard et al. 2002, eq. 4)."""
    light, peak = nits / SCREEN_WHITE, peak / SCREEN_WHITE
    return light * (1 + light / peak**2) / (1 + light)


def _perceptual_quantizer(encoded):
    power = encoded ** (1 / 78.84375)  # SMPTE ST 2084
    light = (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
    return _on_plain_screen(10_000 * light, peak=10_000)


def _hybrid_log_gamma(encoded):
    scene = np.where(encoded <= 0.5, encoded**2 / 3, (np.exp((encoded - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    return _on_plain_screen(1000 * np.minimum(scene, 1) ** 1.2, peak=1000)  # ITU-R BT.2100


CURVES = {
    4: lambda encoded: encoded**2.2,
    5: lambda encoded: encoded**2.8,
    8: lambda encoded: encoded,
    16: _perceptual_quantizer,
    18: _hybrid_log_gamma,
}


def _profile_of(chromaticity):
    """An ICC profile like sRGB's with other primaries (`PRIMARIES`), or None."""
    if chromaticity is None or min(chromaticity[1::2]) <= 0:
        return None
    x, y = np.array(chromaticity, dtype=float).reshape(4, 2).T
    try:
        white, *_ = xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y], axis=1)
        primaries = xyz[1:].T * np.linalg.solve(xyz[1:].T, white)  # columns that add up to white
        # from the picture's white to that of all profiles, D50, by Bradford's matrix (ICC.1:2022, annex E)
        cones = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
        scale = cones @ [0.9642, 1, 0.8249] / (cones @ white)
        primaries = np.linalg.solve(cones, scale[:, None] * (cones @ primaries))
        numbers = np.rint(primaries.T * 65536).astype(">i4")
    except np.linalg.LinAlgError:
        return None
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for tag, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), numbers):
        entry = profile.index(tag, 128)
        start = int.from_bytes(profile[entry + 4 : entry + 8], "big") + 8
        profile[start : start + 12] = column.tobytes()
    return bytes(profile)


def _to_srgb(image, profile):
    """The picture as RGB."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if source.profile.xcolor_space.strip() == "RGB" and image.mode == "L":
                image = image.convert("RGB")
            transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), image.mode, "RGB")
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
