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
# # An agent that plays Pong, and puts frames in order beside it
#
# A Q-network learns from rewards, and rewards are rare: in Pong, one point in hundreds of frames. Every
# frame could teach something about the game, whether there was a reward or not. So Agarwal, Sinha and Ayush
# ("Is self-supervision helpful?") give the network a second task, on the same trunk and with answers that
# cost nothing: some frames of the game are shuffled, and it must say in which order they are shown
# (*sequence prediction*).
#
# The agent is a *dueling* double DQN: one stream of the network says how good the situation is, V(s),
# another how much better each action is than the others, A(s, a), and together they are Q(s, a). Does the
# second task help it? That is an open question, and the pictures below are what to look at.

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
from IPython.display import Image, display

import ssl_jax
from ssl_jax.atari.environments import Environments
from ssl_jax.experiments import dueling_dqn
from ssl_jax.report import figures, page, playing
from ssl_jax.runtime import config as config_lib

# "default" plays for some minutes; "smoke" takes seconds, and learns nothing.
PRESET = os.environ.get("SSL_JAX_PRESET", "default")
WORKDIR = Path(os.environ.get("SSL_JAX_RUNS", "runs/colabs"), "dueling_dqn")
# Only the beginning of a training: the whole preset plays 400,000 steps, for an hour or two on a core.
BEGINNING = {
    "train.agent_steps": 12_000,
    "exploration.random_steps": 1_000,
    "exploration.decay_steps": 8_000,
    "train.log_every": 200,
    "train.evaluate_every": 6_000,
    "train.checkpoint_every": 6_000,
    "protocol.evaluation_episodes": 20,
    "evaluation.video_frames": 150,
}

os.chdir(Path(ssl_jax.__file__).parents[1])
overrides = BEGINNING if PRESET == "default" else {}
config = config_lib.load(f"configs/dueling_dqn.py:{PRESET},aux=sequence", overrides)
setup = dueling_dqn.setup_from_config(config)

# %% [markdown]
# ## What goes in
#
# The network sees a *stack* of the last four frames, grey and small; from one frame alone nobody can tell
# where the ball flies. *Motion* is drawn for us: what changed within the stack is bright. On the right is
# what the second task makes of the stack. Its class is the number of the order, one of 4! = 24. Where
# nothing moves there is no answer: such stacks bound the accuracy that can be reached.

# %%
games = Environments(setup.protocol, num_envs=3, seed=0)
time_step = games.reset()
for step in range(60):
    time_step = games.step(np.full(3, step // 10 % games.num_actions))
games.close()
inputs, labels = setup.task.function(jax.random.key(0), time_step.s_t)
display(figures.stacks(time_step.s_t, np.asarray(inputs), np.asarray(labels)))

# %% [markdown]
# ## Play and learn
#
# What moves is small and pale beside what stands still, a few dozen of 2,704 pixels, and shown as it is the
# order of the frames is a needle that gradient descent does not find: a run of 30,000 steps stayed at
# chance. So the network shows itself what moves eight times as strongly, `network.motion_gain=8`, a change
# of coordinates that loses nothing. Q-learning gains by it as well.
#
# Updates of Q-learning and of the task take turns, as in the paper; `auxiliary.schedule=joint` adds the two
# losses instead. The stop button saves, and the cell goes on from there when it is run again.

# %%
results = dueling_dqn.run(config, WORKDIR)
run = page.read(WORKDIR)

# %% [markdown]
# ## Does the task pull where Q-learning pulls?
#
# First whether the task is learned at all. Then what its gradient does to the trunk that both share: a
# *cosine* above zero means that the task pulls where Q-learning goes too, below zero that it pulls against
# it. And the *norms* say how hard each pulls: a task whose gradient is far larger decides what the trunk
# learns.

# %%
steps = {"xlabel": figures.AGENT_STEPS}
chance = ("chance", 1 / setup.task.num_classes)
accuracy = {"accuracy": run.series("auxiliary/accuracy")}
display(figures.curves(accuracy, ylabel="orders named", percent=True, reference=chance, **steps))
cosine = {"cosine": run.series("gradient/cosine")}
display(figures.curves(cosine, ylabel="cosine of the gradients", reference=("zero", 0.0), **steps))
norms = {"Q-learning": "gradient/q_norm", "sequence": "gradient/auxiliary_norm"}
norms = {label: run.series(name) for label, name in norms.items()}
display(figures.curves(norms, ylabel="gradient norm on the trunk", log=True, **steps))

# %% [markdown]
# ## The agent
#
# Its scores are in the table above, beside those of a random agent and those of the paper, which does not
# state its protocol (frame skip, sticky actions, frames of training): they give a scale, no more. After so
# few steps nothing much should be expected. Here is a game that it played after training, as it sees it.

# %%
display(Image(filename=str(run.workdir / "figures" / "episode.gif")))

# %% [markdown]
# ## What a whole training looks like
#
# The repository keeps some of 400,000 steps, which take an hour or two on a core: from the level of a random
# agent to winning, without a second task and with one. One seed of each: a difference between two such curves
# may be luck.
#
# ![The agent without a second task at the end, playing](../results/dueling_dqn/pong_none/episode.gif)

# %%
whole = {task: page.read(f"results/dueling_dqn/pong_{task}") for task in ("none", "sequence")}
scores = {task: run.series("eval/return_mean") for task, run in whole.items()}
bands = {task: playing.band(run) for task, run in whole.items()}
display(figures.returns(scores, bands=bands, references=playing.references(whole["none"])))

# %% [markdown]
# To answer the question, run `configs/dueling_dqn.py:aux=sequence` and `aux=none` whole, over several seeds
# (`--config.num_seeds=5` trains as many agents in one program), and set them beside each other: `python -m
# ssl_jax.report.comparison --runs=A,B`. Other tasks are `rotation`, `arrow_of_time` and `jigsaw`.
