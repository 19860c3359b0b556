"""Every edge of an episode, on the real emulator."""

import numpy as np
import pytest

from ssl_jax.atari.environments import Environments, TimeStep
from ssl_jax.atari.protocol import Protocol, learning_reward


def record(protocol, actions, *, seed=0, threads=1, at_last=None) -> TimeStep:
    """Plays actions [T, N] from a reset on; a time step of arrays [T + 1, N, ...].

    `at_last` replaces the actions sent on last time steps.
    """
    environments = Environments(protocol, actions.shape[1], seed, threads)
    steps = [environments.reset()]
    for action in actions:
        if at_last is not None:
            action = np.where(steps[-1].last, at_last, action)
        steps.append(environments.step(action))
    environments.close()
    return TimeStep(*map(np.stack, zip(*steps, strict=True)))


def random_actions(num_actions, steps, num_envs, seed=0):
    return np.random.default_rng(seed).integers(num_actions, size=(steps, num_envs))


def assert_same(one: TimeStep, other: TimeStep) -> None:
    for name, a, b in zip(TimeStep._fields, one, other, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.fixture(scope="module")
def breakout() -> TimeStep:
    """A random agent's Breakout, several games of it."""
    played = record(Protocol(game="Breakout", life_loss=True), random_actions(4, 450, 3))
    assert played.last.sum() >= 5
    return played


def test_shapes_and_dtypes(breakout):
    assert {name: (array.shape[1:], array.dtype) for name, array in breakout._asdict().items()} == {
        "frame": ((3, 84, 84), np.uint8),
        "s_t": ((3, 84, 84, 4), np.uint8),
        "r_t": ((3,), np.float32),
        "discount_t": ((3,), np.float32),
        "first": ((3,), np.bool_),
        "last": ((3,), np.bool_),
        "lives": ((3,), np.int32),
        "episode_return": ((3,), np.float32),
        "episode_length": ((3,), np.int32),
    }


def test_the_step_after_a_last_one_is_the_first_of_a_new_episode(breakout):
    assert breakout.first[0].all()
    np.testing.assert_array_equal(breakout.first[1:], breakout.last[:-1])
    first = breakout.first
    assert (breakout.r_t[first] == 0).all()
    assert (breakout.discount_t[first] == 1).all()
    assert (breakout.episode_return[first] == 0).all()
    assert (breakout.episode_length[first] == 0).all()
    assert (breakout.lives[first] == 5).all()
    assert not (first & breakout.last).any()


def test_the_action_on_a_last_step_is_ignored(breakout):
    actions = random_actions(4, 450, 3)
    assert (actions[breakout.last[:-1]] > 0).any()
    assert_same(record(Protocol(game="Breakout", life_loss=True), actions, at_last=0), breakout)


def test_a_lost_life_is_not_the_end_of_the_game(breakout):
    lives, last, first = breakout.lives, breakout.last, breakout.first
    fell = np.zeros_like(last)
    fell[1:] = (lives[1:] < lives[:-1]) & ~first[1:]
    np.testing.assert_array_equal(breakout.discount_t == 0, fell)
    np.testing.assert_array_equal(last, fell & (lives == 0))
    assert (fell & ~last).sum() >= 4 * last.sum()  # five lives a game


def test_life_loss_changes_nothing_but_the_discount(breakout):
    whole_games = record(Protocol(game="Breakout"), random_actions(4, 450, 3))
    assert_same(whole_games._replace(discount_t=breakout.discount_t), breakout)
    np.testing.assert_array_equal(whole_games.discount_t == 0, whole_games.last)


def test_returns_and_lengths_are_of_whole_games_in_raw_score(breakout):
    assert breakout.r_t.max() > 0
    for i in range(3):
        score = length = 0
        for t in range(1, len(breakout.r_t)):
            if breakout.first[t, i]:
                score = length = 0
            else:
                score += breakout.r_t[t, i]
                length += 1
            assert breakout.episode_return[t, i] == score
            assert breakout.episode_length[t, i] == length


def test_a_stack_is_the_last_frames_of_the_episode_and_its_first_frame_before(breakout):
    t_max, num_envs = breakout.first.shape
    for i in range(num_envs):
        stack = []
        for t in range(t_max):
            frame = breakout.frame[t, i]
            stack = [frame] * 4 if breakout.first[t, i] else [*stack[1:], frame]
            np.testing.assert_array_equal(breakout.s_t[t, i], np.stack(stack, axis=-1))


def test_truncation_is_no_termination():
    protocol = Protocol(game="Pong", max_episode_frames=83)  # 20 agent steps, and a rest
    played = record(protocol, random_actions(6, 65, 2))
    np.testing.assert_array_equal(np.flatnonzero(played.last[:, 0]), [20, 41, 62])
    np.testing.assert_array_equal(np.flatnonzero(played.first[:, 0]), [0, 21, 42, 63])
    assert (played.episode_length[played.last] == 20).all()
    assert (played.discount_t == 1).all()


def test_a_game_that_ends_at_the_cap_is_over(breakout):
    actions = random_actions(4, 450, 3)
    end = int(np.flatnonzero(breakout.last[:, 0])[0])
    played = record(Protocol(game="Breakout", max_episode_frames=4 * end), actions[: end + 2])
    assert played.last[end, 0]
    assert played.discount_t[end, 0] == 0
    assert played.first[end + 1, 0]


def test_no_op_starts_vary_the_first_frames():
    def first_frames(**options):
        protocol = Protocol(game="Freeway", max_episode_frames=8, **options)
        played = record(protocol, random_actions(3, 30, 2))
        return {frame.tobytes() for frame in played.frame[played.first]}

    assert len(first_frames(noop_max=30)) > 5
    assert len(first_frames(noop_max=1)) == 1


def test_sticky_actions_make_the_game_random():
    actions = np.repeat(random_actions(6, 100, 1), 6, axis=1)  # the same for six environments

    def distinct_games(sticky_actions):
        protocol = Protocol(game="SpaceInvaders", noop_max=1, sticky_actions=sticky_actions)
        frames = record(protocol, actions).frame
        return len({frames[:, i].tobytes() for i in range(6)})

    assert distinct_games(0.0) == 1
    assert distinct_games(0.25) == 6


def test_sticky_actions_repeat_as_often_as_they_should():
    # Episodes of three emulator frames: push, wait, wait. Breakout's paddle has moved by then, unless the
    # emulator repeated the no-op before the push; nothing else moves.
    protocol = Protocol(game="Breakout", noop_max=1, frame_skip=1, max_episode_frames=3, sticky_actions=0.25)
    played = record(protocol, np.tile([[2], [0], [0], [0]], (60, 8)))
    stuck = (played.frame[played.first][:480] == played.frame[played.last]).all(axis=(1, 2)).mean()
    assert abs(stuck - 0.25) < 0.06  # three standard deviations


def test_an_action_is_held_for_frame_skip_frames():
    protocol = {"game": "SpaceInvaders", "noop_max": 1}
    actions = random_actions(6, 150, 1)
    four = record(Protocol(**protocol, frame_skip=4), actions)
    two = record(Protocol(**protocol, frame_skip=2), np.repeat(actions, 2, axis=0))
    np.testing.assert_array_equal(four.frame, two.frame[::2])
    np.testing.assert_array_equal(four.episode_return, two.episode_return[::2])
    assert four.episode_return[-1] > 0


def test_a_frame_is_the_maximum_over_the_last_two():
    # Colour pictures straight from the emulator, after 3 and after 4 frames of the last action.
    import envpool

    def screen(last_skip, actions):
        pool = envpool.make_gymnasium(
            "SpaceInvaders-v5",
            num_envs=1,
            noop_max=1,
            use_fire_reset=False,
            frame_skip=1,
            img_height=210,
            img_width=160,
            render_mode="rgb_array",
        )
        pool.reset()
        frames = [a for action in actions[:-1] for a in [action] * 4] + [actions[-1]] * last_skip
        for action in frames:
            pool.step(np.array([action]))
        return np.round(pool.render()[0] @ [0.2989, 0.587, 0.114]).astype(np.uint8)

    protocol = Protocol(game="SpaceInvaders", noop_max=1, frame_size=(210, 160))
    differ = 0
    for steps in (25, 41):
        actions = random_actions(6, steps, 1)
        seen = record(protocol, actions).frame[-1, 0]
        third, fourth = screen(3, actions[:, 0]), screen(4, actions[:, 0])
        np.testing.assert_array_equal(seen, np.maximum(third, fourth))
        differ += (third != fourth).any()
    assert differ


def test_rewards_are_clipped_for_learning_only():
    protocol = Protocol(game="MsPacman")
    played = record(protocol, random_actions(9, 300, 2))
    assert played.r_t.max() >= 10
    np.testing.assert_array_equal(played.episode_return[-1], played.r_t.sum(axis=0))
    np.testing.assert_array_equal(learning_reward(protocol, played.r_t), np.minimum(played.r_t, 1))


def test_the_seed_is_the_game():
    protocol = Protocol(game="Breakout", sticky_actions=0.25)
    actions = np.repeat(random_actions(4, 80, 1), 4, axis=1)
    one, other = (record(protocol, actions, seed=seed) for seed in (1, 2))
    assert_same(one, record(protocol, actions, seed=1, threads=2))
    # Rows are environments in order, however many there are.
    assert_same(record(protocol, actions[:, :2], seed=1), TimeStep(*(array[:, :2] for array in one)))
    # Each has a game of its own, and two seeds share none.
    games = {played.frame[:, i].tobytes() for played in (one, other) for i in range(4)}
    assert len(games) == 8


def test_time_steps_stay_as_they_were():
    environments = Environments(Protocol(game="Pong"), 2, seed=0)
    steps = [environments.reset()]
    copies = [TimeStep(*map(np.copy, steps[0]))]
    for action in random_actions(6, 40, 2):
        environments.send(action)
        assert_same(steps[-1], copies[-1])  # while the emulators run
        steps.append(environments.recv())
        copies.append(TimeStep(*map(np.copy, steps[-1])))
    for step, copy in zip(steps, copies, strict=True):
        assert_same(step, copy)


def test_reset_starts_everything_anew():
    environments = Environments(Protocol(game="Breakout", life_loss=True), 2, seed=0)
    environments.reset()
    for action in random_actions(4, 150, 2):
        environments.step(action)
    step = environments.reset()
    assert step.first.all()
    assert not step.last.any()
    assert (step.discount_t == 1).all()  # though there are more or fewer lives than before
    assert (step.episode_length == 0).all()
    assert (step.episode_return == 0).all()
    after = environments.step(np.zeros(2, int))
    assert not after.first.any()
    assert (after.episode_length == 1).all()


def test_fire_on_reset_puts_the_ball_in_play():
    wait = np.zeros((150, 2), int)
    assert (record(Protocol(game="Breakout"), wait).lives == 5).all()
    assert (record(Protocol(game="Breakout", fire_on_reset=True), wait).lives[-1] < 5).all()


def test_sizes_follow_the_protocol():
    environments = Environments(Protocol(game="Breakout", frame_size=(60, 42), stack=2), 1, seed=0)
    step = environments.reset()
    assert step.frame.shape == (1, 60, 42)
    assert step.s_t.shape == (1, 60, 42, 2)
    assert environments.num_actions == 4
    full = Environments(Protocol(game="Breakout", full_action_space=True), 1, seed=0)
    assert full.num_actions == 18
