"""Whole runs of dueling DQN: what they leave and remember, and what stopping and killing do."""

import functools
import json
import random
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from ssl_jax.atari.environments import TimeStep
from ssl_jax.evaluation import atari_return
from ssl_jax.experiments import dueling_dqn
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import metrics as metrics_lib
from ssl_jax.runtime.checkpoints import Checkpoints, restore_raw
from ssl_jax.runtime.errors import InputError

CONFIG = f"{runs.ROOT / 'configs' / 'dueling_dqn.py'}:smoke"
# With four environments: 60 vector steps of 4 agent steps each.
STEPS = 240
FOUR = {"environments.num": 4}
# For runs in this process: everything small.
SMALL = {
    "protocol.frame_size": (36, 36),
    "network.hidden": 8,
    "train.batch_size": 4,
    "exploration.random_steps": 24,
}


start = functools.partial(runs.start, CONFIG, overrides=FOUR)
finish = functools.partial(runs.finish, CONFIG, overrides=FOUR)


def load(overrides):
    return config_lib.load(CONFIG, {key: str(value) for key, value in (FOUR | overrides).items()})


def run_here(workdir, **overrides):
    """A run in this process, on the four devices of the tests, of which it uses one."""
    return dueling_dqn.run(load(SMALL | overrides), workdir)


def saved(workdir, overrides=()):
    """All of the last checkpoint: agent step, state, and counts."""
    setup = dueling_dqn.setup_from_config(load(dict(overrides)))
    checkpoints = Checkpoints(workdir / "checkpoints")
    template = jax.eval_shape(functools.partial(dueling_dqn.create_state, setup), jax.random.PRNGKey(0))
    step, state, data = checkpoints.restore(template)
    checkpoints.close()
    return step, jax.tree.map(np.asarray, state), data


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The smoke preset as it is, from a first start to the report."""
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    output, _ = finish(workdir)
    assert str(workdir / "report.html") in output
    return workdir


@pytest.fixture(scope="module")
def killed(tmp_path_factory, uninterrupted):
    """The same run, killed before its first checkpoint and after it, and finished."""
    del uninterrupted  # its programs are in the cache by now
    workdir = tmp_path_factory.mktemp("runs") / "killed"
    for moment, after_checkpoint in ((40, False), (120, True)):
        process = start(workdir)
        runs.wait_until(process, lambda moment=moment: runs.progress(workdir) >= moment)
        if after_checkpoint:  # it is written in the background
            runs.wait_until(process, lambda: runs.saved_steps(workdir))
        time.sleep(0.02 * random.random())
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert bool(runs.saved_steps(workdir)) == after_checkpoint
        assert not (workdir / "results.json").exists()
    finish(workdir)
    return workdir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, uninterrupted):
    """The same run, told to stop, and finished: work directory, the step where, and what it said."""
    del uninterrupted
    workdir = tmp_path_factory.mktemp("runs") / "stopped"
    process = start(workdir)
    runs.wait_until(process, lambda: runs.progress(workdir) >= 120)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert not (workdir / "results.json").exists()
    (stopped_at,) = runs.saved_steps(workdir)
    finish(workdir)
    return workdir, stopped_at, errors


def test_smoke_fills_its_work_directory(uninterrupted):
    workdir = uninterrupted
    names = {path.name for path in workdir.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "checkpoints", "results.json", "report.html"}
    assert {"stacks.png", "episode.gif"} <= {path.name for path in (workdir / "figures").iterdir()}
    assert (workdir / "figures" / "stacks.png").read_bytes().startswith(b"\x89PNG")
    assert (workdir / "figures" / "episode.gif").read_bytes().startswith(b"GIF8")

    lines = metrics_lib.read(workdir / "metrics.jsonl")
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)
    by_name = lambda name: {line["step"]: line[name] for line in lines if name in line}
    assert list(by_name("train/epsilon")) == list(range(40, 241, 40))
    assert list(by_name("train/q_loss")) == list(range(80, 241, 40))  # after 64 random steps
    assert list(by_name("eval/return_mean")) == [120, 240]
    assert by_name("train/epsilon")[40] == 1
    assert by_name("train/epsilon")[120] == pytest.approx(1 - 0.99 * (120 - 64) / 64)

    results = json.loads((workdir / "results.json").read_text())
    assert f"--workdir={workdir}" in results["command"]
    assert results["protocol"] == json.loads((workdir / "config.json").read_text())
    assert results.keys() >= {"versions", "device", "seed", "wall_seconds", "seconds", "final"}
    scores = results["scores"]
    assert scores["protocol"]["game"] == "Pong"
    assert scores["protocol"]["frames_trained"] == 4 * STEPS
    assert scores["agents"].keys() == {"last", "best", "random"}
    for agent in scores["agents"].values():
        assert agent["episodes"] == 4
        assert np.shape(agent["returns"]) == (1, 4)
        assert agent["return_mean"] == pytest.approx(np.mean(agent["returns"]))
        assert -21 <= agent["return_min"] <= agent["return_max"] <= 21
    assert scores["agents"]["last"]["step"] == STEPS
    assert scores["agents"]["best"]["step"] in ([120], [240], 120, 240)
    assert results["final"]["eval/return_mean"] == scores["agents"]["last"]["return_mean"]
    assert {agent["interval_over"] for agent in scores["agents"].values()} == {"episodes"}
    assert "Pong" in (workdir / "report.html").read_text()


def test_training_changes_the_parameters_and_nothing_is_left_out(uninterrupted):
    step, state, data = saved(uninterrupted)
    assert step == STEPS
    assert (state.step, state.updates) == (60, 60 - 16)  # one update a vector step after 64 agent steps
    assert state.replay.position == 60
    setup = dueling_dqn.setup_from_config(load({}))
    start = dueling_dqn.create_state(setup, jax.random.PRNGKey(0))
    for name, part in state.agent.params.items():
        for leaf, before in zip(
            jax.tree.leaves(part), jax.tree.leaves(start.agent.params[name]), strict=True
        ):
            assert np.isfinite(leaf).all()
            assert (leaf != before).any(), name
    target, params = (jax.tree.leaves(tree) for tree in (state.agent.target_params, state.agent.params))
    assert any((some != other).any() for some, other in zip(target, params, strict=True))
    assert data["episodes"] == [0]  # none is over within 20 steps, after which all begin anew
    # Wherever there was a checkpoint, and nowhere else, all environments began anew.
    first = np.flatnonzero(state.replay.first[:60].any(1))
    np.testing.assert_array_equal(first, [0, 20, 40])
    assert state.replay.first[first].all()


def test_a_killed_run_ends_with_the_same_bits(killed, uninterrupted):
    (step, state, data), (other_step, other_state, other_data) = saved(killed), saved(uninterrupted)
    assert step == other_step == STEPS
    assert jax.tree.structure(state) == jax.tree.structure(other_state)
    for leaf, other in zip(jax.tree.leaves(state), jax.tree.leaves(other_state), strict=True):
        np.testing.assert_array_equal(leaf, other)
    assert data["episodes"] == other_data["episodes"]
    assert runs.numbers(killed) == runs.numbers(uninterrupted)
    scores = [json.loads((w / "results.json").read_text())["scores"] for w in (killed, uninterrupted)]
    assert scores[0] == scores[1]


def test_a_run_told_to_stop_says_how_to_go_on(stopped):
    workdir, stopped_at, errors = stopped
    assert 120 <= stopped_at < STEPS
    last_line = errors.splitlines()[-1]
    assert f"Stopped at step {stopped_at} and saved; to go on: python" in last_line
    assert f"--config={CONFIG} --workdir={workdir}" in last_line


def test_nothing_false_enters_the_memory_where_a_run_was_stopped(stopped):
    workdir, stopped_at, _ = stopped
    step, state, _ = saved(workdir)
    assert step == STEPS
    for leaf in jax.tree.leaves(state.agent):
        assert np.isfinite(leaf).all()
    first = state.replay.first[:60]
    begun = sorted({0, 20, 40, stopped_at // 4})
    np.testing.assert_array_equal(np.flatnonzero(first.any(1)), begun)
    assert first[begun].all()
    setup = dueling_dqn.setup_from_config(load({}))
    drawn = jax.jit(functools.partial(setup.replay.sample, batch_size=2048))(
        jax.tree.map(jnp.asarray, state.replay), jax.random.PRNGKey(1)
    )
    rows = np.unique(np.asarray(drawn.indices) // 4)
    # Every row begins a transition but those before a boundary, and those whose n steps are to come.
    assert set(rows) == set(range(57)) - {row - 1 for row in begun}


def test_a_finished_run_is_left_alone(killed):
    names = ("config.json", "metrics.jsonl", "results.json", "report.html")
    files = {name: (killed / name).read_bytes() for name in names}
    output, _ = finish(killed)
    assert {name: (killed / name).read_bytes() for name in names} == files
    assert "report.html" in output


def test_the_directory_of_another_game_is_refused(uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError) as caught:
        dueling_dqn.run(load({"protocol.game": "Breakout"}), uninterrupted)
    sentence = str(caught.value)
    assert 'belongs to another config: protocol.game: "Pong" -> "Breakout"' in sentence
    assert "\n" not in sentence
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


# --- Runs in this process


def made_up_games(setup, episodes, mean):
    """Games with a given mean score, and a film."""
    returns = mean + np.tile([1.0, -1.0], episodes // 2)
    returns = np.broadcast_to(returns, (setup.num_seeds, episodes))
    video = np.zeros((3, *setup.protocol.frame_size), np.uint8)
    return atari_return.Games(returns, np.full_like(returns, 9, dtype=int), video)


class Recorder:
    """Environments that keep what they showed, and what they were told."""

    def __init__(self, environments, steps, actions):
        self._environments, self._steps, self._actions = environments, steps, actions

    def _keep(self, step) -> TimeStep:
        self._steps.append(TimeStep(*(np.array(array) for array in step)))
        return step

    def reset(self):
        del self._steps[len(self._actions) :]  # the step after the last action, on which nobody acted
        return self._keep(self._environments.reset())

    def send(self, actions):
        self._actions.append(np.array(actions))
        self._environments.send(actions)

    def recv(self):
        return self._keep(self._environments.recv())

    def close(self):
        self._environments.close()


@pytest.fixture(scope="module")
def remembered(tmp_path_factory):
    """360 vector steps of Q*bert in a memory of 250 rows: setup, memory, time steps, actions [T, N, ...]."""
    overrides = SMALL | {
        "protocol.game": "Qbert",
        "protocol.max_episode_frames": 640,
        "train.agent_steps": 1440,
        "train.checkpoint_every": 1000,  # 250 vector steps
        "train.evaluate_every": 1440,
        "exploration.random_steps": 1240,  # learning is slower than playing
        "replay.capacity": 1000,
        "replay.priority_exponent": 0.0,  # so that draws reach all rows
    }
    steps, actions, ended = [], [], {}
    open_them = dueling_dqn.open_environments
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            dueling_dqn, "open_environments", lambda *args: Recorder(open_them(*args), steps, actions)
        )
        patch.setattr(dueling_dqn, "play_games", lambda setup, *args, **_: made_up_games(setup, args[4], 0))
        patch.setattr(
            dueling_dqn, "judge", lambda setup, _, state, __: ended.update(setup=setup, state=state)
        )
        dueling_dqn.run(load(overrides), tmp_path_factory.mktemp("runs") / "remembered")
    steps = TimeStep(*(np.stack(arrays) for arrays in zip(*steps[: len(actions)], strict=True)))
    assert len(actions) == 360
    return ended["setup"], ended["state"].replay, steps, np.stack(actions)


def test_the_memory_holds_what_the_environments_showed(remembered):
    setup, replay, steps, actions = remembered
    kept = np.arange(110, 360)  # the newest 250
    rows = kept % setup.replay.rows
    frames = np.asarray(replay.frame)[rows].reshape(250, 4, 36, 36)
    np.testing.assert_array_equal(frames, steps.frame[kept])
    np.testing.assert_array_equal(np.asarray(replay.first)[rows], steps.first[kept])
    np.testing.assert_array_equal(np.asarray(replay.reward)[rows], np.clip(steps.r_t[kept], -1, 1))
    np.testing.assert_array_equal(np.asarray(replay.discount)[rows], steps.discount_t[kept] != 0)
    np.testing.assert_array_equal(np.asarray(replay.action)[rows], actions[kept])
    # There was something to get wrong: scores above 1, lives lost, truncation, a boundary.
    assert steps.r_t[kept].max() > 1
    assert ((steps.discount_t == 0) & ~steps.last)[kept].any()
    assert ((steps.discount_t == 1) & steps.last)[kept].any()
    assert steps.first[250].all()
    np.testing.assert_array_equal(steps.first[1:] & (np.arange(1, 360) != 250)[:, None],
                                  steps.last[:-1] & (np.arange(1, 360) != 250)[:, None])  # fmt: skip


def test_no_drawn_transition_crosses_an_episodes_end(remembered):
    setup, replay, steps, actions = remembered
    sample = jax.jit(functools.partial(setup.replay.sample, batch_size=2048))
    drawn = jax.tree.map(np.asarray, sample(replay, jax.random.PRNGKey(3)))
    seen, expected = [], []
    for index in drawn.indices:
        row, env = divmod(int(index), 4)
        t = row if row >= 110 else row + 250  # rows of the ring were written again from step 250 on
        r_t, discount, k = 0.0, 1.0, 0
        while k < setup.replay.n_step and not steps.first[t + k + 1, env]:
            k += 1
            r_t += discount * np.clip(steps.r_t[t + k, env], -1, 1)
            discount *= 0.99 * steps.discount_t[t + k, env]
        seen.append((t, env))
        expected.append((steps.s_t[t, env], actions[t, env], r_t, discount, steps.s_t[t + k, env]))
    s_tm1, a_tm1, r_t, discount_t, s_t = map(np.stack, zip(*expected, strict=True))
    np.testing.assert_array_equal(drawn.s_tm1, s_tm1)
    np.testing.assert_array_equal(drawn.a_tm1, a_tm1)
    np.testing.assert_allclose(drawn.r_t, r_t, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(drawn.discount_t, discount_t, rtol=1e-5)
    np.testing.assert_array_equal(drawn.s_t, s_t)
    possible = {
        (t, env) for t in range(110 + 3, 357) for env in range(4) if not steps.first[t + 1, env]
    }  # the stack of the first three lost a frame; the last three wait for their returns
    assert set(seen) <= possible
    assert len(set(seen)) > 0.8 * len(possible)


def test_best_follows_the_best_evaluation(tmp_path, monkeypatch):
    scores = {80: 1.0, 160: 5.0, 240: 3.0}
    played, ended = {}, {}

    def play_games(setup, player, params, purpose, step, episodes, *, random=False, video=0):
        played[purpose, step] = jax.tree.map(np.array, params)
        return made_up_games(setup, episodes, scores.get(step, 0.0))

    judge = lambda *args: ended.update(zip(("setup", "around", "state", "config"), args, strict=True))
    monkeypatch.setattr(dueling_dqn, "play_games", play_games)
    monkeypatch.setattr(dueling_dqn, "judge", judge)
    run_here(tmp_path, **{"train.evaluate_every": 80, "train.checkpoint_every": 120})
    agent = ended["state"].agent
    assert (agent.best_return, agent.best_step) == (5, 160)
    of = lambda step: played[dueling_dqn.EVALUATION, step]
    equal = lambda some, other: all(
        (a == b).all() for a, b in zip(jax.tree.leaves(some), jax.tree.leaves(other), strict=True)
    )
    assert equal(agent.best_params, of(160))
    assert equal(agent.params, of(240))
    assert not equal(of(160), of(240))
    lines = metrics_lib.read(tmp_path / "metrics.jsonl")
    assert [line["eval/return_mean"] for line in lines if "eval/return_mean" in line] == [1, 5, 3]
    assert [line["eval/best_return"] for line in lines if "eval/best_return" in line] == [1, 5, 5]

    final = dueling_dqn.final_scores(ended["setup"], ended["around"], ended["state"], 240)
    assert equal(played[dueling_dqn.FINAL, 240], of(240))
    assert equal(played[dueling_dqn.FINAL, 0], of(160))
    assert (dueling_dqn.RANDOM, 0) in played
    assert final["agents"]["last"]["step"] == 240
    assert np.all(np.asarray(final["agents"]["best"]["step"]) == 160)


def test_a_number_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(InputError) as caught:
        run_here(tmp_path, **{"train.learning_rate": 1e30, "train.checkpoint_every": 8})
    sentence = str(caught.value)
    assert sentence.startswith("train/")
    assert "\n" not in sentence
    assert sentence.endswith("try a lower config.train.learning_rate.")
    step = int(sentence.partition(" at step ")[2].split()[0])
    (good,) = runs.saved_steps(tmp_path)
    assert f"the last good checkpoint is of step {good}" in sentence
    assert good < step
    for leaf in jax.tree.leaves(restore_raw(tmp_path / "checkpoints", good)["agent"]["params"]):
        assert np.isfinite(leaf).all()
    assert not (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_two_seeds_give_scores_of_each_and_an_interval(tmp_path):
    overrides = {
        "num_seeds": 2,
        "auxiliary.name": "rotation",
        "auxiliary.schedule": "joint",
        "train.agent_steps": 120,
    }
    results = run_here(tmp_path, **overrides)
    scores = json.loads((tmp_path / "results.json").read_text())["scores"]
    over = {name: agent["interval_over"] for name, agent in scores["agents"].items()}
    assert over == {"last": "seeds", "best": "seeds", "random": "episodes"}
    for agent in scores["agents"].values():
        assert np.shape(agent["returns"]) == (2, 4)
        assert agent["return_low"] <= agent["return_mean"] <= agent["return_high"]
    means = np.mean(scores["agents"]["last"]["returns"], 1)
    half = 12.7062 * abs(means[0] - means[1]) / 2  # t with one degree of freedom
    assert results["final"]["eval/return_high"] == pytest.approx(means.mean() + half, rel=1e-4)
    assert len(scores["agents"]["best"]["step"]) == 2
    last = scores["agents"]["last"]["returns"]
    assert scores["agents"]["last"]["return_mean"] == pytest.approx(np.mean(last))
    assert results["auxiliary"] == {"name": "rotation", "num_classes": 4, "schedule": "joint"}
    lines = metrics_lib.read(tmp_path / "metrics.jsonl")
    of_updates = next(line for line in reversed(lines) if "train/q_loss" in line)
    assert 0 <= of_updates["auxiliary/accuracy"] <= 1
    assert -1 <= of_updates["gradient/cosine"] <= 1
    assert of_updates["gradient/auxiliary_norm"] > 0
    of_scores = next(line for line in reversed(lines) if "eval/return_mean" in line)
    seeds = [of_scores[f"eval/return_seed_{i}"] for i in range(2)]
    assert of_scores["eval/return_mean"] == pytest.approx(np.mean(seeds))
    _, state, data = saved(tmp_path, SMALL | overrides)
    assert len(data["episodes"]) == 2
    # Each has its own data and its own network.
    assert (state.replay.frame[0] != state.replay.frame[1]).any()
    kernel = state.agent.params["trunk"]["conv1"]["kernel"]
    assert (kernel[0] != kernel[1]).any()
