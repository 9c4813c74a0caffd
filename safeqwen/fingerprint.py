"""Which weights a folder or Hub repository holds, in a few bytes, and its files by name."""

import hashlib
import json
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError


HEAD = 8  # bytes of a safetensors file that hold the length of its header
EDGE = 4096  # bytes of a tensor that are read at its beginning, and at its end


def weights_fingerprint(path_or_repo, **hub):
    """
    Returns the fingerprint (`str`, 64 hexadecimal digits) of a folder's or Hub repository's weights.

    It is the sha256 over each tensor's name, dtype, shape and first and last 4 KiB, in the order of the names: the
    same for one file and for shards, another one after training or in another dtype. It reads some megabytes of
    16 GB, tells weights apart, and is no defence against forgery.

    Args:
        path_or_repo (`str` or `os.PathLike`): with model.safetensors, or model.safetensors.index.json and its shards.
        hub: `revision`, `token`, `cache_dir`, `local_files_only` as `from_pretrained` takes them. What it has in the
            cache is not downloaded again.

    Raises:
        ValueError: if there are no such files, one is cut off, or two hold a tensor of the same name.
        OSError: if a file cannot be read or the Hub cannot be asked.
    """
    if not str(path_or_repo):
        raise ValueError("no folder or repository was given")  # else it would be the working folder
    tensors = {}
    for file in _weight_files(path_or_repo, hub):
        for name, entry in _header(file).items():
            if name in tensors:
                raise ValueError(f"{path_or_repo} holds {name} twice, in {tensors[name][0].name} and {file.name}")
            tensors[name] = (file, entry)
    digest = hashlib.sha256()
    for name, (file, entry) in sorted(tensors.items()):
        start, end = entry["data_offsets"]
        digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        with file.open("rb") as weights:
            start += HEAD + int.from_bytes(weights.read(HEAD), "little")
            end += start - entry["data_offsets"][0]
            for position in (start, max(start, end - EDGE)):
                weights.seek(position)
                num_bytes = min(EDGE, end - position)
                edge = weights.read(num_bytes)
                if len(edge) < num_bytes:
                    raise ValueError(f"{file} is cut off within {name}; get the file anew")
                digest.update(edge)
    return digest.hexdigest()


def hub_file(path_or_repo, name, **hub):
    """
    Returns the `Path` of a file in a folder or, through the cache, in a Hub repository; `None` if it has no such file.

    Offline, or with `local_files_only`, a file that is not in the cache counts as not there.

    Raises:
        OSError: if the Hub cannot be asked: the file may be there.
        ValueError: if `path_or_repo` is neither a folder nor a repository's name.
    """
    if Path(path_or_repo).is_dir():
        file = Path(path_or_repo) / name
        return file if file.is_file() or file.is_symlink() else None  # a broken link is read, and fails
    try:
        return Path(hf_hub_download(str(path_or_repo), name, **hub))
    except LocalEntryNotFoundError:
        if hub.get("local_files_only") or constants.HF_HUB_OFFLINE:
            return None
        raise
    except EntryNotFoundError:
        return None


def _weight_files(path_or_repo, hub):
    if whole := hub_file(path_or_repo, "model.safetensors", **hub):
        return [whole]
    if not (index := hub_file(path_or_repo, "model.safetensors.index.json", **hub)):
        raise ValueError(f"{path_or_repo} holds no weights: expected model.safetensors, or its shards and their index")
    names = sorted({*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    files = {name: hub_file(path_or_repo, name, **hub) for name in names}
    if missing := [name for name, file in files.items() if file is None]:
        raise ValueError(f"{path_or_repo} lacks {', '.join(missing)}, which its index names")
    return [*files.values()]


def _header(file):
    """Name -> `{"dtype", "shape", "data_offsets"}` of a safetensors file."""
    with file.open("rb") as weights:
        size = int.from_bytes(weights.read(HEAD), "little")
        header = weights.read(size) if size <= file.stat().st_size else b""
    try:
        entries = json.loads(header)
    except ValueError as error:
        raise ValueError(f"{file} is no whole safetensors file; get it anew") from error
    return {name: entry for name, entry in entries.items() if name != "__metadata__"}
