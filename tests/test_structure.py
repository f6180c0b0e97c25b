"""Where things stand in the package, and who may know whom."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def packages() -> list[Path]:
    """The package and its wings."""
    return [path.parent for path in sorted((ROOT / "sae_utils").rglob("__init__.py"))]


@pytest.mark.parametrize("package", packages(), ids=lambda path: path.name)
def test_a_package_lists_its_files(package):
    """In the order in which they are read, and each once; a wing's own name is in none of them."""
    listed = re.findall(r"^    (\w+) ", (package / "__init__.py").read_text(), flags=re.MULTILINE)
    wings = [path.parent.name for path in package.glob("*/__init__.py")]
    files = [path.stem for path in package.glob("*.py") if path.stem != "__init__"]
    assert sorted(listed) == sorted(wings + files)
    assert package.name not in files


def test_tests_mirror_the_wings():
    """Where the test of a file is need not be asked."""
    wings = {package.name for package in packages()} - {"sae_utils"}
    assert {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} - {"__pycache__"} == wings
    for wing in wings:
        for test in (ROOT / "tests" / wing).glob("test_*.py"):
            tested = test.stem.removeprefix("test_").removesuffix("_in_browser")
            assert (ROOT / "sae_utils" / wing / f"{tested}.py").exists(), test


MAY_KNOW = {
    "": set(),  # what several wings share
    "generation": {""},
    "sources": {""},
    "evaluation": {"", "sources"},
    "training": {"", "sources", "evaluation"},
    "comparison": {"", "sources", "evaluation"},
    "report": {"", "comparison.results"},
    "sharing": {""},
}
"""Whom the files of a wing may import, beside each other: wings, or single files of them."""


def wing_of(module: str) -> str:
    """Name of the folder that a module lies in; empty for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else ""


def imports_of(path: Path) -> set[str]:
    """Modules of the package, or of the scripts, that a file imports anywhere in it."""
    modules = {module_name(each) for each in (ROOT / "sae_utils").rglob("*.py")} | {"generate_datasets", "train_sae"}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if names <= modules else {node.module}
    return found & modules


def module_name(path: Path) -> str:
    """As it is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_imports_go_one_way():
    """From the report down to what all share: whoever reads a wing need not know those above it, nor beside it."""
    wrong = []
    for path in (ROOT / "sae_utils").rglob("*.py"):
        wing = wing_of(module_name(path))
        allowed = MAY_KNOW[wing] | {wing}
        for module in imports_of(path):
            if not {wing_of(module), module.removeprefix("sae_utils.")} & allowed or not module.startswith("sae_utils"):
                wrong.append(f"{module_name(path)} imports {module}")
    assert wrong == []


def test_no_two_files_import_each_other():
    uses = {module_name(path): imports_of(path) for path in (ROOT / "sae_utils").rglob("*.py")}
    while leaves := [name for name, used in uses.items() if not used & uses.keys()]:
        for name in leaves:
            del uses[name]
    assert not uses, f"modules import each other in a circle: {uses}"


def test_flags_stop_at_the_scripts():
    """A function that takes all flags can use any of them, and nobody sees which; a wing gets settings."""
    takers = [path.name for path in (ROOT / "sae_utils").rglob("*.py") if "argparse" in path.read_text()]
    assert takers == ["command_line.py"]
