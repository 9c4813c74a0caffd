"""The model that a command's `--model` names."""

from functools import cache
from pathlib import Path

from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import get_session, validate_repo_id

from safeqwen.commands.terminal import say
from safeqwen.fingerprint import weights_fingerprint
from safeqwen.judging.load import load
from safeqwen.judging.policy import SafetyPolicy
from safeqwen.loading import DEMO_CHECKPOINT, hub_of


DEMO = "demo"
DEMO_WARNING = "this is the demo checkpoint, which knows drawn pictograms, not photographs, and is not for moderation"


def source_of(name):
    """Returns what `load` takes for a `--model`: `DEMO_CHECKPOINT` for none, and for "demo" if that is no folder."""
    if name is None or name == DEMO and not Path(name).exists():
        return DEMO_CHECKPOINT
    return name


def load_model(args):
    """
    Returns the model and processor that the arguments of `add_model_arguments` name; warns of the demo.

    Raises:
        ValueError: if it cannot be loaded, whatever the reason.
    """
    source = source_of(args.model)
    if source is DEMO_CHECKPOINT:
        say(DEMO_WARNING)
    hub = hub_of(vars(args))
    return loaded(source, lambda: load(source, dtype=args.dtype, device=args.device, **hub), **hub)


def policy_of(args, model):
    """
    Returns the policy that `--policy` names ([`SafetyPolicy`]), by default the one beside the weights; `None` for
    "none", or if there is none.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is broken, or for other categories or weights.
    """
    return model.safety_policy if args.policy is None else given_policy(args, model.config.safety_categories)


def given_policy(args, categories):
    """Returns the policy ([`SafetyPolicy`]) that a given `--policy` names, as `policy_of` does."""
    if args.policy == "none":
        return None
    policy = SafetyPolicy.load(args.policy, categories)
    if policy.model is not None:
        policy.check(fingerprint=weights_fingerprint(source_of(args.model), **hub_of(vars(args))))
    return policy


def loaded(source, load, **hub):
    """Returns what `load()` returns, or raises a `ValueError` that names the model; `hub` as of `ask_hub`."""
    ask_hub(source, **hub)
    try:
        return load()
    except Exception as error:  # whatever the library raises for a folder that is no model
        name = DEMO if source is DEMO_CHECKPOINT else source
        where = "" if Path(source).exists() else "there is no such folder, and of the Hub's repositories: "
        raise ValueError(f"the model {name} could not be loaded: {where}{error}") from error


@cache  # said and asked once a process
def ask_hub(source, revision=None, cache_dir=None, local_files_only=False, token=None):
    """
    Says that a model is no folder here and that the Hub is asked for it, unless it was downloaded before. The Hub is
    asked once: where there is no network, its library would try each of nine files six times, for minutes.

    Args:
        source (`str` or `os.PathLike`)
        revision, cache_dir, local_files_only, token: as `from_pretrained` takes them; the last is not needed here.

    Raises:
        ValueError: if the name can be no repository's either, or nothing answers.
    """
    if Path(source).exists():
        return
    failed = f"the model {source} could not be loaded: there is no such folder, and"
    try:
        validate_repo_id(source)
    except HFValidationError as error:
        raise ValueError(f"{failed} the name can be no repository's on the Hub: check the path") from error
    if local_files_only or constants.HF_HUB_OFFLINE:
        return
    if isinstance(try_to_load_from_cache(source, "config.json", cache_dir, revision), str):
        return  # the library takes what was downloaded before, with a network or without
    say(f"there is no folder {source}: the Hub is asked for it")
    try:  # whatever it answers: the library says what that means, and tries again if the Hub is busy
        get_session().head(hf_hub_url(source, "config.json"), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # of the HTTP library, which is another one since huggingface_hub 1.0
        raise ValueError(f"{failed} the Hub cannot be reached: {error}") from error
