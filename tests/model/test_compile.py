"""torch.compile sees in a decode step of ours what it sees in one of stock's, and compiling changes no verdict."""

import pytest
import torch
from tiny import Pic, batch, for_stock
from torch.testing import assert_close
from transformers import CompileConfig


CAT, DOG, SUN = Pic(4, 6, seed=1), Pic(4, 4, seed=2), Pic(8, 4, seed=3)
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
WITH_VERDICT = {"do_safety": True, "return_dict_in_generate": True}


@pytest.fixture
def model(mild):
    return mild  # 1 - p(safe) stays under a threshold of 1


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Compiler:
    """A backend that runs graphs as they are, and keeps them."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, example_inputs):
        self.graphs.append(graph)
        return graph.forward

    def __deepcopy__(self, memo):  # `generate` copies its settings
        return self

    def settings(self):
        """What makes `generate` compile decode steps on a CPU too, in one graph or not at all."""
        config = CompileConfig(backend=self, fullgraph=True, dynamic=False, mode=None)
        config._compile_all_devices = True
        return {"cache_implementation": "static", "compile_config": config}

    def operations(self):
        return [[node.target for node in graph.graph.nodes if node.op != "placeholder"] for graph in self.graphs]


@pytest.mark.parametrize("prompts", [[[5, CAT, 7]], [[5, CAT, 7, DOG], [SUN, 9]]], ids=["one", "batch"])
@pytest.mark.parametrize("ours", [{}, WITH_VERDICT, {**WITH_VERDICT, "safety_threshold": 1.0}])
def test_decoding_compiles_what_stocks_compiles_and_as_often(model, stock, prompts, ours):
    inputs, for_stocks, for_ours = batch(*prompts), Compiler(), Compiler()
    for _ in range(2):  # the second call finds all it needs compiled
        expected = stock.generate(**for_stock(inputs), **GREEDY, **for_stocks.settings())
        output = model.generate(**inputs, **GREEDY, **for_ours.settings(), **ours)
        assert torch.equal(output.sequences if ours else output, expected)
        if ours:
            verdict = model(**inputs, do_safety=True).img_safety_logits
            assert_close(output.img_safety_logits, verdict, atol=1e-5, rtol=1e-5)
    assert for_ours.operations() == for_stocks.operations()
    assert len(for_ours.graphs) == 1
    assert torch.equal(expected, stock.generate(**for_stock(inputs), **GREEDY))  # as with a dynamic cache


def test_a_compiled_forward_gives_the_verdict_of_an_eager_one(model):
    inputs = batch([5, CAT, 7], [SUN, 9, DOG], [8, 9])
    expected = model.generate(**inputs, **GREEDY, **WITH_VERDICT)
    model.model.visual.forward = torch.compiler.disable(model.model.visual.forward)  # stock's own, and slow to trace
    compiler = Compiler()
    model.forward = torch.compile(model.forward, backend=compiler)
    output = model.generate(**inputs, **GREEDY, **WITH_VERDICT)
    assert compiler.graphs
    assert torch.equal(output.sequences, expected.sequences)
    assert_close(output.img_safety_logits, expected.img_safety_logits, equal_nan=True)
    assert_close(output.img_safety_probs, expected.img_safety_probs, equal_nan=True)
