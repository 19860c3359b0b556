"""Installs ssl_jax: `pip install -e .`, or `pip install -e ".[test]"` with what the tests need."""

from setuptools import find_packages, setup

setup(
    name="ssl_jax",
    version="0.1.0",
    description="Self-supervision by shuffling, with learned shuffles, in JAX.",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["ssl_jax", "ssl_jax.*"]),
    package_data={"ssl_jax.data": ["atariari_ram.json"]},
    install_requires=[
        "absl-py",
        "array_record",
        "av>=18",
        "dm-pix",
        "envpool>=1.2",
        "flax>=0.12",
        "grain>=0.2.18",
        "importlib_resources",  # tensorflow-datasets needs it to list its data sources
        "jax>=0.10,<0.13",
        "matplotlib",
        "ml-collections",
        "numpy",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pillow",
        "rich",
        "safetensors>=0.8",
        "scikit-learn",
        "scipy",
        "tensorboardX",
        "tensorflow-datasets>=4.9.10",
    ],
    extras_require={
        "cuda": ["jax[cuda12]"],  # NVIDIA GPUs
        "tpu": ["jax[tpu]"],
        "faces": ["opencv-python-headless<5"],  # config.data.crop=face of configs/deepfake.py
        "hdf5": ["h5py"],  # weights that Caffe wrote
        "notebooks": ["ipykernel", "jupytext", "pandas"],  # colabs/
        "slurm": ["submitit>=1.5"],  # launch/slurm.py
        "test": [
            "chex",
            "cloudpickle",
            "h5py",
            "hypothesis",
            "import-linter",
            "ipykernel",  # this, and down to pandas, for the notebooks in colabs/
            "ipython",
            "jupytext",
            "nbclient",
            "nbformat",
            "ml-dtypes",
            "opencv-python-headless<5",
            "pandas",
            "pytest",
            "pytest-xdist",
            "pyyaml",
            "ruff",
        ],
        "test-parity": ["torch==2.13.*"],  # our networks against those of PyTorch
    },
)
