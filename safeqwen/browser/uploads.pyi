"""Pictures that a visitor sends: read into memory once, and deleted from the disk at that moment."""

from pathlib import Path

import gradio
from gradio_client.utils import is_http_url_like

class _ReadOnce:
    """
    Gives handlers `(bytes, name)` in place of a path on the server.

    Gradio writes what a browser sends into its temporary folder, and hands on only paths of that folder. A path that
    is a URL would make Gradio download it, past the rules of `safeqwen.read_image`: it is refused.
    """

    is_template = True  # the page shows it as Gradio's own component

    async def async_move_resource_to_block_cache(self, url_or_file_path):
        if url_or_file_path is not None and is_http_url_like(str(url_or_file_path)):
            raise gradio.Error("expected an uploaded picture, got a link: links go into the field for links")
        return await super().async_move_resource_to_block_cache(url_or_file_path)

    def preprocess(self, payload):
        if payload is None:
            return None
        files = payload.root if hasattr(payload, "root") else [payload]
        return [_read_and_delete(file) for file in files]

class PictureFiles(_ReadOnce, gradio.File):
    """A field for picture files; its handlers get a list of `(bytes, name)`, or `None`."""

    def get_block_name(self):  # what shows it
        return "file"
    from collections.abc import Callable, Sequence
    from typing import TYPE_CHECKING, Any, Literal

    from gradio.blocks import Block

    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

class Photograph(_ReadOnce, gradio.Image):
    """A camera; its handlers get a list of one `(bytes, name)`, or `None`."""

    def get_block_name(self):
        return "image"
    from collections.abc import Callable, Sequence
    from typing import TYPE_CHECKING, Any, Literal

    from gradio.blocks import Block

    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

def _read_and_delete(file):
    path = Path(file.path)
    try:
        return path.read_bytes(), file.orig_name or path.name
    finally:
        path.unlink(missing_ok=True)
