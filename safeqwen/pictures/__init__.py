"""
Pictures from wherever they come, as a person would see them, or a refusal that says why.

`source` finds the bytes, `fetch` downloads them, `decode` makes samples of them, `appearance` shows those on paper.
"""

from safeqwen.pictures.decode import MAX_FRAMES
from safeqwen.pictures.errors import UnreadableImage
from safeqwen.pictures.source import frame_numbers, read_bytes, read_image, read_stream


__all__ = ["MAX_FRAMES", "UnreadableImage", "frame_numbers", "read_bytes", "read_image", "read_stream"]
