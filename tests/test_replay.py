"""The replay memory against Python lists of whole episodes."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_jax.atari import replay
from ssl_jax.atari.environments import Environments
from ssl_jax.atari.protocol import Protocol
from ssl_jax.atari.replay import Replay
from ssl_jax.runtime.errors import InputError

KEY = jax.random.key(0)
SIZE = (2, 3)  # pixels of the small frames here
GAMMA = 0.9
small = functools.partial(Replay, gamma=GAMMA, frame_size=SIZE)
ONE_STEP = small(capacity=40, num_envs=2)
THREE_STEPS = small(capacity=61, num_envs=3, n_step=3)  # 20 rows, and a rest
PRIORITIZED = small(capacity=80, num_envs=2, n_step=2, priority_exponent=0.5)
MEMORIES = {
    "one step": ONE_STEP,
    "three steps": THREE_STEPS,
    "prioritized": PRIORITIZED,
    "stack of 3": small(capacity=24, num_envs=1, n_step=2, stack=3),
    "stack of 1": small(capacity=26, num_envs=2, n_step=5, stack=1),
    "smallest": small(capacity=14, num_envs=2, n_step=3, priority_exponent=1.0),  # 7 rows
}
BATCH = 1024  # the same everywhere: compiling takes most of the time


class Row(NamedTuple):
    """A time step of one environment, and the action chosen on it."""

    frame: np.ndarray
    first: bool
    reward: float
    discount: int
    action: int


def episodes_of(events, seed=0) -> list[list[list[Row]]]:
    """Plays scripted games: for each environment the list of its episodes, each a list of rows.

    `events` [T][N] say how the time step after each one comes: "on", "life" (discount 0, the game goes on),
    "over" and "cut" (last time step, terminal or not), "stop" (the run is interrupted, and all environments
    start again).
    """
    rng = np.random.default_rng(seed)
    num_envs = len(events[0])
    games = [[] for _ in range(num_envs)]
    starts = [True] * num_envs
    for now in events:
        for i, event in enumerate(now):
            frame = rng.integers(256, size=SIZE, dtype=np.uint8)
            action = int(rng.integers(18))
            if starts[i]:
                games[i].append([Row(frame, True, 0.0, 1, action)])
            else:
                discount = int(event not in ("life", "over"))
                games[i][-1].append(Row(frame, False, float(rng.integers(-1, 2)), discount, action))
            # A game does not end on its first time step.
            starts[i] = "stop" in now or (not starts[i] and event in ("over", "cut"))
    return games


def time_steps(games) -> list[list[Row]]:
    """The same rows as they come: [T][N]."""
    columns = [[row for episode in episodes for row in episode] for episodes in games]
    return list(zip(*columns, strict=True))


def stacked(episode, j, stack):
    return np.stack([episode[max(j - k, 0)].frame for k in reversed(range(stack))], axis=-1)


def oracle(games, memory) -> dict[int, tuple]:
    """Every transition that can be drawn: its index -> (s_tm1, a_tm1, r_t, discount_t, s_t)."""
    transitions = {}
    for column, episodes in enumerate(games):
        total = sum(map(len, episodes))
        begin = 0
        for episode in episodes:
            for j in range(len(episode) - 1):
                following = episode[j + 1 : j + 1 + memory.n_step]
                r_t, discount_t = 0.0, 1.0
                for row in following:
                    r_t += discount_t * row.reward
                    discount_t *= GAMMA * row.discount
                age = total - 1 - (begin + j)
                if memory.n_step <= age <= memory.rows - memory.stack:
                    index = (begin + j) % memory.rows * memory.num_envs + column
                    transitions[index] = (
                        stacked(episode, j, memory.stack),
                        episode[j].action,
                        r_t,
                        discount_t,
                        stacked(episode, j + len(following), memory.stack),
                    )
            begin += len(episode)
    return transitions


@functools.cache
def compiled(memory):
    """add, sample, update_priorities, jitted as they are used."""
    return (
        jax.jit(memory.add, donate_argnums=0),
        jax.jit(memory.sample, static_argnums=2),
        jax.jit(memory.update_priorities, donate_argnums=0),
    )


def arrays(now: list[Row]):
    """The arguments of `add` after the state."""
    frame, first, reward, discount, action = map(np.array, zip(*now, strict=True))
    return frame, first, reward.astype(np.float32), discount.astype(np.float32), action


def filled(memory, games):
    state = memory.init()
    for now in time_steps(games):
        state = compiled(memory)[0](state, *arrays(now))
    return state


def assert_is(transition, expected):
    s_tm1, a_tm1, r_t, discount_t, s_t = expected
    np.testing.assert_array_equal(transition.s_tm1, s_tm1)
    assert transition.a_tm1 == a_tm1
    np.testing.assert_allclose(transition.r_t, r_t, atol=1e-5)
    np.testing.assert_allclose(transition.discount_t, discount_t, atol=1e-6)
    np.testing.assert_array_equal(transition.s_t, s_t)


def assert_holds_exactly(memory, state, expected):
    """All of `expected` is drawn, and nothing else, and each as it should be."""
    draw = jax.tree.map(np.asarray, compiled(memory)[1](state, KEY, BATCH))
    indices, where = np.unique(draw.indices, return_index=True)
    assert set(indices.tolist()) == set(expected)
    for i in where:
        one = jax.tree.map(lambda array, i=i: array[i], draw)
        assert_is(one, expected[int(one.indices)])


EVENTS = st.sampled_from(["on"] * 6 + ["life", "over", "cut"])


def scripts(num_envs, max_steps):
    one = st.one_of(
        *[st.lists(EVENTS, min_size=num_envs, max_size=num_envs)] * 9, st.just(["stop"] * num_envs)
    )
    # A length first: lists of a free length are nearly all short, and would not go once round the ring.
    return st.integers(1, max_steps).flatmap(lambda n: st.lists(one, min_size=n, max_size=n))


@pytest.mark.parametrize("name", MEMORIES)
def test_draws_all_transitions_and_only_them(name):
    memory = MEMORIES[name]

    @settings(max_examples=15, derandomize=True)
    @given(scripts(memory.num_envs, 3 * memory.rows), st.integers(0, 2**32 - 1))
    def check(events, seed):
        games = episodes_of(events, seed)
        expected = oracle(games, memory)
        state = filled(memory, games)
        weights = np.asarray(state.weight).ravel()
        assert set(np.flatnonzero(weights).tolist()) == set(expected)
        np.testing.assert_array_equal(state.block_weight, np.asarray(state.weight).sum(1))
        if expected:
            assert_holds_exactly(memory, state, expected)

    check()


def test_the_example_in_the_drawing():
    memory = Replay(capacity=100, num_envs=1, n_step=2, gamma=GAMMA, frame_size=SIZE)
    frames = np.arange(8 * 6, dtype=np.uint8).reshape(8, 1, *SIZE)
    first = np.array([1, 0, 0, 0, 1, 0, 0, 0], bool)[:, None]
    reward = np.array([0, 1, 2, 3, 0, 5, 6, 7], np.float32)[:, None]
    discount = np.array([1, 1, 1, 0, 1, 1, 1, 1], np.float32)[:, None]
    action = np.arange(8)[:, None]
    add, sample, _ = compiled(memory)
    state = memory.init()
    for row in zip(frames, first, reward, discount, action, strict=True):
        state = add(state, *row)
    drawn = jax.tree.map(np.asarray, sample(state, KEY, BATCH))
    table = {
        0: (1 + GAMMA * 2, GAMMA**2, [0, 0, 0, 0], [0, 0, 1, 2]),
        1: (2 + GAMMA * 3, 0, [0, 0, 0, 1], [0, 1, 2, 3]),
        2: (3, 0, [0, 0, 1, 2], [0, 1, 2, 3]),
        4: (5 + GAMMA * 6, GAMMA**2, [4, 4, 4, 4], [4, 4, 5, 6]),
        5: (6 + GAMMA * 7, GAMMA**2, [4, 4, 4, 5], [4, 5, 6, 7]),
    }
    assert set(drawn.indices.tolist()) == set(table)
    for i, index in enumerate(drawn.indices.tolist()):
        r_t, discount_t, before, after = table[index]
        stack = lambda rows: frames[rows, 0].transpose(1, 2, 0)
        one = jax.tree.map(lambda array, i=i: array[i], drawn)
        assert_is(one, (stack(before), index, r_t, discount_t, stack(after)))


def test_dtypes_and_shapes():
    state = filled(THREE_STEPS, episodes_of([["on"] * 3] * 9))
    drawn = compiled(THREE_STEPS)[1](state, KEY, BATCH)
    assert {name: (x.shape, x.dtype.name) for name, x in drawn._asdict().items()} == {
        "s_tm1": ((BATCH, *SIZE, 4), "uint8"),
        "a_tm1": ((BATCH,), "int32"),
        "r_t": ((BATCH,), "float32"),
        "discount_t": ((BATCH,), "float32"),
        "s_t": ((BATCH, *SIZE, 4), "uint8"),
        "indices": ((BATCH,), "int32"),
        "weights": ((BATCH,), "float32"),
    }
    np.testing.assert_array_equal(drawn.weights, 1)


def test_uniform_is_uniform():
    events = [["over" if t % (5 + i) == 4 else "on" for i in range(3)] for t in range(50)]
    games = episodes_of(events)
    state = filled(THREE_STEPS, games)
    count = np.zeros(60)
    for key in jax.random.split(KEY, 80):
        np.add.at(count, np.asarray(compiled(THREE_STEPS)[1](state, key, BATCH).indices), 1)
    drawn = count[list(oracle(games, THREE_STEPS))]
    assert drawn.sum() == count.sum()
    chi_square = ((drawn - drawn.mean()) ** 2 / drawn.mean()).sum()
    free = len(drawn) - 1
    assert abs(chi_square - free) < 4 * np.sqrt(2 * free)


def test_priorities_against_a_table():
    """Random adds and updates; what a plain dictionary of priorities says is what is stored."""
    memory = PRIORITIZED
    add, _, update = compiled(memory)
    rng = np.random.default_rng(0)
    events = [rng.choice(["on", "on", "on", "over", "cut"], size=2).tolist() for _ in range(70)]
    games = episodes_of(events)
    state, table, largest = memory.init(), {}, 1.0
    for t, now in enumerate(time_steps(games)):
        state = add(state, *arrays(now))
        seen = [
            [episode[: max(0, t + 1 - sum(map(len, episodes[:k])))] for k, episode in enumerate(episodes)]
            for episodes in games
        ]
        valid = oracle([[episode for episode in episodes if episode] for episodes in seen], memory)
        table = {index: table.get(index, largest) for index in valid}
        if t > 5:
            indices = rng.integers(80, size=6)  # what can be drawn and what cannot, some of it twice
            errors = rng.normal(0, 3, size=6).astype(np.float32)
            state = update(state, indices, errors)
            for index in set(indices.tolist()) & set(table):
                table[index] = np.abs(errors[indices == index]).max() + replay.PRIORITY_FLOOR
                largest = max(largest, table[index])
        weight = np.zeros(state.weight.size)
        weight[list(table)] = np.array(list(table.values())) ** 0.5
        np.testing.assert_allclose(np.asarray(state.weight).ravel(), weight, rtol=1e-5)
        np.testing.assert_array_equal(state.block_weight, jax.jit(lambda w: w.sum(1))(state.weight))


def test_drawn_in_proportion_to_priority():
    memory = PRIORITIZED
    games = episodes_of([["on", "on"]] * 35)
    indices = np.array(sorted(oracle(games, memory)))
    errors = np.random.default_rng(0).gamma(0.5, 4, size=len(indices)).astype(np.float32)
    state = compiled(memory)[2](filled(memory, games), indices, errors)
    probability = np.zeros(80)
    probability[indices] = np.sqrt(errors + replay.PRIORITY_FLOOR)
    probability /= probability.sum()
    count = np.zeros(80)
    for key in jax.random.split(KEY, 80):
        np.add.at(count, np.asarray(compiled(memory)[1](state, key, BATCH).indices), 1)
    assert count[probability == 0].sum() == 0
    expected = (count.sum() * probability)[indices]
    chi_square = ((count[indices] - expected) ** 2 / expected).sum()
    assert abs(chi_square - len(indices)) < 4 * np.sqrt(2 * len(indices))


def test_importance_weights_of_schaul():
    memory = PRIORITIZED
    games = episodes_of([["on", "over"]] * 30)
    indices = np.array(sorted(oracle(games, memory)))
    errors = np.linspace(0.1, 9, len(indices)).astype(np.float32)
    state = compiled(memory)[2](filled(memory, games), indices, errors)
    drawn = compiled(memory)[1](state, KEY, BATCH, 0.4)
    priority = dict(zip(indices.tolist(), np.sqrt(errors + replay.PRIORITY_FLOOR), strict=True))
    probability = np.array([priority[i] for i in drawn.indices.tolist()]) / sum(priority.values())
    weights = (len(indices) * probability) ** -0.4
    np.testing.assert_allclose(drawn.weights, weights / weights.max(), rtol=1e-5)


def test_new_transitions_are_drawn_like_the_most_surprising_one():
    add, _, update = compiled(PRIORITIZED)
    state = filled(PRIORITIZED, episodes_of([["on", "on"]] * 10))
    state = update(state, np.array([6, 8]), np.array([-7.0, 0.0], np.float32))
    now = time_steps(episodes_of([["on", "on"]] * 2))[1]
    weight = np.asarray(add(state, *arrays(now)).weight).ravel()
    np.testing.assert_allclose(weight[[6, 16, 17]], np.sqrt(7), rtol=1e-5)  # row 8 is complete now
    assert 0 < weight[8] < 0.01  # not lost


def test_updates_change_nothing_if_uniform():
    state = filled(ONE_STEP, episodes_of([["on", "on"]] * 10))
    assert ONE_STEP.update_priorities(state, jnp.array([3]), jnp.array([7.0])) is state


@pytest.mark.parametrize("exponents", [(8, -8), (0, -30), (30, 0)])
def test_rounding_never_draws_what_has_no_weight(exponents):
    rng = np.random.default_rng(0)
    weight = 10.0 ** rng.uniform(*sorted(exponents), size=(20, 37)).astype(np.float32)
    weight[rng.random(weight.shape) < 0.7] = 0
    weight[5:9] = 0  # empty blocks
    weight = jnp.asarray(weight, jnp.float32)
    indices, chosen = jax.jit(replay._draw, static_argnums=3)(KEY, weight, weight.sum(1), 20_000)
    assert (chosen > 0).all()
    np.testing.assert_array_equal(chosen, weight.ravel()[indices])


def test_a_run_that_resumes_learns_nothing_false():
    """Saved in the middle of an episode; the environments begin anew, the memory goes on."""
    memory = THREE_STEPS
    games = episodes_of([["on"] * 3] * 12 + [["stop"] * 3] + [["on"] * 3] * 8)
    add, sample, _ = compiled(memory)
    state = memory.init()
    for now in time_steps(games)[:13]:
        state = add(state, *arrays(now))
    drawn = sample(state, KEY, BATCH)
    resumed = jax.tree.map(jnp.asarray, jax.tree.map(np.asarray, state))  # by way of a checkpoint
    jax.tree.map(np.testing.assert_array_equal, sample(resumed, KEY, BATCH), drawn)
    for now in time_steps(games)[13:]:
        resumed = add(resumed, *arrays(now))
    expected = oracle(games, memory)
    assert 12 * 3 not in expected  # the row that was the last one before
    assert 11 * 3 in expected  # with a return of one step
    assert_holds_exactly(memory, resumed, expected)


def test_independent_agents_under_vmap():
    memory = PRIORITIZED
    worlds = [episodes_of([["on", "over"], ["on", "on"], ["on", "life"]] * 9, seed) for seed in range(3)]
    states = jax.vmap(lambda _: memory.init())(jnp.arange(3))
    add = jax.jit(jax.vmap(memory.add), donate_argnums=0)
    for nows in zip(*map(time_steps, worlds), strict=True):
        states = add(states, *map(np.stack, zip(*map(arrays, nows), strict=True)))
    keys = jax.random.split(KEY, 3)
    drawn = jax.jit(jax.vmap(lambda state, key: memory.sample(state, key, BATCH)))(states, keys)
    errors = np.arange(3 * BATCH, dtype=np.float32).reshape(3, BATCH)
    states = jax.jit(jax.vmap(memory.update_priorities))(states, drawn.indices, errors)
    for i, games in enumerate(worlds):
        state = filled(memory, games)
        alone = compiled(memory)[1](state, keys[i], BATCH)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), drawn, alone)
        state = compiled(memory)[2](state, alone.indices, errors[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), states, state)


def test_lives_where_it_is_put():
    device = jax.devices()[2]
    state = ONE_STEP.init(device)
    add, sample, _ = compiled(ONE_STEP)
    for now in time_steps(episodes_of([["on", "on"]] * 6)):
        state = add(state, *arrays(now))
    drawn = sample(state, KEY, BATCH)
    for array in jax.tree.leaves((state, drawn)):
        assert array.devices() == {device}


def test_bytes_are_known_before_they_are_taken():
    atari = Replay(capacity=1_000_000, num_envs=8, priority_exponent=0.6)
    assert 7056 < atari.num_bytes / 1_000_000 < 7100
    for memory in MEMORIES.values():
        assert memory.num_bytes == sum(array.nbytes for array in jax.tree.leaves(memory.init()))


@pytest.mark.parametrize("priority_exponent", [0.0, 0.6])
def test_nothing_copies_the_memory(priority_exponent):
    memory = Replay(capacity=1_000_000, num_envs=8, n_step=3, priority_exponent=priority_exponent)
    state = jax.eval_shape(memory.init)  # compiled for, never allocated
    row = jax.eval_shape(
        lambda: (jnp.zeros((8, 84, 84), jnp.uint8), *[jnp.zeros(8)] * 3, jnp.zeros(8, jnp.int32))
    )

    def learn(state, key, *row):
        state = memory.add(state, *row)

        def update(state, key):
            drawn = memory.sample(state, key, 32)
            error = drawn.r_t + drawn.s_tm1.astype(jnp.float32).mean((1, 2, 3))
            return memory.update_priorities(state, drawn.indices, error), error

        return jax.lax.scan(update, state, jax.random.split(key, 2))

    usage = jax.jit(learn, donate_argnums=0).lower(state, KEY, *row).compile().memory_analysis()
    assert usage.alias_size_in_bytes > 0.999 * memory.num_bytes
    assert usage.temp_size_in_bytes < 20e6


def test_draws_what_the_actor_saw():
    """On the real emulator: stacks, actions, rewards and discounts of whole games, over the seam."""
    protocol = Protocol(game="Breakout", life_loss=True)
    memory = Replay(capacity=900, num_envs=3, gamma=GAMMA)
    environments = Environments(protocol, 3, seed=0, threads=1)
    rng = np.random.default_rng(0)
    state, steps, actions = memory.init(), [environments.reset()], []
    for _ in range(400):
        actions.append(rng.integers(4, size=3))
        now = steps[-1]
        state = compiled(memory)[0](state, now.frame, now.first, now.r_t, now.discount_t, actions[-1])
        steps.append(environments.step(actions[-1]))
    draw = jax.tree.map(np.asarray, compiled(memory)[1](state, KEY, 300))
    rows, columns = np.divmod(draw.indices, 3)
    assert len(np.unique(draw.indices)) > 200
    for i, (row, column) in enumerate(zip(rows, columns, strict=True)):
        t = row + 300 if row < 100 else row
        after = steps[t + 1]
        assert not after.first[column]
        discount = GAMMA * after.discount_t[column]
        assert_is(
            jax.tree.map(lambda array, i=i: array[i], draw),
            (steps[t].s_t[column], actions[t][column], after.r_t[column], discount, after.s_t[column]),
        )


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"capacity": 9}, "at least 10 agent steps"),
        ({"capacity": 100, "n_step": 0}, "n_step"),
        ({"capacity": 100, "stack": 0}, "stack"),
        ({"capacity": 100, "gamma": 1.1}, "gamma"),
        ({"capacity": 100, "priority_exponent": -1.0}, "priority_exponent"),
    ],
)
def test_what_cannot_be_is_named(options, word):
    with pytest.raises(InputError, match=word):
        Replay(**({"num_envs": 2} | options))
