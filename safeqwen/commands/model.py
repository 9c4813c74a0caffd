"""The model that a command's `--model` names."""

from pathlib import Path

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
    return loaded(source, lambda: load(source, dtype=args.dtype, device=args.device, **hub_of(vars(args))))


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


def loaded(source, load):
    """Returns what `load()` returns, or raises a `ValueError` that names the model."""
    try:
        return load()
    except Exception as error:  # whatever the library raises for a folder that is no model
        name = DEMO if source is DEMO_CHECKPOINT else source
        where = "" if Path(source).exists() else "there is no such folder, and of the Hub's repositories: "
        raise ValueError(f"the model {name} could not be loaded: {where}{error}") from error
