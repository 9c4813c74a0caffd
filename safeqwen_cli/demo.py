"""The arguments of `safeqwen demo`."""

from safeqwen_cli.arguments import add_command, add_model_arguments, positive


DESCRIPTION = """\
Show the guard in a browser: drop, paste, photograph or link pictures, see verdicts and where they come from, and ask.

The page is served by this computer, to this computer alone unless --host or --share says otherwise. Pictures are
deleted from the disk once they are read. --share opens a public link: what visitors send then travels through the
servers of Gradio, and who has the link can use the model. Needs pip install -e ".[demo]" in a checkout of SafeQwen.
"""
EXIT_CODES = """\
exit codes: 0 it was stopped (Ctrl-C); 2 wrong usage, no Gradio, a port that is
taken, or a model that cannot be loaded or may not judge: the reason is on stderr.
"""


def add_parser(commands):
    demo = add_command(
        commands, "demo", help="show the guard in a browser", description=DESCRIPTION, epilog=EXIT_CODES
    )
    demo.add_argument("--max-new-tokens", type=positive, metavar="N", default=256, help="of an answer (default: 256)")
    server = demo.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other computers in (default: 127.0.0.1)")
    server.add_argument("--port", type=positive, metavar="N", help="(default: the first free one from 7860)")
    server.add_argument("--share", action="store_true", help="open a public link through Gradio's servers")
    add_model_arguments(demo)
