"""The fingerprint of weights: the same for one file and for shards, another for every change that counts."""

import hashlib
import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from safeqwen.fingerprint import weights_fingerprint


TENSORS = {
    "b.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a.bias": torch.arange(5000, dtype=torch.float16),  # 10,000 bytes: the middle is not read
    "c": torch.tensor(1.5),
}


def one_file(folder, tensors):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def shards(folder, tensors):
    folder.mkdir()
    weight_map = {name: f"model-0000{i}-of-00003.safetensors" for i, name in enumerate(tensors, start=1)}
    for name, file in weight_map.items():
        save_file({name: tensors[name]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_it_is_the_sha256_of_names_types_shapes_and_edges(tmp_path):
    digest = hashlib.sha256()
    for name, dtype, shape, data in (
        ("a.bias", "F16", [5000], TENSORS["a.bias"].numpy().tobytes()),
        ("b.weight", "F32", [2, 3], struct.pack("<6f", *range(6))),
        ("c", "F32", [], struct.pack("<f", 1.5)),
    ):
        digest.update(json.dumps([name, dtype, shape]).encode() + data[:4096] + data[-4096:])
    assert weights_fingerprint(one_file(tmp_path / "one", TENSORS)) == digest.hexdigest()
    assert weights_fingerprint(shards(tmp_path / "shards", TENSORS)) == digest.hexdigest()


@pytest.mark.parametrize("what", ["value", "last value", "dtype", "shape", "name", "fewer"])
def test_every_change_that_counts_is_another_fingerprint(tmp_path, what):
    changed = {name: tensor.clone() for name, tensor in TENSORS.items()}
    if what == "value":
        changed["b.weight"][0, 0] = 9
    elif what == "last value":
        changed["a.bias"][-1] = 9
    elif what == "dtype":
        changed["b.weight"] = changed["b.weight"].to(torch.int32)
    elif what == "shape":
        changed["b.weight"] = changed["b.weight"].reshape(3, 2)
    elif what == "name":
        changed["d"] = changed.pop("c")
    else:
        del changed["c"]
    before = weights_fingerprint(one_file(tmp_path / "one", TENSORS))
    assert weights_fingerprint(one_file(tmp_path / "other", changed)) != before


def test_what_holds_no_whole_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no weights"):
        weights_fingerprint(tmp_path)
    with pytest.raises(ValueError, match="no folder"):
        weights_fingerprint("")
    folder = one_file(tmp_path / "one", TENSORS)
    data = (folder / "model.safetensors").read_bytes()
    for cut, message in ((len(data) - 5, "cut off"), (100, "no whole"), (3, "no whole"), (0, "no whole")):
        (folder / "model.safetensors").write_bytes(data[:cut])
        with pytest.raises(ValueError, match=message):
            weights_fingerprint(folder)
    folder = shards(tmp_path / "shards", TENSORS)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks model-00002"):
        weights_fingerprint(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    folder = shards(tmp_path / "shards", TENSORS)
    save_file({"c": TENSORS["c"], "a.bias": TENSORS["a.bias"]}, folder / "model-00003-of-00003.safetensors")
    with pytest.raises(ValueError, match="holds a.bias twice"):
        weights_fingerprint(folder)
