"""`safeqwen explain`: where the verdict on a picture comes from, as pictures and as numbers."""

import json
import os
import re
from pathlib import Path

import transformers

from safeqwen.commands.model import DEMO, load_model
from safeqwen.commands.terminal import drop_output, prepare_streams, printable, say
from safeqwen.files import replaced
from safeqwen.judging.engine import Engine
from safeqwen.judging.heatmap import heatmaps
from safeqwen.judging.verdict import SAFE, known_category
from safeqwen.pictures import UnreadableImage, read_image
from safeqwen.showing.colours import WEAK, strength


SHOWN_FROM = 0.1  # probability
MAX_SHOWN = 3


def run(args):
    """Runs `safeqwen explain` with the arguments of `safeqwen_cli`, and returns its exit code."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not prepare_streams():
        return _fail("stdout is closed; send it to a file")
    if args.out is None and not args.json:
        return _fail("give --out PNG for a picture, --json for the values, or both")
    if args.out is not None and not Path(args.out).absolute().parent.is_dir():
        return _fail(f"there is no folder {Path(args.out).parent} to write to: make it first")
    chosen = [*dict.fromkeys(args.category or ())]
    private_networks = {"private_networks": True} if args.private_networks else {}
    try:
        # Before the model is loaded, which may take minutes. Without --category the names are not known yet.
        _refuse_existing(_files(args.out, chosen or [None]), args, only_picture=not chosen)
        views = read_image(args.image, timeout_s=args.timeout, **private_networks)
        engine = Engine(*load_model(args))
        engine.image_settings(args.max_pixels)
        chosen = [known_category(category, engine.categories) for category in chosen]
        (verdict,) = engine.judge_each([views], list, max_pixels=args.max_pixels, thumbnails=False)
        if verdict.error is not None:
            return _fail(f"{args.image}: {verdict.error}", code=1)
        categories = chosen or top_categories(verdict.scores)
        files = _files(args.out, categories)
        _refuse_existing(files, args)
        maps = heatmaps(engine, views[verdict.view], categories, args.max_pixels)
        for file, heatmap in zip(files, maps):
            if file is not None:
                with replaced(file) as partial:
                    heatmap.overlay().save(partial, "PNG", optimize=True)
        if args.json:
            print(json.dumps(_json_fields(args, verdict, maps, files)), flush=True)
        else:
            _print_lines(args, verdict, maps, files)
    except (UnreadableImage, FloatingPointError, MemoryError) as error:
        return _fail(error, code=1)
    except (RuntimeError, ValueError) as error:  # the model may not judge or explain; an argument is out of range
        return _fail(error)
    except BrokenPipeError:
        drop_output()
        return 1
    except OSError as error:
        return _fail(f"{error.filename or 'stdout'} could not be written: {error.strerror}")
    except KeyboardInterrupt:
        return 130
    return 0


def top_categories(scores):
    """
    Returns what is explained if nobody chose (`list[str]`): up to three harms of a probability of 10 % or more, the
    likeliest first; if there is none, "safe", or in a taxonomy without it the likeliest category.
    """
    ranked = sorted(scores, key=scores.get, reverse=True)
    shown = [name for name in ranked if name != SAFE and scores[name] >= SHOWN_FROM][:MAX_SHOWN]
    return shown or [SAFE if SAFE in scores else ranked[0]]


def _fail(reason, code=2):
    say(reason)
    return code


def _files(out, categories):
    """A `Path` for each of the categories, or `None` without `out`."""
    if out is None:
        return [None] * len(categories)
    out = Path(out)
    if len(categories) == 1:
        return [out]
    names = [re.sub(r"[^\w.-]+", "_", category) for category in categories]  # a name may hold a slash
    if len({*names}) < len(names):
        raise ValueError("two of the categories would be one file: give one --category a run")
    return [out.with_name(f"{out.stem}-{name}{out.suffix}") for name in names]


def _refuse_existing(files, args, only_picture=False):
    """Raises `ValueError` if one of the files exists that is not to be replaced: never the picture itself."""
    for file in files:
        if file is None or not file.exists():
            continue
        if os.path.exists(args.image) and file.samefile(args.image):
            raise ValueError(f"{file} is the picture itself: give another --out")
        if not args.force and not only_picture:
            raise ValueError(f"{file} exists: --force replaces it, or give another --out")


def _json_fields(args, verdict, maps, files):
    return {
        "image": args.image,
        "label": verdict.label,
        "scores": verdict.scores,
        "frame": verdict.frames[verdict.view],
        "views": len(verdict.frames),
        "maps": [
            {
                "category": heatmap.category,
                "probability": heatmap.probability,
                "file": None if file is None else str(file),
                "values": heatmap.values.tolist(),
            }
            for file, heatmap in zip(files, maps)
        ],
        "model": args.model or DEMO,
    }


def _print_lines(args, verdict, maps, files):
    views = len(verdict.frames)
    of_several = (
        f"  (frame {verdict.frames[verdict.view]} from 0, the least safe of {views} views)" if views > 1 else ""
    )
    print(f"{printable(args.image)}{of_several}")
    width = max(len(heatmap.category) for heatmap in maps)
    for file, heatmap in zip(files, maps):
        is_pale = strength(heatmap.values).max() < WEAK
        note = "  (pale: no patch says much for it)" if is_pale else ""
        print(f"  {printable(heatmap.category):{width}}  {heatmap.probability:6.1%}  {printable(str(file))}{note}")
    print(end="", flush=True)
