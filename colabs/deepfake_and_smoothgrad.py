# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: -all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which videos are manipulated, and what does the network look at?
#
# The classification half of Agarwal, Sinha and Ayush ("Is self-supervision helpful?"): a network sees one
# frame of a video and says whether the video is REAL or FAKE. Two questions come with it. Does it recognise
# manipulations, or only videos that it has seen before? And which pixels does its answer hang on?
#
# The paper's videos (DFDC) are large and cannot be redistributed. **So this notebook uses a stand-in
# without any deepfakes**, which the package makes of Atari frames: a FAKE clip has a region that is blended
# in from elsewhere, warped and matched in colour, and a REAL clip a region that is blended in from its own
# frame, so that soft edges alone tell nothing. Its numbers say nothing about DFDC. With the real videos:
# `configs/deepfake.py:paper` and `--config.data.path=DFDC`.

# %%
import importlib.util

from IPython import get_ipython

if importlib.util.find_spec("ssl_jax") is None:  # on Colab: say here where your copy of the repository is
    repository = "https://github.com/OWNER/ssl_jax"
    get_ipython().system(f"git clone --quiet {repository} ssl_jax")
    get_ipython().run_line_magic("cd", "-q ssl_jax")
    get_ipython().run_line_magic("pip", "install --quiet -e .[notebooks]")

# %%
# %matplotlib inline
import os
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import PIL.Image
from IPython.display import display
from IPython.utils.capture import capture_output

import ssl_jax
from ssl_jax.data import dfdc, pipeline
from ssl_jax.experiments import deepfake
from ssl_jax.report import figures, page
from ssl_jax.runtime import config as config_lib

# "default" trains for some ten minutes on a laptop; "smoke" takes seconds, and learns nothing.
PRESET = os.environ.get("SSL_JAX_PRESET", "default")
RUNS = Path(os.environ.get("SSL_JAX_RUNS", "runs/colabs"))

os.chdir(Path(ssl_jax.__file__).parents[1])
configs = {
    split: config_lib.load(f"configs/deepfake.py:{PRESET},split={split}") for split in ("random", "hard")
}
setup = deepfake.setup_from_config(configs["hard"])

# %% [markdown]
# ## What goes in
#
# On the left a frame of a REAL video, on the right the same frame of the FAKE one that was made of it. Of
# each first the frame as it is stored, and then what the network sees: the middle in tests, and a random
# part of it in training.

# %%
with capture_output():  # makes the videos if this machine does not have them yet, and says where
    frames = deepfake.open_data(setup).contents
label, recording = frames.values["label"], frames.values["original"]
videos = np.lexsort((label, recording))[:4]  # two recordings, of each the REAL one first
rows = [int(np.flatnonzero(frames.rows[:, 0] == video)[0]) for video in videos]
size = (setup.data.size, setup.data.size)
images = np.stack([pipeline.decode_image(frames[row]["image"], size, (1, 1)) for row in rows])
views = [deepfake.see(setup, images), deepfake.see(setup, images, jax.random.key(0))]
display(figures.views(images, np.stack(views, axis=1), [dfdc.LABELS[label[video]] for video in videos]))

# %% [markdown]
# ## Train, twice
#
# Once with frames divided at *random* into those to learn from and those to be tested on, and once by video
# (*hard*). A random division leaks: a test frame has neighbours in training that look nearly the same, and
# one that remembers those needs to recognise nothing. Even the hard division leaves the original of a FAKE
# on the other side; `split=grouped` does not.
#
# What is tested is the checkpoint that did best on validation frames. A run that learned nothing says so.
# The stop button saves, and the cell goes on from there when it is run again.

# %%
results = {split: deepfake.run(config, RUNS / f"deepfake-{split}") for split, config in configs.items()}
runs = {split: page.read(RUNS / f"deepfake-{split}") for split in configs}

# %% [markdown]
# ## What the random split hides
#
# AUC of validation frames, and scores of test frames and of test videos (means over their frames). Chance
# is an AUC of 0.5, and *majority* the accuracy of always giving the more frequent answer. What the random
# split is better by is leakage, give or take what one run of each says. An AUC *below* one half, early on
# the hard split, is memory as well: of a picture that was learned with one label, and is asked about where
# its twin has the other.

# %%
auc = {split: run.series("val/auc") for split, run in runs.items()}
display(figures.curves(auc, ylabel="AUC of validation frames", reference=("chance", 0.5)))
measures = ("frame/accuracy", "frame/majority", "frame/auc", "video/accuracy", "video/auc")
scores = {split: {name: of["final"][f"test/{name}"] for name in measures} for split, of in results.items()}
display(pd.DataFrame(scores).round(3))
display(pd.DataFrame({split: of["split"]["leaks"]["train and test"] for split, of in results.items()}))

# %% [markdown]
# ## What it looks at
#
# A gradient says how much the answer would change if a pixel did, and is mostly noise. SmoothGrad ([Smilkov
# et al. 2017](https://arxiv.org/abs/1706.03825)) adds noise to the picture, again and again, and takes the
# *mean* of the gradients; the paper shows the mean of their *squares*. VarGrad is their *variance*;
# *integrated* gradients go all the way from a grey picture to this one.

# %%
maps = PIL.Image.open(runs["hard"].figure_path("attributions"))
display(maps.convert("RGB").reduce(3).quantize(32))

# %% [markdown]
# ## Can such maps be believed?
#
# A map that looks the same for a network with random parameters shows the picture, and nothing that was
# learned ([Adebayo et al. 2018](https://arxiv.org/abs/1810.03292)). So here is the rank correlation of each
# kind of map with that of the untrained network: near 0 is good, near 1 is an edge detector.

# %%
correlations = {split: of["attributions"]["parameter_randomisation"] for split, of in results.items()}
display(pd.DataFrame(correlations).round(2))

# %% [markdown]
# To begin with weights that solved puzzles instead of random ones, make the run of the first notebook and
# give it to this one: `configs/deepfake.py:init=checkpoint,model=compact` with `--config.init.path=RUN`.
# The paper's table, networks by where their weights come from, is `python -m launch.sweep
# --config=configs/deepfake_table.py`.
