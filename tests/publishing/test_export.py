"""What `safeqwen export` publishes of a run is the run: its logits, its record, and nothing else."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import ROOT
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLForConditionalGeneration

import safeqwen.publishing.export as exporting
import safeqwen.publishing.record as recording
from safeqwen import DEMO_CHECKPOINT, SafeQwen2_5_VLForConditionalGeneration
from safeqwen.judging.load import load
from safeqwen.loading import load_base
from safeqwen.processor import save_processor
from safeqwen.prompt import chat_prompt
from safeqwen.publishing.export import export
from safeqwen.publishing.model_card import front_matter, without_folders
from safeqwen.publishing.record import load_run
from safeqwen_cli import main
from tools.demo.pictograms import draw


TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
CODE_FILES = sorted(file.name for file in ROOT.glob("*_safeqwen.py"))
CATEGORIES = ["safe", "our logo", "a|rival", "weapon", "naïve"]


def write_run(folder, tuning="lora", base=DEMO_CHECKPOINT, categories=CATEGORIES, gain=0.05, **fields):
    """A finished run as `safeqwen train` leaves it, with weights that a seed moved instead of data."""
    model = load_base(base, safety_categories=categories, dtype=torch.float32)
    processor = load(base)[1]
    generator = torch.Generator().manual_seed(0)
    for parameter in model.img_safety_head.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
    model.load_state_dict(model.state_dict())  # moved by hand, they count as trained when they are loaded
    final = folder / "final"
    if tuning == "lora":
        torch.manual_seed(0)
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, modules_to_save=["img_safety_head"])
        model = get_peft_model(model, lora)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=gain, generator=generator)
        model.save_pretrained(final)
        adapter = load_file(final / "adapter_model.safetensors")
        save_file(adapter, final / "adapter_model.safetensors", metadata=_names(categories))
    elif tuning == "full":
        for name, parameter in model.named_parameters():
            if "language_model.layers" in name and parameter.ndim > 1:
                parameter.data += gain * 0.3 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(final)
    else:
        final.mkdir(parents=True)
        head = model.img_safety_head.state_dict()
        save_file(
            {f"img_safety_head.{name}": tensor for name, tensor in head.items()},
            final / "img_safety_head.safetensors",
            metadata=_names(categories),
        )
    save_processor(processor, final)
    record = {
        "safeqwen": "0.1.0",
        "command": shlex.join(["safeqwen", "train", f"{folder}/my configs/lora.yaml", f"--data={folder}/rows.jsonl"]),
        "tuning": tuning,
        "base_model": str(base),
        "base_revision": None,
        "safety_categories": list(categories),
        "config": {"learning_rate": 1e-5, "data": {"train": [f"{folder}/rows.jsonl"]}, "output": str(folder)},
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0], "deepspeed": None},
        "git_commit": "0123abc",
        "data": {
            "train": {
                "files": [f"{folder}/rows.jsonl", "more/rows.jsonl"],
                "rows": 123,
                "skipped": 4,
                "sha256": hashlib.sha256(b"rows").hexdigest(),
                "rows_by_label": {"safe": 60, "our logo": 30, "a|rival": 20, "weapon": 7},
                "rows_with_answer": 99,
            },
            "eval": None,
        },
        "metrics": {"eval_guard_accuracy": 0.9375, "eval_guard_macro_f1": 0.9},
        **fields,
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def _names(categories):
    return {"format": "pt", "safety_categories": json.dumps(list(categories))}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of each tuning; tests that change one take a copy."""
    folder = tmp_path_factory.mktemp("runs")
    return {tuning: write_run(folder / tuning, tuning) for tuning in ("lora", "full", "guard_only")}


@pytest.fixture
def run(runs, tmp_path):
    """A copy of the LoRA run."""
    return shutil.copytree(runs["lora"], tmp_path / "run")


def inputs_for(processor, category="safe", seed=6_000_000):
    text = chat_prompt(processor, 1, "What is in this picture?", add_generation_prompt=True)
    return processor(text=[text], images=[draw(category, seed, size=224)], return_tensors="pt")


def change_record(run, **fields):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, **fields}))


def change_tensors(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


# ----------------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize(
    ("base_dtype", "dtype", "bits"),
    [("float16", "float16", 11), ("bfloat16", "float16", 11), ("float16", "bfloat16", 8)],
)
def test_merged_weights_are_base_plus_lora_rounded_once(tmp_path, base_dtype, dtype, bits):
    model, processor = load(dtype=base_dtype)
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    run = write_run(tmp_path / "run", base=tmp_path / "base")
    export(run, tmp_path / "out", dtype=dtype)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    base = load_file(tmp_path / "base" / "model.safetensors")
    adapter = load_file(run / "final" / "adapter_model.safetensors")
    merged.pop("img_safety_head.categories_digest", None)  # bytes
    assert {tensor.dtype for tensor in merged.values()} == {getattr(torch, dtype)}
    num_merged = 0
    for name, tensor in merged.items():
        # adapter: base_model.model.model.language_model.layers...; saved: language_model or, as released, model
        own = {key.split("layers.")[-1]: value.double() for key, value in adapter.items() if "lora" in key}
        stem = name.split("layers.")[-1].removesuffix(".weight")
        if name.startswith("img_safety_head"):
            exact = adapter[f"base_model.model.{name}"].double()
        else:
            exact = base[name].double()
        if "visual" not in name and f"{stem}.lora_B.weight" in own:
            exact = exact + 8 / 4 * own[f"{stem}.lora_B.weight"] @ own[f"{stem}.lora_A.weight"]
            assert not torch.equal(exact.to(tensor.dtype), base[name].to(tensor.dtype))
            num_merged += 1
        # half a unit in the last place; 1e-6 for the float32 in which LoRA is added
        allowed = exact.abs() * (2.0**-bits + 1e-6) + 2.0**-25
        assert ((tensor.double() - exact).abs() <= allowed).all(), name
    assert num_merged == 3 * 7  # layers, matrices of each


@pytest.mark.parametrize("tuning", ["lora", "full", "guard_only"])
def test_what_is_exported_says_what_the_run_says(runs, tmp_path, tuning):
    out = export(runs[tuning], tmp_path / "out", dtype="float32")
    assert out == tmp_path / "out"
    unmerged, processor = load_run(runs[tuning], dtype=torch.float32)
    model = AutoModelForImageTextToText.from_pretrained(out, trust_remote_code=True, dtype=torch.float32)
    inputs = inputs_for(AutoProcessor.from_pretrained(out))
    for name, tensor in inputs_for(processor).items():
        assert torch.equal(inputs[name], tensor)
    ours, theirs = model(**inputs, do_safety=True), unmerged(**inputs, do_safety=True)
    assert_close(ours.logits, theirs.logits, atol=1e-4, rtol=0)
    assert_close(ours.img_safety_logits, theirs.img_safety_logits, atol=1e-4, rtol=0)
    base = load_base(DEMO_CHECKPOINT, dtype=torch.float32)
    moved = (base(**inputs).logits - ours.logits).abs().max()
    assert moved == 0 if tuning == "guard_only" else moved > 0.1
    assert model.config.safety_categories == CATEGORIES


def test_a_guard_alone_goes_onto_plain_qwen_weights(tmp_path):
    Qwen2_5_VLForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT, dtype=torch.float16).save_pretrained(
        tmp_path / "plain"
    )
    load(DEMO_CHECKPOINT)[1].save_pretrained(tmp_path / "plain")
    run = write_run(tmp_path / "run", "guard_only", base=tmp_path / "plain")
    model, processor = load(export(run, tmp_path / "out"))
    saved = load_file(run / "final" / "img_safety_head.safetensors")
    assert torch.equal(model.img_safety_head.mlp[3].weight, saved["img_safety_head.mlp.3.weight"].half().float())
    assert model.guard(**inputs_for(processor)).img_safety_probs.shape == (1, 5)
    assert front_matter((tmp_path / "out" / "README.md").read_text())["license"] == "unknown"


def test_the_folder_is_complete_and_nothing_in_it_names_a_folder_of_this_machine(runs, tmp_path):
    out = export(runs["lora"], tmp_path / "out", max_shard_size="2MB")
    adapter = export(runs["lora"], tmp_path / "adapter", adapter_only=True)
    for name in CODE_FILES:
        assert (out / name).read_bytes() == (ROOT / name).read_bytes()
    assert len([*out.glob("model-*.safetensors")]) > 1
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation.pop("transformers_version") and generation == {
        "bos_token_id": 604,
        "eos_token_id": [606, 604],
        "pad_token_id": 604,
    }
    record = json.loads((out / "safeqwen_run.json").read_text())
    assert record["command"] == "safeqwen train lora.yaml --data=rows.jsonl" and record["base_model"] == "demo"
    assert record["data"]["train"]["files"] == ["rows.jsonl", "more/rows.jsonl"]
    local = [str(tmp_path), str(runs["lora"].parent), str(DEMO_CHECKPOINT.parent), str(Path.home()) + os.sep]
    for file in [*out.iterdir(), *adapter.iterdir()]:
        data = file.read_bytes()
        assert not any(folder.encode() in data for folder in local), file
        assert file.stat().st_mode & 0o777 == 0o666 & ~current_umask(), file


def current_umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("/home/me/rows.jsonl", "rows.jsonl"),
        ("/home/my self/rows.jsonl", "rows.jsonl"),
        ("~/rows.jsonl", "rows.jsonl"),
        ("~me/data/rows.jsonl", "rows.jsonl"),
        (r"C:\Users\me\rows.jsonl", "rows.jsonl"),
        (r"\\server\me\rows.jsonl", "rows.jsonl"),
        ("file:///home/me/rows.jsonl", "rows.jsonl"),
        ("json:/home/me/rows.jsonl, then /data/more.jsonl", "json:rows.jsonl, then more.jsonl"),
        ("data/rows.jsonl", "data/rows.jsonl"),
        ("../rows.jsonl", "../rows.jsonl"),
        ("https://example.com/home/me", "https://example.com/home/me"),
        ("hf://datasets/someone/rows", "hf://datasets/someone/rows"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
        (TARGETS, TARGETS),
        ("a / b, and/or 1/2", "a / b, and/or 1/2"),
        (3, 3),
        (None, None),
        (
            {"command": "safeqwen train '/home/my self/a.yaml' --out=/x/y"},
            {"command": "safeqwen train a.yaml --out=y"},
        ),
        ({"command": "safeqwen train /home/me/it's.yaml"}, {"command": """safeqwen train 'it'"'"'s.yaml'"""}),
        ({"safety_categories": ["/b/"], "x": ["/a/b"]}, {"safety_categories": ["/b/"], "x": ["b"]}),
    ],
)
def test_of_an_absolute_path_only_the_last_part_is_published(text, published):
    assert without_folders(text) == published


def test_the_card_is_filled_from_the_run(runs, tmp_path):
    card = (export(runs["lora"], tmp_path / "my-guard") / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---\n")[1]) == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["safety", "guard", "content-moderation", "qwen2_5_vl", "custom_code", "demo"],
    }  # no base_model: "demo" is no repository
    assert "# my-guard\n" in card and "not photographs, and is not for moderation" in card
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in card.splitlines() if "|" in line]
    for row in (
        ["0", "`safe`", "60"],
        ["2", r"`a\|rival`", "20"],
        ["4", "`naïve`", "0"],
        ["rows", "123"],
        ["with an answer", "99"],
        ["with a category", "117"],
        ["left out as unusable", "4"],
        ["files", "`rows.jsonl`, `more/rows.jsonl`"],
        ["SHA-256", f"`{hashlib.sha256(b'rows').hexdigest()}`"],
        ["`eval_guard_accuracy`", "0.9375"],
        ["torch", torch.__version__],
    ):
        assert row in rows, row
    assert "```bash\nsafeqwen train lora.yaml --data=rows.jsonl\n```" in card
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])
    assert settings == {"learning_rate": 1e-5, "data": {"train": ["rows.jsonl"]}, "output": "lora"}
    assert "deepspeed" not in card
    assert "naïve (0 rows), weapon (7 rows)" in card and "commit `0123abc`" in card


def test_the_card_names_a_base_on_the_hub_and_says_what_is_not_known(run, monkeypatch, tmp_path):
    change_record(run, base_model="Qwen/Qwen2.5-VL-7B-Instruct", base_revision="cc59489", metrics={})
    monkeypatch.setattr(recording, "load_base", lambda base, **kw: load_base(DEMO_CHECKPOINT, **_without_revision(kw)))
    card = (export(run, tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    fields = front_matter(card)
    assert fields["base_model"] == "Qwen/Qwen2.5-VL-7B-Instruct" and fields["license"] == "unknown"
    assert "demo" not in fields["tags"] and "drawn pictograms" not in card
    assert "`cc59489`" in card and "Not measured." in card and "licence of the base could not be read" in card


def _without_revision(options):
    assert options.pop("revision") == "cc59489"
    return options


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_the_cards_code_runs_as_it_stands(runs, tmp_path, kind):
    out = export(runs["lora"], tmp_path / 'it"s', adapter_only=kind == "adapter")
    draw("suicide", 6_000_000, size=224).save(tmp_path / "picture.png")
    (tmp_path / "demo").symlink_to(DEMO_CHECKPOINT)  # the base, where the card's code looks for it
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, env=environment, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    probs, answer = done.stdout.splitlines()
    assert all(repr(category) in probs for category in CATEGORIES) and answer


def test_an_adapter_alone_is_the_run_bit_for_bit(runs, tmp_path):
    out = export(runs["lora"], tmp_path / "adapter", adapter_only=True)
    assert not [*out.glob("model*")] and not [*out.glob("*.py")]
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "demo"
    assert front_matter((out / "README.md").read_text(encoding="utf-8"))["library_name"] == "peft"
    base = load_base(DEMO_CHECKPOINT, safety_categories=CATEGORIES, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, out).eval()
    unmerged, _ = load_run(runs["lora"], dtype=torch.float32)
    inputs = inputs_for(AutoProcessor.from_pretrained(out))
    ours, theirs = model(**inputs, do_safety=True), unmerged(**inputs, do_safety=True)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.img_safety_logits, theirs.img_safety_logits)


# ------------------------------------------------------------------------------------------------- what is not written


def refused(run, out, message, **options):
    """The export says why it cannot be, and leaves nothing behind."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(ValueError, match=message):
        export(run, out, **options)
    assert sorted(out.parent.rglob("*")) == before


def test_a_weight_beyond_float16_is_refused_by_name(run, tmp_path):
    def overflow(tensors):
        name = next(name for name in tensors if "layers.1.mlp.up_proj.lora_B" in name)
        tensors[name][0, 0] = 1e6

    change_tensors(run / "final" / "adapter_model.safetensors", overflow)
    refused(run, tmp_path / "out", r"layers\.1\.mlp\.up_proj\.weight holds .*65504: export with --dtype bfloat16")
    export(run, tmp_path / "out", dtype="bfloat16")
    change_tensors(run / "final" / "adapter_model.safetensors", lambda tensors: _set_nan(tensors, "mlp.3.bias"))
    refused(run, tmp_path / "again", r"img_safety_head\.mlp\.3\.bias is not finite", dtype="bfloat16")


def _set_nan(tensors, ending):
    tensors[next(name for name in tensors if name.endswith(ending))][0] = float("nan")


def test_an_unfinished_run_is_refused_with_how_to_resume(run, tmp_path):
    shutil.rmtree(run / "final")
    refused(run, tmp_path / "out", "not finished; to go on with it: safeqwen train .*lora.yaml.* --resume")


def test_a_run_that_ended_while_it_wrote_its_result_is_refused(run, tmp_path):
    change_record(run, metrics=None)
    refused(run, tmp_path / "out", "not finished")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tuning": "prefix"}, "tuning 'prefix', not one of lora, full, guard_only"),
        ({"safety_categories": [*CATEGORIES[:4], "other", "more"]}, "size mismatch"),
        ({"base_model": "/gone/base"}, "base model /gone/base cannot be loaded; if it has moved, correct base_model"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(run, tmp_path, fields, message):
    change_record(run, **fields)
    refused(run, tmp_path / "out", message)


@pytest.mark.parametrize("tuning", ["lora", "full", "guard_only"])
def test_a_result_with_another_taxonomy_than_its_record_is_refused(runs, tmp_path, tuning):
    run = shutil.copytree(runs[tuning], tmp_path / "run")
    change_record(run, safety_categories=[*CATEGORIES[1:], CATEGORIES[0]])
    refused(run, tmp_path / "out", "do they belong to one run")


@pytest.mark.parametrize(
    ("tuning", "name"), [("lora", "adapter_model.safetensors"), ("guard_only", "img_safety_head.safetensors")]
)
def test_a_result_that_does_not_tell_its_categories_is_taken_by_its_record(runs, tmp_path, tuning, name):
    run = shutil.copytree(runs[tuning], tmp_path / "run")
    change_tensors(run / "final" / name, lambda tensors: None)  # leaves the names out
    assert export(run, tmp_path / "out").is_dir()


def test_what_is_no_run_is_refused(tmp_path, run):
    refused(tmp_path, tmp_path / "out", "no training run.*safeqwen train")
    (run / "run.json").write_text('{"safeqwen": ')
    refused(run, tmp_path / "out", "not JSON")
    (run / "run.json").write_text('{"safeqwen": "0.1.0"}')
    refused(run, tmp_path / "out", "lacks command, tuning")


def test_a_processor_that_this_generation_cannot_load_is_named(run, tmp_path):
    for file in (run / "final").glob("*processor*"):
        file.unlink()
    refused(run, tmp_path / "out", "the processor in .*run/final cannot be loaded by transformers")


def test_an_adapter_that_lacks_a_tensor_is_refused(run, tmp_path):
    change_tensors(
        run / "final" / "adapter_model.safetensors",
        lambda tensors: tensors.pop(next(name for name in tensors if "lora_B" in name)),
    )
    refused(run, tmp_path / "out", "missing adapter keys")


def test_a_cut_adapter_is_refused(run, tmp_path):
    file = run / "final" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(run, tmp_path / "out", "cannot be loaded")


def test_a_guard_that_was_never_trained_is_not_published(run, tmp_path):
    def forget(tensors):
        next(tensor for name, tensor in tensors.items() if name.endswith("mlp.3.bias")).zero_()

    change_tensors(run / "final" / "adapter_model.safetensors", forget)
    refused(run, tmp_path / "out", "(neither loaded nor|never) trained.*rows with a safety label")


def test_a_folder_that_holds_something_is_left_alone(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("all my work")
    refused(run, out, "exists and is not empty")
    refused(run, out / "thesis.txt", "exists and is not empty")
    (out / "thesis.txt").unlink()
    assert export(run, out) == out and (out / "README.md").exists()


@pytest.mark.parametrize("failing", ["save_processor", "write_json"])
@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_what_fails_half_way_leaves_nothing(run, tmp_path, monkeypatch, failing, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(exporting, failing, fail)
    with pytest.raises(type(error)):
        export(run, tmp_path / "deep" / "out")
    assert [*(tmp_path / "deep").iterdir()] == []


@pytest.mark.parametrize("adapter_only", [False, True])
def test_a_disk_that_is_full_is_told_in_one_line_and_nothing_is_left(run, tmp_path, adapter_only):
    (tmp_path / "disk").mkdir()
    # No file of more than 100 kB: the kernel stops the writing in the middle, as it does where the disk is full.
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    code = f"import sys; {limited}; from safeqwen_cli import main; sys.exit(main(sys.argv[1:]))"
    command = ["export", str(run), str(tmp_path / "disk" / "out"), *["--adapter-only"] * adapter_only]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1 and done.stdout == "", done.stderr
    (told,) = [line for line in done.stderr.splitlines() if "safeqwen" in line]
    assert told.startswith(f"safeqwen: {tmp_path}/disk/out could not be written") and "File too large" in told
    assert "Traceback" not in done.stderr and [*(tmp_path / "disk").iterdir()] == []


def test_what_a_killed_export_has_left_is_named_with_what_to_do(run, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    code = """
import os, signal, sys
import safeqwen.publishing.export as exporting
exporting.save_processor = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
exporting.export(*sys.argv[1:])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", code, str(run), str(out)], env=environment, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    (left,) = out.parent.iterdir()
    assert (left / "model.safetensors").exists()
    capsys.readouterr()
    assert main(["export", str(run), str(out)]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"safeqwen: {left} is what a killed process has left of {out}") and "remove" in told
    assert [*out.parent.iterdir()] == [left]
    shutil.rmtree(left)
    assert export(run, out) == out


def test_only_lora_has_an_adapter(runs, tmp_path):
    refused(runs["full"], tmp_path / "out", "no adapter, its tuning is full", adapter_only=True)
    refused(runs["lora"], tmp_path / "out", "dtype must be one of float16", dtype="int8")


# ------------------------------------------------------------------------------------------------------------- the Hub


class Hub:
    """Stands in for HfApi, and notes what it is asked."""

    def __init__(self, fails=None):
        self.asked, self.fails = [], fails

    def __call__(self):
        return self

    def __getattr__(self, name):
        def ask(*args, **kwargs):
            self.asked.append((name, args, kwargs))
            if name == self.fails:
                raise ConnectionError("the Hub is gone")

        return ask


def test_a_push_uploads_the_whole_folder_to_the_named_repository(runs, tmp_path, monkeypatch, capsys):
    hub = Hub()
    monkeypatch.setattr(exporting, "HfApi", hub)
    command = ["export", str(runs["lora"]), str(tmp_path / "out"), "--push", "me/my-guard", "--private"]
    assert main(command) == 0
    assert capsys.readouterr().out == "https://huggingface.co/me/my-guard\n"
    message = "SafeQwen, trained from demo"
    assert hub.asked == [
        ("whoami", (), {}),
        ("create_repo", ("me/my-guard",), {"private": True, "exist_ok": True}),
        (
            "upload_folder",
            (),
            {"folder_path": tmp_path / "out", "repo_id": "me/my-guard", "commit_message": message},
        ),
    ]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "# my-guard\n" in card and 'from_pretrained(\n    "me/my-guard"' in card


def test_without_a_login_nothing_is_done_and_without_a_network_nothing_is_lost(runs, tmp_path, monkeypatch, capsys):
    command = ["export", str(runs["guard_only"]), str(tmp_path / "out"), "--push", "me/my-guard"]
    monkeypatch.setattr(exporting, "HfApi", Hub(fails="whoami"))
    assert main(command) == 2
    assert "hf auth login" in capsys.readouterr().err and not (tmp_path / "out").exists()
    monkeypatch.setattr(exporting, "HfApi", Hub(fails="upload_folder"))
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "is written, but was not uploaded: the Hub is gone" in error
    assert f"hf upload me/my-guard {tmp_path / 'out'}" in error
    assert isinstance(load(tmp_path / "out")[0], SafeQwen2_5_VLForConditionalGeneration)
