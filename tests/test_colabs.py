"""The notebooks: each runs from top to bottom at smoke sizes, shows pictures, and says what its pair says."""

import re
from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest

COLABS = Path(__file__).parents[1] / "colabs"
NAMES = sorted(path.stem for path in COLABS.glob("*.ipynb"))
PICTURES = ("image/png", "image/gif")
MOST_BYTES = 300_000  # of a notebook with its outputs, so that it opens quickly and differences stay small


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(COLABS / f"{name}.ipynb", as_version=4)


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


@pytest.fixture
def smoke(tmp_path, monkeypatch, atari_tiny_dir):
    """What a notebook finds in its environment."""
    monkeypatch.setenv("SSL_JAX_PRESET", "smoke")
    monkeypatch.setenv("SSL_JAX_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("TFDS_DATA_DIR", atari_tiny_dir)
    monkeypatch.setenv("PYTHONPATH", str(COLABS.parent))
    monkeypatch.setenv("XLA_FLAGS", "")  # one device: four simulated ones only take turns
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiling is most of their time
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return tmp_path


def test_there_are_pairs():
    assert len(NAMES) == 3
    assert sorted(path.stem for path in COLABS.glob("*.py")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_says_what_its_text_says(name):
    """Mended by `jupytext --sync colabs/NAME.py`."""
    notebook, text = read(name), jupytext.read(COLABS / f"{name}.py")
    assert cells(notebook) == cells(text)
    assert notebook.metadata.jupytext.formats == "ipynb,py:percent"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_small_and_tells_nothing_of_a_machine(name):
    text = (COLABS / f"{name}.ipynb").read_text()
    assert len(text) <= MOST_BYTES
    assert not re.findall(r"/(?:home|root|tmp|work|Users|content)/[\w./-]*", text)
    assert all(output.output_type != "error" for output in outputs(read(name)))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, smoke):
    notebook = read(name)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(smoke)}}
    ).execute()
    shown = [output.data for output in outputs(notebook) if output.output_type == "display_data"]
    assert sum(any(kind in data for kind in PICTURES) for data in shown) >= 3
    assert list((smoke / "runs").glob("*/report.html"))
    assert not [path for path in smoke.iterdir() if path.name not in ("runs", "ipython")]
