"""`safeqwen judge`: a verdict on each picture, and an answer about it, on the terminal or as JSON lines."""

import json
import os
import sys
from dataclasses import dataclass

import torch
import transformers
from transformers import TextStreamer

from safeqwen.loading import load
from safeqwen.pictures import UnreadableImage, read_image
from safeqwen.pipeline import SafetyPipeline, worst_frame
from safeqwen.prompt import chat_prompt


DEMO_WARNING = (
    "safeqwen: no --model given: this is the demo checkpoint, which knows drawn pictograms, not photographs, and is "
    "not for moderation"
)
BAR_WIDTH = 30  # characters for a probability of 1
SHOWN_FROM = 0.1  # probability


@dataclass
class Judged:
    """What came of one picture: `probs`, or the `error` that says why there are none."""

    image: str
    frames: list | None = None
    probs: torch.Tensor | None = None  # (categories,), of the frame least likely to be safe
    answer: str | None = None
    error: str | None = None


class Answer(TextStreamer):
    """Hands the verdict on when the prefill has given it, then prints the answer while it is made, and keeps it."""

    def __init__(self, tokenizer, put_verdict, show):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.put_verdict = put_verdict
        self.show = show
        self.text = ""

    def on_finalized_text(self, text, stream_end=False):
        self.text += text
        if self.show:
            print(printable(text, kept="\n\t"), end="\n\n" if stream_end else "", flush=True)


def run(args):
    """Runs `safeqwen judge` with the arguments of `safeqwen_cli`, and returns its exit code."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    if args.model == "demo" and not os.path.exists("demo"):  # as safeqwen train names it
        args.model = None
    if args.model is None:
        print(DEMO_WARNING, file=sys.stderr)
    try:
        model, processor = load(
            args.model,
            dtype=args.dtype,
            device=args.device,
            revision=args.revision,
            token=args.token,
            cache_dir=args.cache_dir,
            local_files_only=args.local_files_only,
        )
    except Exception as error:  # whatever the library raises for a folder that is no model
        return _fail(f"the model {args.model or 'demo'} could not be loaded: {error}")
    categories = model.config.safety_categories
    if args.fail_on_unsafe and "safe" not in categories:
        return _fail(f"--fail-on-unsafe needs a category 'safe', but the model has {', '.join(categories)}")

    # A pipeline moves the model to the first accelerator unless told, and may not be told if accelerate placed it.
    judge = SafetyPipeline(model, processor, device=None if hasattr(model, "hf_device_map") else model.device)
    failed = unsafe = False
    try:
        for names in [args.images] if args.together else [[name] for name in args.images]:
            pictures = [Judged(name) for name in names]
            _judge_prompt(judge, pictures, args)
            for picture in pictures:
                failed |= picture.error is not None
                unsafe |= picture.probs is not None and (_unsafe(picture.probs, categories) or 0) >= args.unsafe_at
                if args.json:
                    print(json.dumps(_json_fields(picture, categories, args.model or "demo")), flush=True)
    except RuntimeError as error:  # the model may not judge at all
        return _fail(str(error))
    except BrokenPipeError:  # e.g. `safeqwen judge ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return 3 if args.fail_on_unsafe and unsafe else int(failed)


def _fail(reason):
    print(f"safeqwen: {printable(reason, kept=chr(10))}", file=sys.stderr)  # the library's reasons have lines
    return 2


def _judge_prompt(judge, pictures, args):
    """Judges the pictures of one prompt, and shows what comes of it as soon as it comes, if not as JSON."""
    for picture in pictures:
        try:
            picture.frames = read_image(picture.image, timeout_s=args.timeout)
        except UnreadableImage as error:
            _refuse(picture, error)
    readable = [picture for picture in pictures if picture.error is None]
    if not readable:
        return
    categories = judge.model.config.safety_categories

    def put_verdict(probs):  # (frames of all pictures, categories)
        for picture, frames in zip(readable, probs.cpu().split([len(picture.frames) for picture in readable])):
            picture.probs = frames[worst_frame(frames, categories)]
            if not args.json:
                _show_table(picture, categories, args.top)

    try:
        if args.ask is None and not args.together:
            put_verdict(judge.forward(judge.image_inputs(readable[0].frames)))
            return
        text = chat_prompt(judge.processor, sum(len(p.frames) for p in readable), args.ask or "", args.ask is not None)
        frames = [frame for picture in readable for frame in picture.frames]
        inputs = judge.processor(text=[text], images=frames, return_tensors="pt").to(judge.model.device)
        if args.ask is None:
            put_verdict(judge.model.guard(**inputs, granularity="image").img_safety_probs)
            return
        answer = Answer(judge.processor.tokenizer, lambda v: put_verdict(v.img_safety_probs), show=not args.json)
        judge.model.generate(
            **inputs,
            do_safety=True,
            granularity="image",
            return_dict_in_generate=True,
            streamer=answer,
            max_new_tokens=args.max_new_tokens,
            do_sample=False,
        )
        for picture in readable:
            picture.answer = answer.text
    except (FloatingPointError, torch.OutOfMemoryError) as error:
        for picture in readable:
            _refuse(picture, f"{picture.image}: {error}")


def _refuse(picture, reason):
    picture.probs, picture.error = None, str(reason)
    print(f"safeqwen: {printable(picture.error)}", file=sys.stderr)


def _unsafe(probs, categories):
    return 1 - float(probs[categories.index("safe")]) if "safe" in categories else None


def _json_fields(picture, categories, model):
    fields = dict.fromkeys(("image", "label", "score", "unsafe", "scores", "frames", "answer", "model", "error"))
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
        "answer": picture.answer,
        "model": model,
    }


def _show_table(picture, categories, top):
    scores, ids = picture.probs.sort(descending=True)
    num_shown = top or max(1, int((scores >= SHOWN_FROM).sum()))
    shown = [(categories[i], score) for i, score in zip(ids.tolist(), scores.tolist())][:num_shown]
    width = max(len(name) for name, _ in shown)
    num_frames = len(picture.frames)
    print(printable(picture.image) + (f"  (the least safe of {num_frames} frames)" if num_frames > 1 else ""))
    block = "\N{FULL BLOCK}" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    for name, score in shown:
        print(f"  {name:{width}}  {score:6.1%}  {block * round(score * BAR_WIDTH)}".rstrip())
    print(flush=True)


def printable(text, kept=""):
    """Returns text that cannot command the terminal, nor look like rows of ours: control characters are replaced."""
    return "".join(c if c.isprintable() or c in kept else "\N{REPLACEMENT CHARACTER}" for c in text)
