"""Models and processors from folders and repositories: `load_base` to train from, and what else their files tell."""

import hashlib
import json
from pathlib import Path

from transformers import AutoProcessor

from safeqwen.hub.guard_safeqwen import GUARD
from safeqwen.hub.modeling_safeqwen import SafeQwen2_5_VLForConditionalGeneration


# A tiny SafeQwen that knows drawn pictograms: for trying things out, not for moderation.
DEMO_CHECKPOINT = Path(__file__).parent / "demo"
HUB = ("revision", "token", "cache_dir", "local_files_only")
GUARD_FILE = f"{GUARD}.safetensors"  # of a run that trained the guard alone


def hub_of(given):
    """
    Returns the arguments for the Hub (`dict`, a part of `HUB`) that are set among those given.

    Args:
        given (`dict`): of a function or command; what else is in it is passed over.
    """
    return {name: given[name] for name in HUB if given.get(name)}  # revision=None is not "main" to every version


def load_processor(path_or_repo, *, min_pixels=None, max_pixels=None, **hub):
    """Returns the processor of a folder or repository, with other bounds on a picture's pixels if they are given.

    Args:
        min_pixels, max_pixels (`int`, *optional*): smaller pictures are enlarged, larger ones reduced to these.
        hub: as `from_pretrained` takes it.

    Raises:
        ValueError: unless 0 < `min_pixels` <= `max_pixels`, be they given or the processor's own.
    """
    processor = AutoProcessor.from_pretrained(path_or_repo, **hub)
    given = {"shortest_edge": min_pixels, "longest_edge": max_pixels}  # the library's names for them
    if any(value is not None for value in given.values()):
        usual = processor.image_processor.size
        size = {edge: usual[edge] if value is None else value for edge, value in given.items()}
        if not 0 < size["shortest_edge"] <= size["longest_edge"]:
            raise ValueError(
                f"min_pixels {size['shortest_edge']} must be above 0 and not above max_pixels {size['longest_edge']}"
            )
        # By both names: of a folder that has the older ones the library would heed neither alone.
        pixels = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        processor = AutoProcessor.from_pretrained(path_or_repo, size=size, **pixels, **hub)
    return processor


def refuse_two_saves(folder):
    """Raises `ValueError` if the folder's weights are not those of one save: transformers would load one in silence.

    A save is model.safetensors alone, or the shards that model.safetensors.index.json names.
    """
    found = {file.name for file in Path(folder).glob("model*.safetensors")}
    index = Path(folder) / "model.safetensors.index.json"
    if not index.exists():
        expected = {"model.safetensors"}
    else:
        expected = {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    if surplus := sorted(found - expected):
        raise ValueError(
            f"{folder} holds the weights of two saves: {', '.join(surplus)} beside "
            f"{index.name if index.exists() else 'model.safetensors'}; remove those of the older one"
        )


def load_base(path_or_repo, *, safety_categories=None, **kwargs):
    """Returns the weights that a fine-tuning starts from, in evaluation mode: a SafeQwen or a plain Qwen2.5-VL.

    Args:
        path_or_repo (`str` or `os.PathLike`): folder or Hub repository.
        safety_categories (`list[str]`, *optional*):
            The taxonomy to train. If the checkpoint's guard has another one, be it of as many categories, the guard's
            last layer starts anew, drawn by torch's generator, and the guard does not judge until it is trained.
        kwargs: further arguments of the model's `from_pretrained`, e.g. `dtype` and `revision`.
    """
    if safety_categories is not None:
        kwargs |= {"safety_categories": list(safety_categories), "ignore_mismatched_sizes": True}
    refuse_two_saves(path_or_repo)
    return SafeQwen2_5_VLForConditionalGeneration.from_pretrained(path_or_repo, **kwargs).eval()


def folder_digest(folder):
    """Returns the sha256 (`str`) of a folder's weights: the names and bytes of its safetensors files."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).glob("*.safetensors")):
        digest.update(file.name.encode())
        with file.open("rb") as weights:
            while block := weights.read(2**24):
                digest.update(block)
    return digest.hexdigest()
