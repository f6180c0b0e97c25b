"""What `sparsify` needs: to be EleutherAI's, as another project has its import name, and on a GPU a C compiler."""

import os
import shutil
import sysconfig
from importlib import metadata, util
from pathlib import Path

from packaging.requirements import Requirement

from sae_utils.errors import InputError

SPARSIFY = "eai-sparsify>=1.3.2,<1.4"
"""Versions whose trainer has the parts that are replaced and overridden here, though nothing promises them.

1.3.1 is the first that trains several seeds of a layer in one pass, and 1.3.2 the first that is told the variance that
a part's error is divided by (`total_variance`), on which `--micro_acc_steps` and several processes rest. What 1.3.3
changed, the loss of dead latents, is not used here.
"""


def check_sparsify() -> None:
    """Refuse to start with the wrong `sparsify`, with a version that this was not written for, or with none.

    Raises:
        InputError: If `eai-sparsify` is missing or of another version, or the unrelated package `sparsify` is installed
            (on its own, or beside it: both write to one folder, so neither is whole).
    """
    if _version("sparsify") is not None:
        raise InputError(
            "the installed package `sparsify` is Neural Magic's, not EleutherAI's, and has the same import name; run: "
            f"pip uninstall -y sparsify eai-sparsify && pip install '{SPARSIFY}'"
        )
    found = _version("eai-sparsify")
    if found is None:
        raise InputError(f"EleutherAI's sparsify is not installed; run: pip install '{SPARSIFY}' (not `sparsify`)")
    if not Requirement(SPARSIFY).specifier.contains(found, prereleases=True):
        raise InputError(
            f"eai-sparsify {found} is installed, and this project, which leans on its insides, needs {SPARSIFY}; run: "
            f"pip install '{SPARSIFY}'"
        )


def check_compiler() -> None:
    """Refuse to start on a GPU where Triton, in which sparsify's decoder is written, cannot compile.

    Nothing is needed where sparsify does without Triton.

    Raises:
        InputError: If there is no C compiler, or Python's headers are not there.

    Source: `_build` in triton/runtime/build.py; it looks for the same compilers and headers.
    """
    if os.environ.get("SPARSIFY_DISABLE_TRITON") == "1" or util.find_spec("triton") is None:
        return
    missing = [each for each in (_missing_compiler(), _missing_headers()) if each]
    if missing:
        raise InputError(
            f"on a GPU, sparsify's decoder is compiled by Triton, which needs a C compiler and Python's headers; here "
            f"{' and '.join(missing)}; run: conda install -c conda-forge c-compiler (conda; then activate again), or "
            f"apt install gcc python3-dev (Debian), or set SPARSIFY_DISABLE_TRITON=1 (slower)"
        )


def _missing_compiler() -> str | None:
    """What is wrong with the C compiler, if anything is."""
    chosen = os.environ.get("CC")
    if chosen is None:
        return None if shutil.which("gcc") or shutil.which("clang") else "neither gcc nor clang is on PATH"
    return None if shutil.which(chosen) else f"the compiler CC={chosen} is not there"


def _missing_headers() -> str | None:
    """Where Python's headers should be, if they are not."""
    scheme = sysconfig.get_default_scheme()
    # Debian's scheme for packages installed by hand has another folder than its headers.
    folder = sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]
    searched = [folder]  # and where compilers look by themselves
    for variable in ("CPATH", "C_INCLUDE_PATH"):
        searched += filter(None, os.environ.get(variable, "").split(os.pathsep))
    return None if any(Path(each, "Python.h").exists() for each in searched) else f"{folder} has no Python.h"


def _version(package: str) -> str | None:
    """Installed version of a distribution; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
