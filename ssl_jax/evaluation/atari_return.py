"""What an agent scores: the raw return of full episodes, with its interval, and the figures beside it."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

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
RESAMPLES = 10_000  # of the bootstrap: the interval's ends then hardly depend on its seed


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


def summarize(returns: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Describes scores.

    Args:
      returns: float [E], E >= 1.
      seed: of the bootstrap.

    Returns:
      "return_mean"; "return_low" and "return_high", the 95 % percentile bootstrap interval of the mean
      (Efron and Tibshirani 1993, Chapter 13): how far it may be off because only E episodes were played,
      not how far another training run would be; "return_std" (of these episodes, divisor E),
      "return_median", "return_min", "return_max" and "episodes".
    """
    returns = np.asarray(returns, np.float64)
    draws = np.random.default_rng(seed).integers(len(returns), size=(RESAMPLES, len(returns)))
    low, high = np.percentile(returns[draws].mean(1), (2.5, 97.5))
    return {
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_low": float(low),
        "return_high": float(high),
        "return_median": float(np.median(returns)),
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        "episodes": len(returns),
    }


def seed_interval(returns: np.ndarray) -> dict[str, float]:
    """How far another training would be off: returns [S, episodes] -> mean, IQM and interval over seeds.

    Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice", NeurIPS 2021:
    95 % percentile bootstrap over the seeds' mean scores.
    """
    # Here, for they take seconds to import.
    from rliable import library as rliable
    from rliable import metrics as rliable_metrics

    scores = {"agent": returns.mean(1)[:, None]}  # [seeds, games]
    estimate = lambda x: np.array([rliable_metrics.aggregate_mean(x), rliable_metrics.aggregate_iqm(x)])
    points, intervals = rliable.get_interval_estimates(scores, estimate, reps=2000)
    (mean, iqm), (low, high) = points["agent"], intervals["agent"]
    return {
        "mean": float(mean),
        "interval_low": float(low[0]),
        "interval_high": float(high[0]),
        "iqm": float(iqm),
        "iqm_low": float(low[1]),
        "iqm_high": float(high[1]),
    }
