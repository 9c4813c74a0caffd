"""Pictures that a visitor sends: read into memory once, and deleted from the disk at that moment."""

from pathlib import Path

import gradio
from gradio_client.utils import is_http_url_like


def read_once(field):
    """
    Returns the field (`gradio.File` or `gradio.Image`), whose handlers now get a list of `(bytes, name)`, or `None`.
    The bytes are `None` if the file is gone: the same one was sent twice at the same time.

    Gradio writes what a browser sends into its temporary folder, and hands on only paths of that folder. A path that
    is a URL would make Gradio download it, past the rules of `safeqwen.read_image`: it is refused.
    """
    # On the object: beside the file of a subclass Gradio would write a .pyi, into the installed package.
    take = field.async_move_resource_to_block_cache

    async def take_upload(path):
        if path is not None and is_http_url_like(str(path)):
            raise gradio.Error("expected an uploaded picture, got a link: links go into the field for links")
        return await take(path)

    field.async_move_resource_to_block_cache = take_upload
    field.preprocess = _read_and_delete
    return field


def _read_and_delete(payload):
    if payload is None:
        return None
    files = getattr(payload, "root", [payload])
    # Gradio names a file by its content: one sent twice is one path, so all are read before one is deleted.
    read = [(_bytes_of(Path(file.path)), file.orig_name or Path(file.path).name) for file in files]
    for file in files:
        Path(file.path).unlink(missing_ok=True)
    return read


def _bytes_of(path):
    try:
        return path.read_bytes()
    except FileNotFoundError:  # another visitor sent the same file, and was served first
        return None
