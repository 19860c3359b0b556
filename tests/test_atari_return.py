"""Scores of full episodes: exact counting on scripted games, and the real emulator."""

import types

import jax
import numpy as np
import pytest

from ssl_jax.atari.environments import Environments, TimeStep
from ssl_jax.atari.protocol import Protocol
from ssl_jax.evaluation import atari_return
from ssl_jax.losses import epsilon_greedy

KEY = jax.random.key(0)


class Scripted:
    """Games whose lengths are known: environment i repeats episodes of `lengths[i]` agent steps, in turn.

    A step scores 100 i + (number of the episode); frames show the time since the reset.
    """

    def __init__(self, lengths):
        self.lengths = lengths
        self.num_envs = len(lengths)
        self.actions = []

    def reset(self):
        self.t = 0
        self.episode = np.full(self.num_envs, -1)
        self.length = np.zeros(self.num_envs, np.int32)
        self.score = np.zeros(self.num_envs, np.float32)
        self.last = np.ones(self.num_envs, bool)
        return self._advance()

    def step(self, actions):
        self.actions.append(np.asarray(actions))
        return self._advance()

    def _advance(self):
        first = self.last
        self.episode = self.episode + first
        self.length = np.where(first, 0, self.length + 1)
        reward = np.where(first, 0, 100 * np.arange(self.num_envs) + self.episode)
        self.score = np.where(first, 0, self.score + reward)
        ends = [cycle[e % len(cycle)] for cycle, e in zip(self.lengths, self.episode, strict=True)]
        self.last = self.length == ends
        frame = np.full((self.num_envs, 84, 84), self.t % 256, np.uint8)
        self.t += 1
        return TimeStep(
            frame=frame,
            s_t=np.tile(frame[..., None], (1, 1, 1, 4)),
            r_t=reward.astype(np.float32),
            discount_t=1 - self.last.astype(np.float32),
            first=first,
            last=self.last,
            lives=np.zeros(self.num_envs, np.int32),
            episode_return=self.score.astype(np.float32),
            episode_length=self.length.astype(np.int32),
        )


def idle(key, s_t):
    return np.zeros(len(s_t), np.int64)


def test_each_environment_plays_its_share_however_short_its_episodes():
    environments = Scripted([[3, 5], [50], [2]])
    games = atari_return.play(environments, idle, 8, KEY)
    # Shares of 3, 3 and 2. While the second plays, the others could have finished dozens.
    assert games.lengths.tolist() == [3, 5, 3, 50, 50, 50, 2, 2]
    assert games.returns.tolist() == [0, 5, 6, 5000, 5050, 5100, 400, 402]
    assert (games.returns.dtype, games.lengths.dtype) == (np.float64, np.int32)
    assert games.video is None
    assert len(environments.actions) == 50 * 3 + 2  # and not one step longer: two first steps between


def test_no_more_environments_play_than_episodes():
    games = atari_return.play(Scripted([[7], [4], [1], [1]]), idle, 2, KEY)
    assert games.lengths.tolist() == [7, 4]


def test_a_second_play_starts_from_a_reset():
    environments = Scripted([[4, 6], [5]])
    one = atari_return.play(environments, idle, 3, KEY)
    other = atari_return.play(environments, idle, 3, KEY)
    assert one.lengths.tolist() == other.lengths.tolist() == [4, 6, 5]


@pytest.mark.parametrize(("most", "frames"), [(4, 4), (6, 6), (7, 7), (100, 7)])
def test_the_video_is_the_beginning_of_the_first_episode(most, frames):
    games = atari_return.play(Scripted([[6], [9]]), idle, 4, KEY, max_video_frames=most)
    assert (games.video.shape, games.video.dtype) == ((frames, 84, 84), np.uint8)
    assert games.video[:, 0, 0].tolist() == list(range(frames))


def test_the_policy_sees_the_newest_stack_and_a_key_of_its_own():
    environments = Scripted([[5], [5]])
    seen = []

    def act(key, s_t):
        seen.append((int(s_t[0, 0, 0, -1]), jax.random.key_data(key).tolist()))
        return np.array([s_t[0, 0, 0, -1], 9])

    atari_return.play(environments, act, 2, KEY)
    keys = [jax.random.key_data(jax.random.fold_in(KEY, t)).tolist() for t in range(5)]
    assert seen == list(zip(range(5), keys, strict=True))
    assert [actions.tolist() for actions in environments.actions] == [[t, 9] for t in range(5)]


def random_agent(num_actions):
    q = np.zeros((3, num_actions), np.float32)
    return jax.jit(lambda key, s_t: epsilon_greedy(key, q, 1.0))


def test_episodes_of_the_real_emulator_to_their_cap():
    environments = Environments(Protocol(game="Pong", max_episode_frames=83), 3, seed=0)
    games = atari_return.play(environments, random_agent(6), 7, KEY, max_video_frames=10)
    environments.close()
    assert games.lengths.tolist() == [20] * 7
    assert games.video.shape == (10, 84, 84)
    assert (games.video[1:] != games.video[:-1]).any()


def test_full_games_of_the_real_emulator_are_in_raw_score():
    protocol = Protocol(game="MsPacman", max_episode_frames=1200)
    environments = Environments(protocol, 3, seed=0)
    rewards, firsts = [], []
    real_step = environments.step

    def step(actions):
        step = real_step(actions)
        rewards.append(step.r_t)
        firsts.append(step.first)
        return step

    spied = types.SimpleNamespace(num_envs=3, reset=environments.reset, step=step)
    games = atari_return.play(spied, random_agent(9), 4, KEY)
    again = atari_return.play(Environments(protocol, 3, seed=0), random_agent(9), 4, KEY)
    np.testing.assert_array_equal(games.returns, again.returns)  # the seeds are the games
    np.testing.assert_array_equal(games.lengths, again.lengths)
    assert games.returns.max() >= 100
    assert (games.lengths <= 300).all()
    end = games.lengths[0]
    assert firsts[end][0]  # the step after the first episode
    assert games.returns[0] == sum(reward[0] for reward in rewards[:end])


# --- Numbers


def test_summary_of_one_agent_by_hand():
    summary = atari_return.summarize(np.array([[1.0, 2.0, 3.0, 6.0]]))
    assert summary["return_mean"] == 3
    assert summary["return_median"] == 2.5
    assert summary["return_std"] == pytest.approx(np.sqrt(3.5))  # (4 + 1 + 0 + 9) / 4
    assert (summary["return_min"], summary["return_max"]) == (1, 6)
    assert (summary["interval_over"], summary["episodes"], summary["seeds"]) == ("episodes", 4, 1)
    assert 1 < summary["return_low"] < 3 < summary["return_high"] < 6
    assert set(summary) == {f"return_{n}" for n in ("mean", "std", "low", "high", "median", "min", "max")} | {
        "episodes", "seeds", "interval_over"}  # fmt: skip
    assert all(type(value) in (float, int, str) for value in summary.values())


def test_summary_of_several_agents_has_the_interval_over_their_means():
    """500 games of 5 agents are five independent numbers, not 500: their spread is what another agent has."""
    key = np.random.default_rng(0)
    of_agents = np.array([10.0, 12, 14, 16, 18])
    returns = of_agents[:, None] + key.normal(size=(5, 100))
    returns += of_agents[:, None] - returns.mean(1, keepdims=True)  # so that the means are exact
    summary = atari_return.summarize(returns)
    assert summary["return_mean"] == pytest.approx(14)
    half = 2.776445 * np.sqrt(10 / 5)  # t with 4 degrees of freedom; variance of the means 10
    assert (summary["return_low"], summary["return_high"]) == pytest.approx((14 - half, 14 + half), abs=1e-4)
    assert (summary["interval_over"], summary["episodes"], summary["seeds"]) == ("seeds", 100, 5)
    assert summary["return_iqm"] == pytest.approx(14)  # of 12, 14 and 16
    pooled = atari_return.summarize(returns.reshape(1, -1))
    assert pooled["return_high"] - pooled["return_low"] < half / 3
    assert summary == atari_return.summarize(returns)


def test_reference_scores_are_those_of_the_paper():
    pong, breakout = atari_return.REFERENCE["Pong"], atari_return.REFERENCE["Breakout"]
    assert list(pong) == list(breakout) == ["random", "human", "world_record", "dqn", "rotation", "sequence"]
    assert list(pong.values()) == [-21, -3, 21, 20, -20.1, 18.2]
    assert list(breakout.values()) == [1.25, 30.5, 864, 9.9, 7.6, 14.9]
