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
# # Jigsaw puzzles, and a policy that chooses them
#
# Cut a picture into nine tiles, shuffle them, and ask a network in which order they lie. Nobody has to
# label anything: whoever shuffled knows the answer. To give it, the network must learn what belongs where,
# and that is useful elsewhere.
#
# There are 9! = 362,880 orders. One trains with a set of a hundred or so, and usually draws from it at
# random. But some orders soon become easy and others stay hard, so Büchler, Brattoli and Ommer ([ECCV
# 2018](https://arxiv.org/abs/1807.11293)) let a second, small network choose: a *policy* that is shown what
# the first one can and cannot do yet, and that is rewarded when it gets better.
#
# This notebook does it on frames of eight Atari games, which the package renders by itself.

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
import jax.numpy as jnp
import pandas as pd
from IPython.display import display

import ssl_jax
from ssl_jax.data import pipeline
from ssl_jax.experiments import pretrain
from ssl_jax.pretext import jigsaw
from ssl_jax.report import figures, page
from ssl_jax.runtime import config as config_lib

# "default" trains for some minutes on a laptop; "smoke" takes seconds, and learns nothing.
PRESET = os.environ.get("SSL_JAX_PRESET", "default")
WORKDIR = Path(os.environ.get("SSL_JAX_RUNS", "runs/colabs"), "jigsaw")

os.chdir(Path(ssl_jax.__file__).parents[1])
config = config_lib.load(f"configs/jigsaw_rl.py:{PRESET}")
setup = pretrain.setup_from_config(config)
(task,) = setup.tasks

# %% [markdown]
# ## What goes in
#
# On the left a window of a frame, on the right the puzzle, which is all that the network sees. The numbers
# are where each tile came from, and the *class* to be named is the number of this order in the set. Two
# things would give the order away without any understanding, so they are taken away: lines that go on from
# one tile to the next, by gaps of random width between tiles; and brightness, by normalising each tile by
# itself.

# %%
data = pretrain.open_data(setup)  # renders the frames if this machine does not have them yet
options = pipeline.EvaluationOptions(batch_size=3, image_size=setup.data.image_size, limit=3)
batch = next(iter(pipeline.evaluation_batches(data.open("validation"), options)))
window_key, tiles_key = jax.random.split(jax.random.key(0))
labels = jnp.arange(3)

windows = jigsaw.window(window_key, jnp.asarray(batch["image"]), task.puzzle)
tiles = jigsaw.tiles(tiles_key, windows, task.puzzle, train=True)
puzzles = jigsaw.shuffle(tiles, jnp.asarray(task.orders)[labels])
display(figures.tiles(windows, puzzles, labels, task.orders, grid=task.puzzle.grid))

# %% [markdown]
# ## Train
#
# Every few steps the network is asked about *all* orders of the set, on pictures kept apart for that.
# Sorted by how well it does, the orders fall into ten groups, and the policy draws a group; then the next
# batches come from what it drew. The loss knows how likely each order was to be drawn: else it would pay to
# name those that come often, before the network has learned to see any.
#
# The stop button saves, and the cell goes on from there when it is run again.

# %%
results = pretrain.run(config, WORKDIR)
run = page.read(WORKDIR)

# %% [markdown]
# Chance is one over the number of orders. The *worst group* holds the tenth of the orders that is hardest
# at the time: there a good choice should show first.

# %%
accuracy = {
    "training": run.series("train/spatial/accuracy"),
    "validation": run.series("val/spatial/accuracy"),
    "worst group": run.series("val/spatial/worst_group_accuracy"),
}
chance = ("chance", results["final"]["val/spatial/chance"])
display(figures.curves(accuracy, ylabel="puzzles solved", percent=True, reference=chance))

# %% [markdown]
# ## What the policy chose
#
# First the share of the samples that went to each group, from the hardest (0) to the easiest: orange is
# more than a uniform draw would give, purple is less. Then what it had to go by: how well each single order
# is solved. A group is a rank, so its members change over time. Last the *entropy* of the policy, how far
# it is from drawing all orders alike. It learns from a reward, how far the error fell below the line
# through its last two values, which is small and noisy: who makes up his mind too early follows noise.

# %%
seen = run.choices("spatial")
display(figures.probability_heat_map(seen.steps, seen.group_probability))
display(figures.permutation_heat_map(seen.steps, seen.accuracy))
entropy = {"entropy": run.series("selection/spatial/entropy")}
uniform = ("uniform draw", float(jnp.log(task.num_classes)))
display(figures.curves(entropy, ylabel="entropy of the policy, nats", reference=uniform))

# %% [markdown]
# ## What the features know
#
# Solving puzzles is not the aim. Does the encoder know what goes on in a game? The console's memory has the
# answers, such as where the ball is and how many lives are left, so a linear classifier tries to read them
# from the frozen features (AtariARI, [Anand et al. 2019](https://arxiv.org/abs/1906.08226)). *Random* is
# the same encoder before training, *majority* always says the most frequent value. Below: in how many state
# variables the nearest frame of another episode agrees, with no classifier at all.

# %%
f1 = {name: scores["by_category"] for name, scores in results["probe"]["encoders"].items()}
display(figures.probe_bars(f1, xlabel="F1"))
display(pd.DataFrame(f1).round(3))
display(pd.DataFrame(results["retrieval"]).loc[["retrieval/state/top1", "retrieval/state/chance"]].round(3))

# %% [markdown]
# ## What next
#
# The whole report is `report.html` in the work directory. One run without an interval proves nothing about
# the policy: hold it against `configs/jigsaw_rl.py:policy=uniform` over several seeds, which `python -m
# launch.sweep --config=configs/ablation.py` does for all players. Any key can be changed here as on the
# command line: `config_lib.load("configs/jigsaw_rl.py", {"train.steps": 2000})`, in another work directory.
