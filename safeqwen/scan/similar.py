"""
Near-identical pictures: the same drawing or photograph, saved, sized or compressed anew.

Two pictures are near-identical if their perceptual hashes differ in at most `MAX_DISTANCE` of 256 bits. The hash is
ImageHash's phash of 16 x 16: which of the lowest 256 frequencies of the 64 x 64 greys are above their median (the
library cites hackerfactor.com's "Looks Like It"). On the demo's pictograms JPEG of quality 30, half the size, twice
the size and a tenth brighter are at most 12 bits apart, and different drawings at least 68.

To compare a million hashes with each other would take 10^12 steps. By the pigeonhole principle two that differ in at
most 15 bits are equal in one of 16 words of 16 bits: only those are compared, and no pair is missed.
"""

import numpy as np

from safeqwen.scan import INSTALL


HASH_SIDE = 16
NUM_WORDS = 16  # of 16 bits
MAX_DISTANCE = NUM_WORDS - 1
FLAT = 16  # greys between the darkest and the brightest, up to which a picture is of one colour
PAIRS_AT_ONCE = 2**20
NUM_ONES = np.unpackbits(np.arange(2**16, dtype=">u2").view(np.uint8).reshape(-1, 2), axis=1).sum(axis=1)  # of a word


def check_libraries():
    """Raises an `ImportError` that says what to do if a library is missing."""
    try:
        import imagehash  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(f"a scan needs {error.name}: {INSTALL}") from error


def perceptual_hash(view):
    """Returns the hash (32 `bytes`) of a picture (`PIL.Image.Image`), or `None` if it is of one colour.

    Raises:
        ModuleNotFoundError: if ImageHash is not installed.
    """
    import imagehash
    from PIL import Image

    side = 4 * HASH_SIDE
    small = view.convert("L").resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2)
    darkest, brightest = small.getextrema()
    if brightest - darkest <= FLAT:
        return None
    return np.packbits(imagehash.phash(small, hash_size=HASH_SIDE).hash).tobytes()


def near_identical(hashes):
    """
    Returns which of the hashes belong together (`np.ndarray` of shape `(hashes,)`): for each the index of the first of
    its group. Groups are chains: a is with c if both are near-identical to b.

    Args:
        hashes (`list[bytes]`): different ones.
    """
    first = np.arange(len(hashes))
    if len(hashes) < 2:
        return first
    words = np.frombuffer(b"".join(hashes), ">u2").reshape(-1, NUM_WORDS).astype(np.uint16)
    for word in words.T:
        order = np.argsort(word, kind="stable")
        for left, right in _pairs_of_equals(word[order]):
            left, right = order[left], order[right]
            apart = first[left] != first[right]  # the others are in one group already
            left, right = left[apart], right[apart]
            near = NUM_ONES[words[left] ^ words[right]].sum(axis=1) <= MAX_DISTANCE
            if near.any():
                first = _joined(first, left[near], right[near])
    return first


def _pairs_of_equals(values):
    """Yields the indices of all pairs of equal ones in sorted values, as two arrays of at most about a million."""
    for step in range(1, len(values)):
        left = np.flatnonzero(values[step:] == values[:-step])
        if not len(left):
            return  # in sorted values nothing further apart is equal, either
        for start in range(0, len(left), PAIRS_AT_ONCE):
            some = left[start : start + PAIRS_AT_ONCE]
            yield some, some + step


def _joined(first, left, right):
    """`first` with the groups of each pair joined: the smallest index of a group is the first."""
    first = first.tolist()
    for a, b in zip(left.tolist(), right.tolist()):
        while first[a] != a:
            a = first[a]
        while first[b] != b:
            b = first[b]
        first[max(a, b)] = min(a, b)
    for i, one in enumerate(first):  # those before are done, and the first of a group is never behind a member
        first[i] = first[one]
    return np.array(first)
