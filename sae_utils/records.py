"""What stands in the records beside every output: settings that must not change, versions, the commit."""

import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sae_utils.errors import InputError

RECORDED_PACKAGES = ("torch", "transformers", "datasets", "eai-sparsify", "numpy", "safetensors", "wandb")

Place = tuple[str, str, int]
"""Target, source and layer of SAEs."""

LATER_SETTINGS = {"hookpoint": "residual"}
"""Settings that records of earlier versions lack, with what these did."""

SIDE_BY_SIDE = {
    "hookpoint": "hook",
    "k": "k",
    "num_latents": "latents",
    "optimizer": "optimizer",
    "lr": "lr",
    "exclude": "exclude",
    "batch_size": "batch",
    "grad_acc_steps": "acc",
    "n_train_tokens": "tokens",
}
"""Settings that may differ, with their names in folders' names."""


def differing_settings(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One phrase for each setting whose value differs, with both values; empty if all agree.

    >>> differing_settings({"k": 32, "lr": None}, {"k": 64, "lr": None})
    ['k was 32 and is now 64']
    """
    before, now = LATER_SETTINGS | before, LATER_SETTINGS | now
    names = list(dict.fromkeys([*before, *now]))
    return [
        f"{name} was {before.get(name)!r} and is now {now.get(name)!r}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def check_same_settings(before: dict[str, Any], now: dict[str, Any], *, where: Path, remedy: str) -> None:
    """Refuse to mix two runs in one folder.

    Raises:
        InputError: If a setting differs; the message has both values, the folder, and `remedy`.
    """
    if different := differing_settings(before, now):
        raise InputError(f"{where} was made with other settings: {'; '.join(different)}; {remedy}")


def variant_name(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What sets settings apart from others; None if they cannot stand side by side, empty if nothing does.

    >>> variant_name({"k": 32, "lr": None, "ctx_len": 64}, {"k": 64, "lr": 1e-3, "ctx_len": 64})
    'k_64_lr_0.001'
    >>> variant_name({"k": 32, "ctx_len": 64}, {"k": 64, "ctx_len": 128}) is None
    True
    """
    before, now = LATER_SETTINGS | before, LATER_SETTINGS | now
    differing = {name for name in [*before, *now] if before.get(name) != now.get(name)} - {"layers"}
    if "exclude" in differing:
        differing -= {"excluded_ids"}
    if differing - set(SIDE_BY_SIDE):
        return None
    return "_".join(f"{short}_{_spelled(now[name])}" for name, short in SIDE_BY_SIDE.items() if name in differing)


def name_without(source: str, setting: str) -> str:
    """The name of a source without one of the settings that set it apart.

    >>> name_without("prose_k_64_tokens_1000000", "tokens"), name_without("prose_k_64", "k"), name_without("prose", "k")
    ('prose_k_64', 'prose', 'prose')
    """
    return re.sub(rf"_{setting}_\d+(?=_|$)", "", source)


def largest_budgets(saes: Iterable[dict[str, Any]]) -> set[Place]:
    """Target, source and layer of the SAEs that were trained longest, of those that differ in nothing else.

    Args:
        saes: Records; what differs is known by the names of their sources.
    """
    most: dict[Place, tuple[int, str]] = {}
    for sae in saes:
        line = sae["target"], name_without(sae["source"], "tokens"), sae["layer"]
        most[line] = max(most.get(line, (0, "")), (sae.get("n_train_tokens") or 0, sae["source"]))
    return {(target, source, layer) for (target, _, layer), (_, source) in most.items()}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape the numbers; a package that is missing is left out."""
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of this project's checkout, with `+changes` when files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:  # a repository without a commit, or one that belongs to another user
        return None
    return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command, or None if it failed."""
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _spelled(value: Any) -> str:
    """A value as a part of a folder's name.

    >>> _spelled(["first", "norm:1.5"]), _spelled([]), _spelled(None), _spelled(0.005)
    ('first_norm_1.5', 'nothing', 'auto', '0.005')
    """
    if isinstance(value, list | tuple):
        return "_".join(each.replace(":", "_") for each in value) or "nothing"
    if value is None:
        return "auto"
    return f"{value:g}" if isinstance(value, float) else str(value)
