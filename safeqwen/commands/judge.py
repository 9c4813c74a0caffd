"""`safeqwen judge`: a verdict on each picture, and an answer about it, on the terminal or as JSON lines."""

import json
import os
import sys
from dataclasses import dataclass

import torch
import transformers
from transformers import TextStreamer

from safeqwen.commands.terminal import drop_output, prepare_streams, printable, say
from safeqwen.fingerprint import weights_fingerprint
from safeqwen.judging.answering import Prompt, answer
from safeqwen.judging.decision import Decision
from safeqwen.judging.engine import Engine
from safeqwen.judging.load import load
from safeqwen.judging.policy import SafetyPolicy
from safeqwen.judging.verdict import SAFE, unsafe_probability, worst_frame
from safeqwen.loading import DEMO_CHECKPOINT
from safeqwen.pictures import UnreadableImage, frame_numbers, read_image


DEMO_WARNING = "this is the demo checkpoint, which knows drawn pictograms, not photographs, and is not for moderation"
BAR_WIDTH = 30  # characters for a probability of 1
SHOWN_FROM = 0.1  # probability
UNSAFE_AT = 0.5  # without a policy
FIELDS = ("image", "label", "score", "unsafe", "scores", "frames", "decision", "answer", "model", "error")


@dataclass
class Judged:
    """What came of one picture: `probs`, or the `error` that says why there are none."""

    image: str
    frames: list | None = None
    probs: torch.Tensor | None = None  # (categories,), of the least safe frame
    decision: Decision | None = None  # of the policy, if there is one
    answer: str | None = None
    error: str | None = None


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
    if args.model == "demo" and not os.path.exists("demo"):  # as safeqwen train names it
        args.model = None
    if args.model is None:
        say(DEMO_WARNING)
    hub = {name: getattr(args, name) for name in ("revision", "token", "cache_dir", "local_files_only")}
    try:
        model, processor = load(args.model, dtype=args.dtype, device=args.device, **hub)
    except Exception as error:  # whatever the library raises for a folder that is no model
        return _fail(f"the model {args.model or 'demo'} could not be loaded: {error}")
    categories = model.config.safety_categories
    if args.fail_on_unsafe and SAFE not in categories:
        return _fail(f"--fail-on-unsafe needs a category 'safe', but the model has {', '.join(categories)}")

    try:
        args.policy = _policy(args, model, {name: value for name, value in hub.items() if value})
    except (OSError, ValueError) as error:
        return _fail(str(error))

    engine = Engine(model, processor)
    failed = unsafe = False
    try:
        engine.image_settings(args.max_pixels)
        for names in [args.images] if args.together else [[name] for name in args.images]:
            pictures = [Judged(name) for name in names]
            _judge_prompt(engine, pictures, args)
            for picture in pictures:
                failed |= picture.error is not None
                unsafe |= _is_unsafe(picture, categories, args)
                if args.json:
                    print(json.dumps(_json_fields(picture, categories, args.model or "demo")), flush=True)
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


def _policy(args, model, hub):
    """The policy of --policy, by default the one beside the weights, or `None`."""
    if args.policy is None:
        policy = model.safety_policy
    elif args.policy == "none":
        policy = None
    else:
        policy = SafetyPolicy.load(args.policy, model.config.safety_categories)
        if policy.model is not None:
            policy.check(fingerprint=weights_fingerprint(args.model or DEMO_CHECKPOINT, **hub))
    if policy is not None and args.unsafe_at is not None:
        raise ValueError("--unsafe-at is for judging without a policy: leave it out, or add --policy none")
    return policy


def _judge_prompt(engine, pictures, args):
    """Judges the pictures of one prompt, and shows what comes of it as soon as it comes, if not as JSON."""
    private_networks = {"private_networks": True} if args.private_networks else {}
    for picture in pictures:
        try:
            picture.frames = read_image(picture.image, timeout_s=args.timeout, **private_networks)
        except UnreadableImage as error:
            _refuse(picture, error)
    readable = [picture for picture in pictures if picture.error is None]
    # Behind the same words a lone picture is judged by the pass that answers. Of several frames each is judged by
    # itself, in a pass more: its verdict must not depend on what stands before it in the prompt.
    if args.ask is None or sum(len(picture.frames) for picture in readable) > 1:
        for picture in readable:
            _put_verdict(picture, engine.judge(engine.prepare(picture.frames, args.max_pixels)), engine, args)
        readable = [picture for picture in readable if picture.error is None]
    if args.ask is not None and readable:
        _answer(engine, readable, args)


def _put_verdict(picture, verdicts, engine, args):
    """Takes the frames' verdicts, as `Engine.judge` returns them, as the picture's."""
    if error := next((verdict for verdict in verdicts if isinstance(verdict, Exception)), None):
        _refuse(picture, f"{picture.image}: {error}")
        return
    categories = engine.model.config.safety_categories
    probs = torch.stack(verdicts)
    picture.probs = probs[worst_frame(probs, categories)]
    if args.policy is not None:
        picture.decision = args.policy.decide(probs, frame_numbers(picture.frames))
    if not args.json:
        _show_table(picture, categories, args.top)


def _answer(engine, pictures, args):
    """Answers `--ask` about the pictures in one prompt; a lone frame gets its verdict from this pass."""
    frames = [frame for picture in pictures for frame in picture.frames]
    streamer = Streamer(
        engine.processor.tokenizer,
        lambda verdict: _put_verdict(pictures[0], list(verdict.img_safety_probs.cpu()), engine, args),
        show=not args.json,
    )
    (answered,) = answer(
        engine,
        [Prompt(frames, args.ask)],
        max_new_tokens=args.max_new_tokens,
        max_pixels=args.max_pixels,
        judge=pictures[0].probs is None,
        streamer=streamer,
    )
    for picture in pictures:
        picture.answer = answered.text
        if answered.error is not None:
            _refuse(picture, f"{picture.image}: {answered.error}")


def _refuse(picture, reason):
    picture.probs, picture.decision, picture.error = None, None, str(reason)
    say(picture.error)


def _unsafe(probs, categories):
    unsafe = unsafe_probability(probs, categories)
    return None if unsafe is None else float(unsafe)


def _is_unsafe(picture, categories, args):
    """Whether --fail-on-unsafe counts a picture: by the policy's decision, or without a policy by --unsafe-at."""
    if picture.probs is None:
        return False
    if picture.decision is not None:
        return picture.decision.flagged
    return (_unsafe(picture.probs, categories) or 0) >= (UNSAFE_AT if args.unsafe_at is None else args.unsafe_at)


def _json_fields(picture, categories, model):
    fields = dict.fromkeys(FIELDS)
    fields["image"] = picture.image
    if picture.error is not None:
        return {**fields, "error": picture.error}
    score, label = picture.probs.max(dim=0)
    return {
        **fields,
        "label": categories[label],
        "score": float(score),
        "unsafe": _unsafe(picture.probs, categories),
        "scores": dict(zip(categories, picture.probs.tolist())),
        "frames": len(picture.frames),
        "decision": picture.decision and picture.decision.to_dict(),
        "answer": picture.answer,
        "model": model,
    }


def _show_table(picture, categories, top):
    scores, ids = picture.probs.sort(descending=True)
    num_shown = top or max(1, int((scores >= SHOWN_FROM).sum()))
    shown = [(categories[i], score) for i, score in zip(ids.tolist(), scores.tolist())][:num_shown]
    width = max(len(name) for name, _ in shown)
    num_frames = len(picture.frames)
    print(printable(picture.image) + (f"  (the least safe of {num_frames} views)" if num_frames > 1 else ""))
    block = "\N{FULL BLOCK}" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    for name, score in shown:
        print(f"  {name:{width}}  {score:6.1%}  {block * round(score * BAR_WIDTH)}".rstrip())
    if picture.decision is not None:
        print(f"  {printable(picture.decision.in_words())}")
    print(flush=True)
