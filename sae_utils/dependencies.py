"""Is the installed `sparsify` EleutherAI's? Another project on the package index has the same import name."""

from importlib import metadata

from sae_utils.errors import InputError


def check_sparsify() -> None:
    """Refuse to start with the wrong `sparsify`, or with none.

    Raises:
        InputError: If `eai-sparsify` is missing, or the unrelated package `sparsify` is installed (on its own, or
            beside it: both write to one folder, so neither is whole).
    """
    has_other = _is_installed("sparsify")
    if has_other:
        raise InputError(
            "the installed package `sparsify` is Neural Magic's, not EleutherAI's, and has the same import name; run: "
            "pip uninstall -y sparsify eai-sparsify && pip install eai-sparsify"
        )
    if not _is_installed("eai-sparsify"):
        raise InputError("EleutherAI's sparsify is not installed; run: pip install eai-sparsify (not `sparsify`)")


def _is_installed(package: str) -> bool:
    """Whether a distribution of this name is installed."""
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True
