"""The guard in a browser: `safeqwen demo`, and a Space on Hugging Face."""

# The package is not on the index, where its name is another's to take.
INSTALL = 'pip install -e ".[demo]" in a checkout of SafeQwen'


def launch(model, processor, **settings):
    """
    Serves the demo of a model until it is stopped: see [`safeqwen.browser.server.launch`] for the settings.

    Raises:
        ImportError: if Gradio 6 is not installed.
    """
    try:
        from safeqwen.browser.server import launch
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "gradio":
            raise
        raise ImportError(f"the demo in a browser needs Gradio 6: {INSTALL}") from error
    return launch(model, processor, **settings)
