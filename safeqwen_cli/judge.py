"""The arguments of `safeqwen judge`."""

from safeqwen_cli.arguments import (
    add_command,
    add_fetching,
    add_max_pixels,
    add_model_arguments,
    positive,
    probability,
    words,
)


DESCRIPTION = """\
Judge pictures, and answer a question about each with --ask.

For each picture a table of the categories above 10 %. Every frame is judged by itself, whether or not there is a
question, and a picture of several frames is as unsafe as its least safe frame. The verdict on a still picture comes
from the same pass that starts the answer; an animation, and pictures --together, take a pass a frame more.

The verdict is the model's estimate. A policy makes a decision of it: the safety_policy.json in the model's folder, or
--policy FILE. The line below the table then says what to do, and why.

On a terminal the picture stands beside its verdict, and each threshold is marked in its bar; with a policy the bars
are the calibrated probabilities, which its thresholds are for. Colours: NO_COLOR=1 turns them and the pictures off,
FORCE_COLOR=1 colours what goes elsewhere, too. Pictures are sharp in kitty, Ghostty, WezTerm, iTerm2, foot and Konsole
with pip install -e ".[terminal]", and made of half blocks elsewhere. Those that are flagged are blurred.
"""
EXIT_CODES = """\
exit codes: 0 all pictures were judged; 1 a picture could not be judged (its reason is on stderr, the others are
judged all the same), or the reader of stdout has left (| head); 2 wrong usage, the model could not be loaded, or
the policy is for another model, or stdout is closed or full; 3 with --fail-on-unsafe, a picture was judged unsafe, or
with a policy the decision on one is not "allow" (whether or not another could not be judged; in shadow mode never).

--json writes one object a line, in the order of the pictures:
  image     (string) as given
  label     (string or null) the likeliest category
  score     (number or null) its probability in [0, 1]
  unsafe    (number or null) 1 - p(safe); null too if the model has no category "safe"
  scores    (object or null) the probability of each category, in the model's order
  frames    (number or null) how many views were judged: the frames of an animation, each twice if it looks
            different on white and on black paper
  decision  (object or null) of the policy, null without one: action, flagged, would_action, reason, fired, severity,
            scores, unsafe, score, groups, num_frames, num_frames_fired, num_frames_needed
  answer    (string or null) with --ask; the same for all pictures with --together
  model     (string) as given, or "demo"
  error     (string or null) why there is no verdict; all fields above but image are then null
Later versions may add fields, and will not change these.
"""


def add_parser(commands):
    judge = add_command(
        commands,
        "judge",
        help="judge pictures and answer about them",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
    )
    judge.add_argument("images", nargs="+", metavar="IMAGE", help="a picture file or an http(s) URL")
    judge.add_argument("--ask", type=words, metavar="TEXT", help="answer this about each picture, streamed")
    judge.add_argument(
        "--together", action="store_true", help="--ask once, about all pictures in one prompt; each is still judged"
    )
    judge.add_argument(
        "--fail-on-unsafe",
        action="store_true",
        help="exit with 3 if a picture's 1 - p(safe) reaches --unsafe-at, or with a policy, if one is not allowed",
    )
    judge.add_argument(
        "--unsafe-at", type=probability, metavar="P", help="probability in [0, 1], without a policy (default: 0.5)"
    )
    judge.add_argument(
        "--policy",
        metavar="FILE",
        help="decide by this policy; none for no decision (default: safety_policy.json in the model's folder, if any)",
    )

    output = judge.add_argument_group("output")
    output.add_argument(
        "--top", type=positive, metavar="K", help="the K likeliest categories instead of those over 10 %%"
    )
    output.add_argument("--no-image", action="store_true", help="draw no pictures on a terminal")
    output.add_argument(
        "--show-flagged",
        action="store_true",
        help="draw flagged pictures as they are (default: blurred)",
    )
    output.add_argument("--json", action="store_true", help="one object a line, as documented below")

    add_model_arguments(judge)

    answer = judge.add_argument_group("limits")
    answer.add_argument(
        "--max-new-tokens", type=positive, metavar="N", default=256, help="of an answer (default: %(default)s)"
    )
    add_max_pixels(answer)
    add_fetching(answer)
