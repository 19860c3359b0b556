"""What an agent scores: the raw return of full episodes, with its interval, and the figures beside it."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from ssl_jax import statistics
from ssl_jax.atari.environments import Environments
from ssl_jax.runtime import watching

# Mean scores over 100 episodes as the paper reports them (Agarwal, Sinha and Ayush, "Is self-supervision
# helpful? Exploring self-supervision in reinforcement learning and classification", Table 2). It does not
# state its protocol: the figures give a scale, no more.
REFERENCE = {
    "Pong": {
        "random": -21.0,
        "human": -3.0,
        "world_record": 21.0,
        "dqn": 20.0,
        "rotation": -20.1,
        "sequence": 18.2,
    },
    "Breakout": {
        "random": 1.25,
        "human": 30.5,
        "world_record": 864.0,
        "dqn": 9.9,
        "rotation": 7.6,
        "sequence": 14.9,
    },
}


class Games(NamedTuple):
    """Full episodes; those of the first environment first, in the order of play.

    Attributes:
      returns: float64 [E], raw score.
      lengths: int [E], agent steps.
      video: uint8 [F, height, width], grey, one frame an agent step: the beginning of the first
        environment's first episode. None if none was asked for.
    """

    returns: np.ndarray
    lengths: np.ndarray
    video: np.ndarray | None


def play(
    environments: Environments,
    act: Callable[[jax.Array, np.ndarray], jax.Array],
    episodes: int,
    seed_key: jax.Array,
    max_video_frames: int = 0,
) -> Games:
    """Plays full episodes in environments side by side, from a reset on.

    Each environment plays a share that is fixed beforehand. Were the first episodes to finish taken
    instead, short ones, which are those of bad play in one game and of good play in another, would count
    too often.

    Args:
      environments: N games; reset here, and left where the last episode ended.
      act: (key, s_t uint8 [N, height, width, stack]) -> actions int [N].
      episodes: E >= 1; environment i plays one more than another if i < E mod N.
      seed_key: step t of the play acts with `fold_in(seed_key, t)`.
      max_video_frames: of the video; 0: there is none.
    """
    num_envs = environments.num_envs
    share = episodes // num_envs + (np.arange(num_envs) < episodes % num_envs)
    finished = [[] for _ in range(num_envs)]  # (return, length) of each episode
    step = environments.reset()
    video = [step.frame[0]]
    for t in itertools.count():
        watching.at_step(t)
        actions = act(jax.random.fold_in(seed_key, t), step.s_t)
        step = environments.step(np.asarray(actions))
        if not finished[0] and len(video) < max_video_frames:
            video.append(step.frame[0])
        for i in np.flatnonzero(step.last):
            if len(finished[i]) < share[i]:
                finished[i].append((step.episode_return[i], step.episode_length[i]))
        if sum(map(len, finished)) == episodes:
            break
    returns, lengths = zip(*itertools.chain(*finished), strict=True)
    shown = np.stack(video) if max_video_frames else None
    return Games(np.array(returns, np.float64), np.array(lengths), shown)


def summarize(returns: np.ndarray) -> dict[str, float | int | str]:
    """Describes the scores of one agent, or of several that were trained with different seeds.

    Args:
      returns: float [S, E], of E >= 1 episodes of each of S >= 1 agents.

    Returns:
      "return_mean"; "return_low" and "return_high", its 95 % interval; "interval_over", what that is over:
      "episodes" of one agent, by the percentile bootstrap: how far the mean may be off because only so many
      were played, not how far another training run would be; or "seeds", by Student's t over the means of
      the agents. "return_std" (divisor S E), "return_median", "return_min" and "return_max" of all episodes;
      "episodes" of an agent and "seeds", their numbers; of several agents also "return_iqm", the
      interquartile mean of their means.
    """
    returns = np.asarray(returns, np.float64)
    seeds, episodes = returns.shape
    if seeds > 1:
        over = statistics.t_interval(returns.mean(1))
        interval = {"return_low": over["low"], "return_high": over["high"], "interval_over": "seeds"}
        interval["return_iqm"] = statistics.interquartile_mean(returns.mean(1))
    else:
        low, high = statistics.bootstrap_interval(returns[0])
        interval = {"return_low": low, "return_high": high, "interval_over": "episodes"}
    return {
        "return_mean": float(returns.mean()),
        **interval,
        "return_std": float(returns.std()),
        "return_median": float(np.median(returns)),
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        "episodes": episodes,
        "seeds": seeds,
    }
