"""`safeqwen check` passes what `safeqwen export` wrote, on both generations, and names what is broken elsewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from test_export import CATEGORIES, CODE_FILES, change_tensors, runs  # noqa: F401  a fixture
from tiny import ROOT, VERSION_4
from transformers import AutoProcessor
from transformers.modeling_outputs import ImageClassifierOutput

import safeqwen.publishing.export as exporting
from safeqwen import DEMO_CHECKPOINT, load
from safeqwen.hub.configuration_safeqwen import AUTO_MAP
from safeqwen.prompt import chat_prompt
from safeqwen.publishing.export import export
from safeqwen_cli import main
from tools.demo.pictograms import draw


CLASS = "SafeQwen2_5_VLForConditionalGeneration"
AUTO_CLASSES = [name for name in AUTO_MAP if name.startswith("AutoModel") and hasattr(transformers, name)]
VIEW = "AutoModelForImageClassification"
CHECKS = [
    *("code", "categories", "AutoProcessor", CLASS, "verdict", "answer"),
    *AUTO_CLASSES,
    *("Qwen2_5_VLForConditionalGeneration", "model card"),
]


def findings(printed):
    """`{check: (passed, detail)}` of the lines on stdout."""
    lines = [line.split(None, 1) for line in printed.splitlines()]
    assert {verdict for verdict, _ in lines} <= {"ok", "FAILED"}
    found = {rest.split(": ", 1)[0]: (verdict == "ok", rest.split(": ", 1)[1]) for verdict, rest in lines}
    assert len(found) == len(lines)
    return found


@pytest.fixture
def check(capsys):
    def run_check(*arguments):
        """The exit code is 0 if all passed, and then all were tried."""
        capsys.readouterr()
        code = main(["check", *map(str, arguments)])
        found = findings(capsys.readouterr().out)
        checks = [*CHECKS[:6], *(name for name in AUTO_MAP if hasattr(transformers, name) and name != "AutoConfig")]
        assert [*found] == checks + CHECKS[-2:] + ["run"] * ("--run" in arguments)
        assert code == (0 if all(passed for passed, _ in found.values()) else 1)
        return {name for name, (passed, _) in found.items() if not passed}, found

    return run_check


@pytest.fixture
def out(runs, tmp_path):  # noqa: F811
    return export(runs["lora"], tmp_path / "out")


@pytest.mark.parametrize("tuning", ["lora", "full", "guard_only"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_was_exported_passes(runs, tmp_path, check, tuning, dtype):  # noqa: F811
    failed, found = check(export(runs[tuning], tmp_path / "out", dtype=dtype), "--run", runs[tuning])
    assert not failed, found
    assert found["categories"][1] == "5" and any(name in found["verdict"][1] for name in CATEGORIES)
    assert {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}[dtype] in found[CLASS][1]
    assert ("LoRA moved the logits by" in found["run"][1]) == (tuning == "lora")


def test_what_one_generation_exported_passes_on_the_other_against_the_run(runs, out):  # noqa: F811
    other = os.environ.get("SAFEQWEN_OTHER_PYTHON")
    if other is None:
        pytest.skip("needs a second generation of transformers: run `make test`")
    command = [str(ROOT / other), "-m", "safeqwen", "check", str(out), "--run", str(runs["lora"])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_MODULES_CACHE": str(out.parent / "modules")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = findings(done.stdout)
    assert all(passed for passed, _ in found.values()) and "run" in found
    assert ("AutoModelForVision2Seq" in found) == (not VERSION_4)  # it was the other


def test_without_a_picture_it_judges_a_drawn_house_and_the_package_needs_no_pictograms(check, monkeypatch):
    monkeypatch.setitem(sys.modules, "tools", None)  # an import of it would raise
    _, found = check(DEMO_CHECKPOINT)
    assert re.match(r"safe \d\d\.\d%", found["verdict"][1])  # what a house is to the demo


def test_it_runs_as_a_command_on_a_picture_of_ones_own(out):
    draw("suicide", 6_000_000, size=100).save(out.parent / "mine.png")
    command = [sys.executable, "-m", "safeqwen", "check", str(out), "--image", str(out.parent / "mine.png")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert [*findings(done.stdout)] == CHECKS


# ------------------------------------------------------------------------------------------------------- wrong merges


def leave_lora_out(model, dtype):
    return model.unload()


def merge_half(model, dtype):
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling = {name: scale / 2 for name, scale in module.scaling.items()}
    return model.merge_and_unload()


def leave_a_layer_out(model, dtype):
    for name, parameter in model.named_parameters():
        if "layers.1." in name and "lora_B" in name:
            parameter.data.zero_()
    return model.merge_and_unload()


def weaken_the_guard(model, dtype):
    merged = model.merge_and_unload()
    merged.img_safety_head.mlp[3].weight.data *= 0.98
    return merged


@pytest.mark.parametrize("merge", [leave_lora_out, merge_half, leave_a_layer_out, weaken_the_guard])
def test_a_wrong_merge_is_not_taken_for_rounding(runs, tmp_path, check, monkeypatch, merge):  # noqa: F811
    monkeypatch.setattr(exporting, "_merge", merge)
    failed, found = check(export(runs["lora"], tmp_path / "out"), "--run", runs["lora"])
    assert failed == {"run"}
    assert "0.39% allowed: not the run, unmerged" in found["run"][1] and "export the run again" in found["run"][1]


def test_another_run_is_not_taken_for_the_run(runs, out, check):  # noqa: F811
    failed, _ = check(out, "--run", runs["full"])
    assert failed == {"run"}


# ----------------------------------------------------------------------------------------------------- broken folders


def edit(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def edit_config(out, **fields):
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, **fields}))


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "img_safety_head.mlp.0.weight"]
)
def test_a_lost_tensor_is_named(out, check, name):
    tensors = load_file(out / "model.safetensors")
    assert name in tensors or name.replace("model.", "model.language_model.", 1) in tensors
    change_tensors(
        out / "model.safetensors",
        lambda tensors: [tensors.pop(key) for key in [*tensors] if key.endswith(name.removeprefix("model."))][:1],
    )
    failed, found = check(out)
    assert "missing" in found[CLASS][1] and name.removeprefix("model.") in found[CLASS][1]
    assert CLASS in failed and "verdict" in failed and {*AUTO_CLASSES} <= failed
    assert re.match("not tried: |.*neither loaded nor trained", found["verdict"][1])
    assert not {"code", "categories", "AutoProcessor", "model card"} & failed


def test_a_weight_that_is_not_finite_is_named(out, check):
    change_tensors(out / "model.safetensors", lambda tensors: tensors["img_safety_head.mlp.3.bias"].fill_(torch.inf))
    failed, found = check(out)
    assert "img_safety_head.mlp.3.bias is not finite" in found[CLASS][1]
    assert {CLASS, "verdict"} <= failed


@pytest.mark.parametrize(
    ("file", "code", "message"),
    [
        ("modeling_safeqwen.py", "import socket, os.path\n", "modeling_safeqwen.py imports os, socket"),
        ("configuration_safeqwen.py", "from numpy.linalg import norm\n", "configuration_safeqwen.py imports numpy"),
        ("modeling_safeqwen.py", "# a comment\n", "modeling_safeqwen.py differs from that of the installed safeqwen"),
        ("more.py", "", f"{sorted([*CODE_FILES, 'more.py'])}, not"),
    ],
)
def test_code_that_is_not_ours_is_named_and_not_run(out, check, file, code, message):
    trap = f"open({str(out.parent / 'was run')!r}, 'w').close()\n"
    with open(out / file, "a") as end:
        end.write(code + trap)
    failed, found = check(out)
    assert failed == {"code", *AUTO_CLASSES}
    assert message in found["code"][1]
    assert not (out.parent / "was run").exists()


def test_an_auto_map_that_leads_elsewhere_is_not_followed(out, check):
    edit(out / "config.json", '"AutoModel": "', '"AutoModel": "someone/else--')
    failed, found = check(out)
    assert failed == {"code", *AUTO_CLASSES} and "someone/else" in found["code"][1]


def test_a_folder_may_have_further_entries_in_its_auto_map_but_none_less(out, check):
    auto_map = json.loads((out / "config.json").read_text())["auto_map"]
    edit_config(out, auto_map={**auto_map, "AutoModelForSomething": "someone/else--modeling.Else"})
    failed, _ = check(out)
    assert not failed
    del auto_map["AutoModel"]
    edit_config(out, auto_map=auto_map)
    failed, _ = check(out)
    assert failed == {"code", *AUTO_CLASSES}


def test_weights_of_two_saves_in_one_folder_are_refused(runs, out, tmp_path, check):  # noqa: F811
    sharded = export(runs["lora"], tmp_path / "sharded", max_shard_size="2MB")
    assert not check(sharded)[0]
    shutil.copy(out / "model.safetensors", sharded)
    failed, found = check(sharded)
    assert failed == {CLASS, "verdict", "answer", *AUTO_CLASSES, "Qwen2_5_VLForConditionalGeneration"}
    assert "the weights of two saves: model.safetensors beside model.safetensors.index.json" in found[CLASS][1]
    (sharded / "model.safetensors.index.json").unlink()
    shutil.copy(sharded / "model-00001-of-00003.safetensors", out)
    _, found = check(out)
    assert "two saves: model-00001-of-00003.safetensors beside model.safetensors;" in found[CLASS][1]


def test_the_prompt_in_the_configuration_is_the_processors(out, check):
    encode = AutoProcessor.from_pretrained(out).tokenizer.encode
    before = encode("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>")
    after = encode("<|vision_end|><|im_end|>\n")
    assert json.loads((out / "config.json").read_text())["safety_prompt_ids"] == {"before": before, "after": after}
    edit_config(out, safety_prompt_ids={"before": before[:-1], "after": after})
    failed, found = check(out)
    assert "AutoProcessor" in failed
    assert f"those of the processor's prompt are {{'before': {before}, 'after': {after}}}" in found["AutoProcessor"][1]


class View:
    """Stands in for the folder's view of pictures only: what the guard says, as `logits`, and a shift of it."""

    def __init__(self, folder, names, shift=0.0):
        self.model, self.processor = load(folder, device="cpu")
        self.config = SimpleNamespace(id2label=dict(enumerate(names)), safety_categories=CATEGORIES)
        self.shift = shift

    def to(self, device):
        return self

    def eval(self):
        return self

    def __call__(self, pixel_values, image_grid_thw):
        text = chat_prompt(self.processor, 1)
        num_tokens = int(image_grid_thw.prod()) // 4
        text = text.replace("<|image_pad|>", "<|image_pad|>" * num_tokens)
        inputs = self.processor.tokenizer(text, return_tensors="pt")
        guard = self.model.guard(**inputs, pixel_values=pixel_values, image_grid_thw=image_grid_thw)
        return ImageClassifierOutput(logits=guard.img_safety_logits + self.shift)


@pytest.mark.parametrize(
    ("names", "shift", "message"),
    [
        (CATEGORIES, 0.0, "the same verdict, from the picture alone"),
        (CATEGORIES, 0.1, "the first picture's verdict differs by"),
        (["safe", "our logo", "weapon", "a|rival", "naïve"], 0.0, "its id2label is ['safe', 'our logo', 'weapon'"),
    ],
)
def test_the_view_of_pictures_alone_gives_the_same_verdict(out, check, monkeypatch, names, shift, message):
    monkeypatch.setitem(AUTO_MAP, VIEW, "modeling_safeqwen.SafeQwen2_5_VLForImageClassification")
    edit_config(out, auto_map=AUTO_MAP)
    view = View(out, names, shift)
    monkeypatch.setattr(getattr(transformers, VIEW), "from_pretrained", lambda *args, **kwargs: view)
    frames = [draw(name, 6_000_000, size=150) for name in ("suicide", "safe")]
    frames[0].save(out.parent / "two.gif", save_all=True, append_images=frames[1:], duration=500)
    failed, found = check(out, "--image", out.parent / "two.gif")
    assert message in found[VIEW][1]
    assert failed == (set() if shift == 0 and names == CATEGORIES else {VIEW})


def test_a_foreign_taxonomy_is_named(out, check, runs):  # noqa: F811
    edit_config(out, safety_categories=["safe", "our logo", "weapon", "a|rival", "naïve"])
    failed, found = check(out, "--run", runs["lora"])
    assert {"categories", "verdict"} <= failed  # the weights know what they were trained for
    assert "safeqwen_run.json says that the run trained ['safe', 'our logo', 'a|rival'" in found["categories"][1]


def test_a_taxonomy_of_another_size_does_not_load(out, check):
    edit_config(out, safety_categories=["safe", "unsafe"], num_safety_categories=2)
    failed, found = check(out)
    assert {"categories", CLASS, *AUTO_CLASSES} <= failed
    assert "config.json names 2, but the guard has 5 columns: export the run again" in found[CLASS][1]


@pytest.mark.parametrize(
    ("break_it", "name", "message"),
    [
        (lambda out: edit_config(out, image_token_id=617), "AutoProcessor", "the processor of another model"),
        (lambda out: (out / "preprocessor_config.json").unlink(), "AutoProcessor", "no preprocessor_config.json"),
        (lambda out: (out / "README.md").unlink(), "model card", "no README.md"),
        (lambda out: (out / "README.md").write_text("# Hello"), "model card", "no front matter"),
        (lambda out: edit(out / "README.md", "license: ", "license: ["), "model card", "not YAML"),
        (lambda out: edit(out / "README.md", "pipeline_tag: ", "other: "), "model card", "lacks pipeline_tag"),
    ],
)
def test_what_is_broken_is_named(out, check, break_it, name, message):
    break_it(out)
    failed, found = check(out)
    assert name in failed and message in found[name][1]


def test_a_cut_file_of_weights_fails_and_the_rest_is_checked(out, check):
    file = out / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    failed, found = check(out)
    assert CLASS in failed and not {"code", "categories", "AutoProcessor", "model card"} & failed


def test_the_demo_is_a_models_folder_like_any_other(check):
    failed, found = check(DEMO_CHECKPOINT)
    assert not failed, found


def test_wrong_usage_is_told_apart_from_a_failed_check(runs, tmp_path, out, capsys):  # noqa: F811
    adapter = export(runs["lora"], tmp_path / "adapter", adapter_only=True)
    (tmp_path / "words.png").write_text("no picture")
    for arguments, message in (
        ([tmp_path / "gone"], "is no model's folder"),
        ([adapter], "it holds an adapter"),
        ([out, "--run", tmp_path], "no training run"),
        ([out, "--image", tmp_path / "words.png"], "words.png"),
        ([out, "--device", "abacus"], "abacus"),
    ):
        assert main(["check", *map(str, arguments)]) == 2
        printed = capsys.readouterr()
        assert message in printed.err and printed.out == ""
