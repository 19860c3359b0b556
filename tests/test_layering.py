"""The floors of the house: who may import whom (the contracts are in pyproject.toml)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_import_goes_downwards():
    # The command lint-imports; its script may not be on the path of the tests.
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("module", ["runtime.config", "runtime.errors", "main"])
def test_starts_without_jax(module):
    program = f"import sys; import ssl_jax.{module}; sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0


def test_a_run_does_not_import_pytorch_which_stays_importable():
    pytest.importorskip("torch")
    program = (
        "import sys, ssl_jax.experiments.pretrain, ssl_jax.experiments.deepfake\n"
        "assert 'torch' not in sys.modules\n"
        "import torch"
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0
