"""`safeqwen judge`: a verdict on each picture, and an answer about it, on the terminal or as JSON lines."""

import json
import sys
from dataclasses import replace
from functools import partial

import transformers
from transformers import TextStreamer

from safeqwen.commands.model import DEMO, load_model, policy_of
from safeqwen.commands.terminal import drop_output, prepare_streams, printable, say
from safeqwen.judging.answering import Prompt, answer
from safeqwen.judging.engine import Engine
from safeqwen.judging.verdict import SAFE, UNSAFE_AT, Verdict
from safeqwen.pictures import UnreadableImage, read_image
from safeqwen.showing.terminal import show_verdict, terminal


BAR_WIDTH = 30  # characters for a probability of 1
SHOWN_FROM = 0.1  # probability


class Streamer(TextStreamer):
    """Hands the verdict on when the prefill has given it, then prints the answer while it is made."""

    def __init__(self, tokenizer, put_verdict, show):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.put_verdict = put_verdict
        self.show = show

    def on_finalized_text(self, text, stream_end=False):
        if self.show:
            print(printable(text, kept="\n\t"), end="\n\n" if stream_end else "", flush=True)


def run(args):
    """Runs `safeqwen judge` with the arguments of `safeqwen_cli`, and returns its exit code."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not prepare_streams():
        return _fail("stdout is closed; send it to a file, or to /dev/null if only the exit code matters")
    try:
        model, processor = load_model(args)
    except ValueError as error:
        return _fail(str(error))
    categories = model.config.safety_categories
    if args.fail_on_unsafe and SAFE not in categories:
        return _fail(f"--fail-on-unsafe needs a category 'safe', but the model has {', '.join(categories)}")

    try:
        args.policy = _policy(args, model)
    except (OSError, ValueError) as error:
        return _fail(str(error))

    if args.unsafe_at is None:
        args.unsafe_at = UNSAFE_AT
    engine, show = Engine(model, processor), Show(args)
    failed = unsafe = False
    try:
        engine.image_settings(args.max_pixels)
        for names in [args.images] if args.together else [[name] for name in args.images]:
            verdicts, answer_text = _judge_prompt(engine, names, args, show)
            for name, verdict in zip(names, verdicts):
                failed |= verdict.error is not None
                unsafe |= _is_unsafe(verdict, args)
                if args.json:
                    print(json.dumps(_json_fields(name, verdict, answer_text, args.model or DEMO)), flush=True)
    except (RuntimeError, ValueError) as error:  # the model may not judge at all; --max-pixels is out of range
        return _fail(str(error))
    except BrokenPipeError:  # e.g. `safeqwen judge ... | head`
        drop_output()
        return 1
    except OSError as error:
        drop_output()
        return _fail(f"stdout could not be written: {error.strerror}; make room, or send it elsewhere")
    except KeyboardInterrupt:
        return 130
    return 3 if args.fail_on_unsafe and unsafe else int(failed)


def _fail(reason):
    say(reason)
    return 2


def _policy(args, model):
    """The policy of --policy, by default the one beside the weights, or `None`."""
    policy = policy_of(args, model)
    if policy is not None and args.unsafe_at is not None:
        raise ValueError("--unsafe-at is for judging without a policy: leave it out, or add --policy none")
    return policy


class Show:
    """Shows a verdict as soon as there is one, unless it is to be JSON: on a terminal in colours, else as lines."""

    def __init__(self, args):
        self.args = args
        self.console = None if args.json else terminal()
        self.needs_thumbnails = self.console is not None and not args.no_image

    def __call__(self, verdict):
        args = self.args
        if verdict.error is not None:
            say(verdict.error)
        elif self.console is not None:
            is_flagged = verdict.flagged if verdict.policy or verdict.unsafe is None else _is_unsafe(verdict, args)
            show_verdict(
                self.console,
                verdict,
                top=args.top,
                unsafe_at=args.unsafe_at,
                picture=not args.no_image,
                blurred=is_flagged and not args.show_flagged,
            )
        elif not args.json:
            _print_table(verdict, args.top)


def _judge_prompt(engine, names, args, show):
    """
    Judges the pictures of one prompt, answers `--ask` about them, and shows what comes of it as soon as it comes.

    Returns the verdicts (`list[Verdict]`), one a name, and the answer (`str` or `None`).
    """
    read = partial(read_image, timeout_s=args.timeout, **({"private_networks": True} if args.private_networks else {}))
    settings = {"policy": args.policy, "max_pixels": args.max_pixels, "thumbnails": show.needs_thumbnails}
    pictures, verdicts = [None] * len(names), [None] * len(names)

    def put_verdict(i, judged):
        verdict = pictures[i].verdict(judged)
        if verdict.error is not None:
            verdict = replace(verdict, error=f"{names[i]}: {verdict.error}")
        verdicts[i] = verdict
        show(verdict)

    def without_error():
        return [i for i, verdict in enumerate(verdicts) if verdict is None or verdict.error is None]

    for i, name in enumerate(names):
        try:
            pictures[i] = engine.open(name, read, **settings)
        except UnreadableImage as error:
            verdicts[i] = Verdict(categories=engine.categories, image=name, error=str(error))
            show(verdicts[i])
    # Behind the same words a lone picture is judged by the pass that answers. Of several frames each is judged by
    # itself, in a pass more: its verdict must not depend on what stands before it in the prompt.
    if args.ask is None or sum(len(pictures[i].views) for i in without_error()) > 1:
        for i in without_error():
            put_verdict(i, engine.judge(engine.prepare(pictures[i].views, args.max_pixels)))
    asked = without_error() if args.ask is not None else []
    if not asked:
        return verdicts, None
    streamer = Streamer(
        engine.processor.tokenizer,
        lambda output: put_verdict(asked[0], list(output.img_safety_probs.cpu())),
        show=not args.json,
    )
    (answered,) = answer(
        engine,
        [Prompt([view for i in asked for view in pictures[i].views], args.ask)],
        max_new_tokens=args.max_new_tokens,
        max_pixels=args.max_pixels,
        judge=verdicts[asked[0]] is None,
        streamer=streamer,
    )
    if answered.error is not None:
        for i in asked:
            put_verdict(i, [answered.error])
    return verdicts, answered.text


def _is_unsafe(verdict, args):
    """Whether --fail-on-unsafe counts a picture: by the policy's decision, or without a policy by --unsafe-at."""
    if verdict.error is not None:
        return False
    if verdict.decision is not None:
        return verdict.decision.flagged
    return verdict.unsafe is not None and verdict.unsafe >= args.unsafe_at


def _json_fields(name, verdict, answer_text, model):
    fields = {**verdict.to_dict(), "image": name}
    error = fields.pop("error")
    answer_text, model = (answer_text, model) if error is None else (None, None)
    return {**fields, "answer": answer_text, "model": model, "error": error}


def _print_table(verdict, top):
    """What stdout gets where it is no terminal."""
    shown = sorted(verdict.scores.items(), key=lambda entry: entry[1], reverse=True)
    shown = shown[: top or max(1, sum(score >= SHOWN_FROM for _, score in shown))]
    width = max(len(name) for name, _ in shown)
    num_views = len(verdict.frames)
    print(printable(verdict.name) + (f"  (the least safe of {num_views} views)" if num_views > 1 else ""))
    block = "\N{FULL BLOCK}" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    for name, score in shown:
        print(f"  {name:{width}}  {score:6.1%}  {block * round(score * BAR_WIDTH)}".rstrip())
    if verdict.decision is not None:
        print(f"  {printable(verdict.decision.in_words())}")
    print(flush=True)
