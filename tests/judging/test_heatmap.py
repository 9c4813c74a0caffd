"""Heat maps: rules worked by hand, what they leave untouched, and what is refused."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from PIL import Image
from tiny import build_guarded
from torch import nn
from torch.testing import assert_close
from torchao.quantization import Int8WeightOnlyConfig
from transformers import BitsAndBytesConfig, TorchAoConfig

import safeqwen
from safeqwen.judging import heatmap
from safeqwen.judging.engine import Engine
from safeqwen.judging.heatmap import heatmaps, log_odds
from tools.demo.pictograms import draw


HARM = "weapon_related_violence"


@pytest.fixture(scope="module")
def demo():
    return safeqwen.load()


@pytest.fixture
def engine(demo):
    return Engine(*demo)


def picture(width=168, height=112):
    """Wider than high, so that rows and columns cannot be mistaken for each other."""
    return draw(HARM, 5_000_000, size=168).resize((width, height))


def tiny_engine(model, demo):
    """The tiny model behind the demo's image processor, with two tokens before the picture and one after."""
    engine = Engine.__new__(Engine)
    engine.model, engine.processor = model, demo[1]
    engine._before, engine._after = [5, 112], [113]
    return engine


# ------------------------------------------------------------------------------------------------ values


def test_the_maps_forward_gives_guards_verdict(engine):
    (map_,) = heatmaps(engine, picture(), [HARM])
    (expected,) = engine.judge(engine.prepare([picture()]))
    assert_close(map_.probs, expected, atol=1e-5, rtol=0)
    assert map_.probability == pytest.approx(float(expected[engine.categories.index(HARM)]), abs=1e-5)
    assert map_.picture.size == (168, 112) and map_.values.dtype == np.float32


def test_a_map_has_the_grid_of_the_patches_and_keeps_no_graph(engine):
    (wide,) = heatmaps(engine, picture(), [HARM], max_pixels=168 * 112)
    assert wide.values.shape == (4, 6)
    (map_,) = heatmaps(engine, picture(112, 112), [HARM])
    assert map_.values.shape == (8, 8) and not map_.probs.requires_grad


def test_without_the_rules_a_value_is_how_the_log_odds_move_with_the_patch(state_dict, demo, monkeypatch):
    """Gradient x pixels is d(log-odds)/d(s) with a patch times 1 + s: by two calls of `guard`."""
    monkeypatch.setattr(heatmap, "RULES", {})
    monkeypatch.setattr(heatmap, "_norm", lambda layer, x, output: output)
    monkeypatch.setattr(heatmap, "_activation", lambda layer, x, output: output)
    monkeypatch.setattr(heatmap._Traced, "check", lambda self, config: None)
    engine = tiny_engine(build_guarded(state_dict).double(), demo)
    column, step = engine.categories.index(HARM), 3e-3
    (map_,) = heatmaps(engine, picture(), [HARM])
    (frame,) = engine.prepare([picture()])
    inputs, expected = engine.inputs_of([frame]), []
    for token in range(frame.num_tokens):
        scores = []
        for scale in (1 + step, 1 - step):
            pixels = frame.pixel_values.double().clone()
            pixels[4 * token : 4 * token + 4] *= scale  # a token's patches stand one behind the other
            logits = engine.model.guard(**inputs | {"pixel_values": pixels}).img_safety_logits[0]
            scores.append(float(log_odds(logits, column, engine.categories)))
        expected.append((scores[0] - scores[1]) / (2 * step))
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(map_.values.ravel(), expected, atol=1e-3)


def test_the_gated_rule_by_hand():
    """silu(g) * u of one number: half to each path, silu(g) is g times a constant."""
    x = torch.tensor([[2.0]], requires_grad=True)
    gate, up = 0.5 * x, 3.0 * x
    activated = nn.functional.silu(gate)
    product = heatmap._gate(None, gate, activated)
    half = heatmap._half(None, x, up)
    # Values as the hooks leave them: the whole activation and the whole of u, with the rules' gradients.
    activated = activated.detach() + (product - product.detach())
    up = up.detach() + (half - half.detach())
    (gradient,) = torch.autograd.grad((activated * up).sum(), x)
    relevance = float(gradient * x.detach())
    assert relevance == pytest.approx(1 / (1 + np.exp(-1)) * 6, rel=1e-6)  # silu(1) * 6: all of the output, no more


def test_the_norms_rule_by_hand():
    """With a constant denominator gradient x input is the output itself, of (3, 4) / sqrt(12.5)."""
    norm = SimpleNamespace(weight=torch.tensor([1.0, 2.0]), variance_epsilon=0.0)
    x = torch.tensor([[3.0, 4.0]], requires_grad=True)
    output = heatmap._norm(norm, x, None)
    assert_close(output, torch.tensor([[3.0, 8.0]]) / 12.5**0.5)
    (gradient,) = torch.autograd.grad(output[0, 1], x)
    assert_close(gradient * x, torch.tensor([[0.0, 8.0]]) / 12.5**0.5)


def test_an_activation_of_zero_has_the_slope_of_its_origin():
    x = torch.tensor([0.0, 1.0, -1.0], requires_grad=True)
    output = heatmap._activation(None, x, nn.functional.gelu(x))
    assert_close(output, nn.functional.gelu(x))
    (gradient,) = torch.autograd.grad(output.sum(), x)
    assert_close(gradient, 0.5 * (1 + torch.erf(x.detach() / 2**0.5)))


def test_queries_and_keys_pass_nothing_back_and_values_all():
    output = torch.arange(6.0)[None].requires_grad_()
    passed = heatmap._constant_query_and_key(None, None, output)
    assert torch.equal(passed, output)
    (gradient,) = torch.autograd.grad(passed.sum(), output)
    assert gradient.tolist() == [[0, 0, 0, 0, 1, 1]]


def test_without_biases_the_patches_add_up_to_the_log_odds(state_dict, demo):
    """Conservation: what no bias adds, and no token of text, the patches do. (The guard's last bias is not zero.)"""
    kept = "img_safety_head.mlp.3.bias"
    bare = {name: t if name == kept or not name.endswith("bias") else t * 0 for name, t in state_dict.items()}
    bare["model.language_model.embed_tokens.weight"] = bare["model.language_model.embed_tokens.weight"] * 0
    engine = tiny_engine(build_guarded(bare), demo)
    (map_,) = heatmaps(engine, picture(), [HARM])
    column = engine.categories.index(HARM)
    by_bias = log_odds(bare[kept], column, engine.categories)
    expected = float(log_odds(map_.probs.log(), column, engine.categories) - by_bias)
    # Norms add `variance_epsilon` to their denominators, and nothing to the sum.
    assert float(map_.values.sum()) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_log_odds_are_against_safe_and_of_safe_against_the_rest():
    logits = torch.tensor([1.0, 3.0, 2.0])
    assert float(log_odds(logits, 1, ["safe", "a", "b"])) == 2.0
    assert float(log_odds(logits, 0, ["safe", "a", "b"])) == pytest.approx(1 - np.log(np.exp(3) + np.exp(2)))
    assert float(log_odds(logits, 1, ["c", "a", "b"])) == pytest.approx(3 - np.log(np.exp(1) + np.exp(2)))


def test_several_categories_are_those_of_one_each(engine):
    together = heatmaps(engine, picture(), [HARM, "safe", "suicide"])
    for map_ in together:
        (alone,) = heatmaps(engine, picture(), [map_.category])
        np.testing.assert_allclose(map_.values, alone.values, atol=1e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_kernels_give_one_map(attention, engine):
    other = Engine(*safeqwen.load(attn_implementation=attention))
    for one, two in zip(heatmaps(engine, picture(), [HARM]), heatmaps(other, picture(), [HARM])):
        np.testing.assert_allclose(one.values, two.values, atol=1e-4)


def test_in_half_precision_maps_are_finite_and_alike(engine):
    (full,) = heatmaps(engine, picture(), [HARM])
    for dtype in (torch.bfloat16, torch.float16):
        (half,) = heatmaps(Engine(*safeqwen.load(dtype=dtype)), picture(), [HARM])
        assert np.isfinite(half.values).all()
        assert np.corrcoef(full.values.ravel(), half.values.ravel())[0, 1] > 0.95


# ---------------------------------------------------------------------------------------- what stays


def test_nothing_of_the_model_changes(engine):
    frozen = next(engine.model.parameters())
    frozen.requires_grad_(False)
    try:
        before = [(p.requires_grad, p.grad) for p in engine.model.parameters()]
        with torch.inference_mode():
            (inference,) = heatmaps(engine, picture(), [HARM])
            assert torch.is_inference_mode_enabled()
        with torch.no_grad():
            (none,) = heatmaps(engine, picture(), [HARM])
            assert not torch.is_grad_enabled()
        assert before == [(p.requires_grad, p.grad) for p in engine.model.parameters()]
        assert not any(layer._forward_hooks for layer in engine.model.modules())
        np.testing.assert_array_equal(inference.values, none.values)
    finally:
        frozen.requires_grad_(True)


def test_hooks_go_when_it_fails(engine, monkeypatch):
    def fails(*args, **kwargs):
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(engine.model.img_safety_head, "forward", fails)
        with pytest.raises(ZeroDivisionError):
            heatmaps(engine, picture(), [HARM])
    assert not any(layer._forward_hooks for layer in engine.model.modules())


def test_two_maps_at_once_are_those_of_one_after_the_other(engine, monkeypatch):
    pictures = [picture(), draw("suicide", 5_000_001)]
    alone = [heatmaps(engine, one, [HARM])[0].values for one in pictures]
    # Both have their hooks on the layers before either goes through them.
    both, usual, found = threading.Barrier(2), engine.inputs_of, {}

    def meet(*args):
        both.wait(10)
        return usual(*args)

    def explain(number):
        found[number] = heatmaps(engine, pictures[number], [HARM])[0].values
        both.wait(10)  # nobody takes its hooks off early

    monkeypatch.setattr(engine, "inputs_of", meet)
    threads = [threading.Thread(target=explain, args=(number,)) for number in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for number in range(2):
        np.testing.assert_array_equal(found[number], alone[number])


# ---------------------------------------------------------------------------------------- other models


def test_with_an_adapter_the_map_is_that_of_the_merged_model(state_dict, demo):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=r".*language_model.*(q_proj|v_proj|up_proj)", init_lora_weights=False)
    adapted = get_peft_model(build_guarded(state_dict), config).eval()
    before = [parameter.requires_grad for parameter in adapted.parameters()]
    (map_,) = heatmaps(tiny_engine(adapted, demo), picture(), [HARM])
    assert before == [parameter.requires_grad for parameter in adapted.parameters()]
    (plain,) = heatmaps(tiny_engine(build_guarded(state_dict), demo), picture(), [HARM])
    (merged,) = heatmaps(tiny_engine(adapted.merge_and_unload(), demo), picture(), [HARM])
    np.testing.assert_allclose(map_.values, merged.values, atol=1e-4)
    assert np.abs(map_.values - plain.values).max() > 1e-3


@pytest.mark.parametrize(
    "quantizer",
    [lambda: TorchAoConfig(Int8WeightOnlyConfig()), lambda: BitsAndBytesConfig(load_in_8bit=True)],
    ids=["torchao int8", "bitsandbytes int8"],
)
def test_a_quantised_backbone_gives_nearly_the_same_map(engine, quantizer):
    quantised = Engine(*safeqwen.load(quantization_config=quantizer(), dtype=torch.float32))
    (full,), (map_,) = heatmaps(engine, picture(), [HARM]), heatmaps(quantised, picture(), [HARM])
    assert np.corrcoef(full.values.ravel(), map_.values.ravel())[0, 1] > 0.9


# ---------------------------------------------------------------------------------------- refused


def test_an_unknown_category_names_the_nearest(engine):
    with pytest.raises(ValueError, match="there is no category 'suicid'; did you mean 'suicide'"):
        heatmaps(engine, picture(), [HARM, "suicid"])


def test_an_offloaded_model_is_refused_with_the_reason():
    model, processor = safeqwen.load()
    with pytest.raises(RuntimeError, match="offloaded to the CPU or a disk: load the model without device_map"):
        heatmaps(Engine(cpu_offload(model), processor), picture(), [HARM])


def test_an_untrained_guard_or_one_in_training_explains_nothing(state_dict, demo):
    model = build_guarded(state_dict)
    with pytest.raises(RuntimeError, match="model.eval()"):
        heatmaps(tiny_engine(model.train(), demo), picture(), [HARM])
    nn.init.zeros_(model.eval().img_safety_head.mlp[3].bias)
    with pytest.raises(RuntimeError, match="never trained"):
        heatmaps(tiny_engine(model, demo), picture(), [HARM])


def test_other_layers_than_qwens_are_refused(state_dict, demo):
    model = build_guarded(state_dict)
    for block in model.model.language_model.layers:
        del block.mlp.act_fn
        block.mlp.act_fn = nn.functional.silu  # no layer of its own
    with pytest.raises(RuntimeError, match="layers of Qwen2.5-VL: expected 26 calls, saw 24"):
        heatmaps(tiny_engine(model, demo), picture(), [HARM])


def test_too_little_memory_says_what_to_do(engine, monkeypatch):
    def fails(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "inputs_of", fails)
    with pytest.raises(MemoryError, match="map of a picture of 64 tokens.*lower max_pixels"):
        heatmaps(engine, picture(112, 112), [HARM])


def test_too_little_memory_to_prepare_the_picture_says_so_too(engine, monkeypatch):
    def fails(*args):
        raise MemoryError

    monkeypatch.setattr(engine, "prepare", fails)
    with pytest.raises(MemoryError, match="map of a picture of 112 x 56 pixels.*lower max_pixels"):
        heatmaps(engine, picture(112, 56), [HARM])


class PassesNothingBack(nn.Linear):
    def forward(self, x):
        return super().forward(x.detach())


@pytest.mark.parametrize(
    "path", ["language_model.layers.0.mlp.down_proj", "visual.blocks.0.mlp.down_proj"], ids=["no bias", "bias"]
)
def test_a_layer_that_passes_no_gradients_back_is_refused(state_dict, demo, path):
    model = build_guarded(state_dict)
    layer = model.model.get_submodule(path)
    layer.__class__ = PassesNothingBack  # as a layer with quantised activations
    assert (layer.bias is None) == path.startswith("language") and layer.weight.requires_grad
    with pytest.raises(RuntimeError, match=f"layer model.{path} .PassesNothingBack. passes no gradients back"):
        heatmaps(tiny_engine(model, demo), picture(), [HARM])


def test_gradients_that_are_not_finite_are_no_map(engine, monkeypatch):
    monkeypatch.setattr(heatmap, "log_odds", lambda logits, column, categories: (logits * 0)[column].log())
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        heatmaps(engine, picture(), [HARM])


# ---------------------------------------------------------------------------------------- over the picture


def test_what_a_map_shows_lies_where_its_patch_is(engine):
    map_ = heatmap.Heatmap(HARM, np.array([[0, 0, 0], [0, 0, 9.0]]), 0.5, Image.new("RGB", (90, 40), "grey"), None)
    painted = np.asarray(map_.overlay(1.0)).astype(int)
    changed = np.abs(painted - 128).sum(axis=-1) > 3
    rows, columns = np.nonzero(changed)
    # The patch is the lower right one, of 30 x 20 pixels; bilinear paint ends at the middles of its neighbours.
    assert rows.min() >= 10 and columns.min() >= 45 and changed[30, 75] and changed[39, 89]
    assert map_.upsampled(90, 40)[30, 75] == pytest.approx(9, abs=0.5) and map_.upsampled(90, 40).shape == (40, 90)
