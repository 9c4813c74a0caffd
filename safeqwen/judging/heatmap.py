"""Where a verdict comes from: what each patch of a picture adds to the log-odds of a category.

By one forward and one backward a category. The method is layer-wise relevance propagation by the rules of AttnLRP
(Achtibat et al. 2024, arXiv 2402.05602), down to the pixels: gradient x input, where each step between is taken as
linear around this picture. Attention weights count as constants (as in Ali et al. 2022, arXiv 2202.07304), and so do
the denominators of norms; an activation f(x) is x * (f(x) / x) with a constant factor; a product of two paths gives
half to each. docs/heatmaps.md compares it with other methods, on pictures of which the answer is known.
"""

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image

from safeqwen.judging.engine import is_out_of_memory
from safeqwen.judging.verdict import SAFE, known_category
from safeqwen.showing.colours import overlay, upsample


@dataclass(frozen=True, eq=False)
class Heatmap:
    """
    Where the probability of one category comes from on one view of a picture.

    Args:
        category (`str`)
        values (`numpy.ndarray` of shape `(rows, columns)`, float32): what each merged patch (28 x 28 pixels of the
            picture as the model sees it) adds to the log-odds of the category, in natural units: +1 makes the odds 2.7
            times as high. The odds are those against "safe", or for "safe" itself, and in a taxonomy without it, those
            against all other categories. Negative values speak against it. They are counted from an evenly grey
            picture; what the prompt and the biases add is no patch's.
        probability (`float`): of the category, in the forward that the map was made of.
        picture (`PIL.Image.Image`): the view, in RGB.
        probs (`torch.FloatTensor` of shape `(categories,)`): of that forward, float32, on the CPU.
    """

    category: str
    values: np.ndarray
    probability: float
    picture: Image.Image
    probs: torch.Tensor

    def upsampled(self, width, height):
        """Returns the values (`numpy.ndarray` of shape `(height, width)`), bilinear between the patches' middles."""
        return upsample(self.values, width, height)

    def overlay(self, opacity=0.5):
        """Returns the map over the picture (RGB `PIL.Image` of its size): see [`safeqwen.showing.colours.overlay`]."""
        return overlay(self.picture, self.values, opacity)


def heatmaps(engine, view, categories, max_pixels=None):
    """
    Returns a map ([`Heatmap`]) for each of the `categories`, of one forward and a backward each.

    The model's parameters and their gradients stay as they are, and so do verdicts of other threads meanwhile.

    Args:
        engine ([`Engine`])
        view (`PIL.Image.Image`): as [`safeqwen.read_image`] returns it.
        categories (`list[str]`)
        max_pixels (`int`, *optional*): as in `Engine.image_settings`.

    Raises:
        ValueError: if there is no such category, or `max_pixels` is less than the pixels of one token.
        RuntimeError: if the model may not judge, is offloaded, has other layers than the rules are for, or layers
            that pass no gradients back, as of some quantisations.
        FloatingPointError: if scores or gradients are not finite.
        MemoryError: if what the backward needs does not fit into memory.
    """
    known = engine.model.config.safety_categories
    columns = [known.index(known_category(category, known)) for category in categories]
    refuse_offloaded(engine.model)
    size = f"{view.width} x {view.height} pixels"
    try:
        with torch.inference_mode(False), torch.enable_grad():
            frame = engine.prepare([view], max_pixels)[0]
            size = f"{frame.num_tokens} tokens"
            probs, maps = _relevance(engine, frame, columns)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"there is not enough memory for the map of a picture of {size}, whose activations are kept for the "
            "backward; lower max_pixels"
        ) from None
    picture = view.convert("RGB")
    return [
        Heatmap(category, values, float(probs[column]), picture, probs)
        for category, column, values in zip(categories, columns, maps)
    ]


def refuse_offloaded(model):
    """Raises a `RuntimeError` if weights come to their place when their layer is called: no way leads back then."""
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise RuntimeError(
            "heat maps need all weights in place, but some are offloaded to the CPU or a disk: load the model without "
            "device_map, or on devices that hold all of it"
        )


def _relevance(engine, frame, columns):
    """`(categories,)` probabilities, and a `(rows, columns)` array for each of the columns."""
    model = engine.model
    with _linear_layers(model) as traced:
        output = model(**engine.inputs_of([frame]), do_safety=True, logits_to_keep=1, use_cache=False)
    traced.check(model.config)
    logits = output.img_safety_logits[0]
    merge = engine.processor.image_processor.merge_size
    rows, width = (frame.grid[0, 1:] // merge).tolist()
    maps = []
    for column in columns:
        score = log_odds(logits, column, model.config.safety_categories)
        (gradient,) = torch.autograd.grad(score, traced.patches, retain_graph=column != columns[-1])
        values = (gradient.float() * traced.patches.detach().float()).sum(dim=-1)  # (patches,)
        if not values.isfinite().all():
            raise FloatingPointError(
                "no map: gradients are NaN or infinite; if float16 overflowed, load as torch.bfloat16"
            )
        # The processor puts the merge x merge patches of one token one behind the other.
        maps.append(values.view(rows, width, merge**2).sum(dim=-1).cpu().numpy())
    return output.img_safety_probs[0].detach().float().cpu(), maps


def log_odds(logits, column, categories):
    """`(..., categories)` logits -> `(...)` log-odds of a column that [`Heatmap`] explains."""
    if SAFE in categories and categories[column] != SAFE:
        return logits[..., column] - logits[..., categories.index(SAFE)]
    others = [other for other in range(len(categories)) if other != column]
    return logits[..., column] - logits[..., others].logsumexp(dim=-1)


# ------------------------------------------------------------------------------------------------ rules of the layers


class _Traced:
    """What the hooks of one forward leave behind."""

    patches = None  # (patches, hidden), the leaf that gradients are asked for
    num_calls = 0

    def check(self, config):
        """Raises a `RuntimeError` unless as many layers were called as Qwen2.5-VL and the guard have."""
        vision, text = config.vision_config.depth, config.text_config.num_hidden_layers
        # A block has two norms, an activation, up_proj, and q and k (in one layer in the vision tower); then the last
        # norms, the merger's activation and the guard's.
        expected = 5 * vision + 6 * text + 3 + config.safety_num_hidden_layers
        if self.patches is None or self.num_calls != expected:
            raise RuntimeError(
                f"heat maps are for the layers of Qwen2.5-VL: expected {expected} calls, saw {self.num_calls}; was "
                "the model compiled, or were layers replaced?"
            )


@contextmanager
def _linear_layers(model):
    """Makes this thread's forwards linear around their input: values stay, to the bit; gradients follow the rules."""
    traced, thread = _Traced(), threading.get_ident()

    def on_call(rule, layer, args, output):
        if threading.get_ident() != thread:  # somebody else judges with the same model
            return None
        traced.num_calls += 1
        linear = rule(layer, args[0], output)
        return output.detach() + (linear - linear.detach())

    def on_leaf(name, layer, args, output):
        if threading.get_ident() != thread or not (args and torch.is_tensor(args[0]) and torch.is_tensor(output)):
            return
        # Past such a layer only the residual leads back: a map that looks right and leaves out what the layer did.
        if args[0].requires_grad and not _leads_back(output, args[0]):
            raise RuntimeError(
                f"no map: the layer {name} ({type(layer).__name__}) passes no gradients back, as some quantisations "
                "do not: load the model in bfloat16, or with another quantisation"
            )

    def on_patches(layer, args, output):
        if threading.get_ident() != thread:
            return None
        traced.patches = output.detach().requires_grad_()
        return traced.patches

    handles = []
    try:
        for name, layer in model.named_modules():
            last = name.rpartition(".")[2]
            if not [*layer.children()]:
                handles.append(layer.register_forward_hook(partial(on_leaf, name)))
            if last == "patch_embed":
                handles.append(layer.register_forward_hook(on_patches))
            elif rule := RULES.get(last) or (_norm if hasattr(layer, "variance_epsilon") else None):
                handles.append(layer.register_forward_hook(partial(on_call, rule)))
            elif isinstance(layer, torch.nn.GELU):
                handles.append(layer.register_forward_hook(partial(on_call, _activation)))
        yield traced
    finally:
        for handle in handles:
            handle.remove()


def _leads_back(output, x):
    """Whether gradients of a layer's output reach its input (`bool`). That they are asked for may be a bias' doing."""
    nodes = [output.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            if node is x.grad_fn or getattr(node, "variable", None) is x:
                return True
            nodes += [before for before, _ in node.next_functions]
    return output is x


def _norm(layer, x, output):
    scale = torch.rsqrt(x.float().pow(2).mean(dim=-1, keepdim=True) + layer.variance_epsilon).detach()
    return layer.weight * (x.float() * scale).to(x.dtype)


def _activation(layer, x, output):
    return x * torch.where(x == 0, 0.5, output / x).detach()


def _gate(layer, x, output):
    return _activation(layer, x, output) / 2


def _half(layer, x, output):
    return output / 2


def _constant(layer, x, output):
    return output.detach()


def _constant_query_and_key(layer, x, output):
    query_and_key, value = output.split([output.shape[-1] // 3 * 2, output.shape[-1] // 3], dim=-1)
    return torch.cat([query_and_key.detach(), value], dim=-1)


RULES = {
    "q_proj": _constant,
    "k_proj": _constant,
    "qkv": _constant_query_and_key,
    "act_fn": _gate,  # the gate's path of down_proj(act_fn(gate_proj(x)) * up_proj(x))
    "up_proj": _half,  # the other path
}
