"""What is imported is declared in setup.py, and what is declared is imported."""

import ast
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Declared, and imported nowhere here: what each is for.
NOT_IMPORTED = {
    "array-record": "tensorflow-datasets reads and writes its files with it",
    "importlib-resources": "tensorflow-datasets lists its data sources with it",
    "import-linter": "a command",
    "ipykernel": "runs the notebooks",
    "pandas": "for the notebooks",
    "pytest-xdist": "a plugin of pytest",
    "ruff": "a command",
}


def normalized(distribution: str) -> str:
    """A distribution's name as package indexes compare it, without version and extras."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", distribution)[0]).lower()


def declared() -> dict[str, set[str]]:
    """Names in setup.py: "install_requires", and of each extra."""
    (call,) = (
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    lists = {"install_requires": given["install_requires"]}
    extras = given["extras_require"]
    lists |= {key.value: value for key, value in zip(extras.keys, extras.values, strict=True)}
    return {name: set(map(normalized, ast.literal_eval(items))) for name, items in lists.items()}


def imported(*directories: str) -> dict[str, set[str]]:
    """Distribution -> files in these directories that import a module of it."""
    distributions = importlib.metadata.packages_distributions()
    own = {path.stem for path in (ROOT / "tests").glob("*.py")} | {path.name for path in ROOT.iterdir()}
    found: dict[str, set[str]] = {}
    for directory in directories:
        for path in (ROOT / directory).rglob("*.py"):
            for module in modules(ast.parse(path.read_text())) - own - sys.stdlib_module_names:
                # What is not installed, an extra, is called as its module is.
                for name in distributions.get(module, [module]):
                    found.setdefault(normalized(name), set()).add(str(path.relative_to(ROOT)))
    return found


def modules(tree: ast.AST) -> set[str]:
    """Top-level names of the modules that a file imports, also those that a test may do without."""

    def names() -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "importorskip":
                yield node.args[0].value

    return {name.partition(".")[0] for name in names()}


@pytest.mark.parametrize(
    ("directories", "optional"),
    [
        (("ssl_jax", "launch", "configs"), ("faces", "hdf5", "slurm")),
        (
            ("ssl_jax", "launch", "configs", "colabs", "tests"),
            ("faces", "hdf5", "slurm", "test", "test-parity"),
        ),
    ],
    ids=["product", "everything"],
)
def test_what_is_imported_is_declared(directories, optional):
    lists = declared()
    known = lists["install_requires"].union(*(lists[name] for name in optional))
    undeclared = {name: files for name, files in imported(*directories).items() if name not in known}
    assert not undeclared


def test_what_is_declared_is_imported():
    lists = declared()
    product = imported("ssl_jax", "launch", "configs")
    everywhere = imported("ssl_jax", "launch", "configs", "colabs", "tests")
    assert lists["install_requires"] - product.keys() - NOT_IMPORTED.keys() == set()
    assert set().union(*lists.values()) - everywhere.keys() - NOT_IMPORTED.keys() == set()
    assert NOT_IMPORTED.keys() <= set().union(*lists.values())
