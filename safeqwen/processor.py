"""A processor, saved in the form that both generations of transformers read."""

import json
from pathlib import Path

from safeqwen.files import write_json


def save_processor(processor, folder):
    """Writes a processor's files so that both generations of transformers can load them.

    Args:
        processor (`Qwen2_5_VLProcessor`)
        folder (`str` or `os.PathLike`): made if there is none.
    """
    folder = Path(folder)
    # pipeline(dtype=...) hands the model's dtype to the tokenizer, too, which notes it and then cannot be written.
    processor.tokenizer.init_kwargs.pop("dtype", None)
    processor.save_pretrained(folder)
    # transformers 5.x keeps all in processor_config.json; 4.x reads a file for each part.
    processor.image_processor.to_json_file(folder / "preprocessor_config.json")
    processor.video_processor.to_json_file(folder / "video_preprocessor_config.json")
    # 4.x takes no list under the name that 5.x writes; both know the older name.
    file = folder / "tokenizer_config.json"
    tokenizer_config = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(tokenizer_config.get("extra_special_tokens"), list):
        tokenizer_config["additional_special_tokens"] = tokenizer_config.pop("extra_special_tokens")
    for how_it_was_loaded in ("is_local", "local_files_only"):
        tokenizer_config.pop(how_it_was_loaded, None)
    write_json(file, tokenizer_config)
