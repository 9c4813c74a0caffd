"""Every fact about a version of transformers that the model leans on, named, in one place; 4.57 and 5.x."""

import copy
import inspect
from collections import Counter

import transformers
from torch.torch_version import TorchVersion
from transformers import Qwen2_5_VLModel, modeling_outputs
from transformers.modeling_utils import load_state_dict
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.quantizers import AutoQuantizationConfig

from .guard_safeqwen import DIGEST, GUARD


if TorchVersion("5.3.0") <= TorchVersion(transformers.__version__) < TorchVersion("5.5.4"):
    raise ImportError(  # on one folder and picture a verdict of 0.1102 where all others give 0.1057
        f"transformers {transformers.__version__} places still pictures wrongly (huggingface/transformers#45325), so "
        "that verdicts change; SafeQwen needs 4.57.x, 5.0-5.2 or 5.5.4 and later: pip install -U transformers"
    )
try:
    from transformers import conversion_mapping
except ImportError:  # 4.x renames the tensors of released folders by `_checkpoint_conversion_mapping`
    conversion_mapping = None

PARAMETERS = inspect.signature(Qwen2_5_VLModel.forward).parameters
TAKES_TOKEN_TYPES = "mm_token_type_ids" in PARAMETERS  # 5.3 on: picture positions are no more read from input_ids
TAKES_ENCODED_PICTURES = "mm_encoder_outputs" in PARAMETERS  # 5.x's `generate` encodes them before the prefill
CACHE = "cache" if "cache" in PARAMETERS else "past_key_values"  # renamed in 5.24
# What stock's forward returns: in 5.24 on with what the vision tower gave, in 4.x with rope_deltas.
StockOutput = getattr(modeling_outputs, "MultimodalCausalLMOutputWithPast", modeling_outputs.CausalLMOutputWithPast)
StockOutput = getattr(modeling_qwen2_5_vl, "Qwen2_5_VLCausalLMOutputWithPast", StockOutput)


def register_renames(cls):
    """Teaches 5.x, which goes by class names, our released tensor names; else the language model would stay random."""
    if conversion_mapping:
        find = conversion_mapping.get_checkpoint_conversion_mapping
        renames = find("Qwen2_5_VLForConditionalGeneration") or find("qwen2_5_vl")  # 5.0-5.5 know the model type only
        conversion_mapping.register_checkpoint_conversion_mapping(cls.__name__, renames, overwrite=True)


def current_name(name):
    """The name in our model of a tensor that has its released name, `visual.*` or `model.layers.*`; else `name`."""
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        return f"model.language_{name}"
    return f"model.{name}" if name.startswith("visual.") else name


def check_tensors(model, state_dict, files):
    """Raises a RuntimeError if a tensor comes twice, or holds integers that 5.x would cast to weights in silence."""
    parts = [state_dict] if state_dict else [load_state_dict(file, map_location="meta") for file in files or ()]
    tensors = [(current_name(name), tensor) for part in parts for name, tensor in part.items()]
    counts = Counter(name for name, _ in tensors)
    _refuse((name for name in counts if counts[name] > 1), "come twice, under two names or in two files")
    integers = (name for name, tensor in tensors if not tensor.is_floating_point() and not name.endswith(DIGEST))
    _refuse(_unexplained(integers, model), "hold integers")


def check_loaded(model, info):
    """Whether a guard came whole (`bool`). Raises a RuntimeError if other tensors lack, are left over or misshapen."""
    mismatched = {entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]}  # 4.x: names
    missing = {name for name in info["missing_keys"] if not name.endswith(DIGEST)}
    guard = {name for name, _ in model.named_parameters() if name.startswith(GUARD)}
    has_guard = not (guard <= missing or mismatched & guard)  # the latter by ignore_mismatched_sizes=True
    _refuse(missing - (set() if has_guard else guard), "are missing")
    _refuse(_unexplained(info["unexpected_keys"], model), "are left over: the config names fewer layers, or others")
    _refuse(mismatched - guard, "have other shapes than the config says")
    return has_guard


def _unexplained(names, model):
    """`names` without what quantisers store, integers and more, in a layer of the model or beside its weight."""
    if getattr(model.config, "quantization_config", None) is None:
        return names
    layers = {name for name, _ in model.named_modules() if name and not name.startswith(GUARD)}
    return [name for name in names if not {name.rpartition(".")[0], name.rpartition(".weight.")[0]} & layers]


def _refuse(names, what):
    if names := sorted(names):
        raise RuntimeError(
            f"{len(names)} tensors {what}, e.g. {', '.join(names[:3])}. No model is made of a part, or a mixture, of "
            "saves: get the whole folder anew, with the config.json that was saved with its weights"
        )


def spare_guard(options):
    """Adds guard and `lm_head` to what the `quantization_config` in `from_pretrained`'s options leaves as it is."""
    if options.get("load_in_8bit") or options.get("load_in_4bit"):
        raise ValueError("pass quantization_config=BitsAndBytesConfig(...) in place of load_in_8bit or load_in_4bit")
    if (config := options.get("quantization_config")) is not None:
        config = AutoQuantizationConfig.from_dict(config) if isinstance(config, dict) else copy.deepcopy(config)
        # The names of most quantisers, of bitsandbytes and of HQQ; GPTQ has none and quantises decoder layers only.
        for name in {"modules_to_not_convert", "llm_int8_skip_modules", "skip_modules"} & {*vars(config)}:
            spared = {*(getattr(config, name) or ()), "lm_head", GUARD, f"{GUARD}.mlp"}  # HQQ needs the last
            setattr(config, name, sorted(spared))
        options["quantization_config"] = config
