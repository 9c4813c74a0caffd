"""`safeqwen demo`: the guard in a browser, until Ctrl-C."""

import signal
import sys

import transformers

from safeqwen import browser
from safeqwen.commands.model import DEMO, load_model, source_of
from safeqwen.commands.terminal import prepare_streams, say
from safeqwen.loading import DEMO_CHECKPOINT


def run(args):
    """Runs `safeqwen demo` with the arguments of `safeqwen_cli`, and returns its exit code."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    prepare_streams()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the folder of uploads is deleted
    try:
        model, processor = load_model(args)
        browser.launch(
            model,
            processor,
            host=args.host,
            port=args.port,
            share=args.share,
            is_demo=source_of(args.model) == DEMO_CHECKPOINT,
            model_name=args.model or DEMO,
            max_new_tokens=args.max_new_tokens,
        )
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        say(error)
        return 2
    except KeyboardInterrupt:  # as it is meant to end; while it serves, Gradio takes it and returns
        pass
    return 0
