"""Where things stand in the package, and who may know whom."""

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


def test_imports_go_one_way():
    """Scripts import the package, the package imports libraries; no cycle among its modules."""
    uses = {}
    for path in (ROOT / "sae_utils").rglob("*.py"):
        text = path.read_text()
        assert "import generate_datasets" not in text and "import train_sae" not in text
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        uses[module] = set(re.findall(r"from (sae_utils[\w.]*) import", text))
        uses[module] |= {f"{a}.{b}" for a, b in re.findall(r"from (sae_utils[\w.]*) import (\w+)$", text, flags=re.M)}
    while leaves := [name for name, used in uses.items() if not used & uses.keys()]:
        for name in leaves:
            del uses[name]
    assert not uses, f"modules import each other in a circle: {uses}"
