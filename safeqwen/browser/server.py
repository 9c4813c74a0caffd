"""Serves the page, so that nothing leaves this computer: no analytics, no history, no fonts or scripts of others."""

import os
import tempfile

from starlette.middleware import Middleware

from safeqwen.browser import page
from safeqwen.pictures.source import MAX_BYTES


# Gradio reads these when it is imported. Its run history would keep pictures and verdicts in the visitor's browser.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_RUN_HISTORY"] = "False"

import gradio as gr  # noqa: E402

from safeqwen.browser.app import build  # noqa: E402


# Gradio's own page needs inline scripts, and its templates `new Function`; hosts other than this one, nobody.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'"
)
MAX_VISITORS = 100  # whose pictures are kept in memory; of more, those who did nothing for longest are forgotten
SYSTEM_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}


class OnlyThisHost:
    """Tells the browser to load nothing from other hosts, and not to tell them where a visitor comes from."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"same-origin")]
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def launch(model, processor, *, host="127.0.0.1", port=None, share=False, block=True, **settings):
    """
    Serves the page until it is stopped, and returns it (`gradio.Blocks`).

    Args:
        model ([`SafeQwen2_5_VLForConditionalGeneration`]), processor: as [`safeqwen.load`] returns them.
        host (`str`): the address to listen at; "0.0.0.0" lets other computers in.
        port (`int`, *optional*): by default the first free one from 7860.
        share (`bool`): whether to open a public link through Gradio's servers.
        block (`bool`): whether to wait until somebody presses Ctrl-C.
        settings: `is_demo`, `model_name`, `max_new_tokens` as [`safeqwen.browser.app.build`] takes them.

    Raises:
        RuntimeError: if the model may not judge: its guard is untrained.
        OSError: if the port is taken, or the address is not of this computer.
    """
    folder = tempfile.TemporaryDirectory(prefix="safeqwen-demo-", ignore_cleanup_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder.name  # what is uploaded, until it is read
    blocks = build(model, processor, is_shared=share, **settings)
    blocks.uploads = folder  # which is deleted with it, at the latest when the process ends
    try:
        _serve(blocks, host, port, share)
    except (OSError, OverflowError) as error:
        folder.cleanup()
        ports = f"port {port}" if port else "ports from 7860"
        raise OSError(f"cannot listen at {host}, {ports}: taken, or not of this computer; choose another") from error
    if block:
        blocks.block_thread()
    return blocks


def _serve(blocks, host, port, share):
    blocks.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        max_file_size=MAX_BYTES,
        state_session_capacity=MAX_VISITORS,
        app_kwargs={"middleware": [Middleware(OnlyThisHost)]},
        theme=gr.themes.Base(**SYSTEM_FONTS),
        css=page.styles(),
        footer_links=["api"],
        ssr_mode=False,
        show_error=True,
    )
