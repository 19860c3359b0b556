import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import selection
from ssl_jax.runtime.errors import InputError
from ssl_jax.selection import Evaluation, policy_gradient
from ssl_jax.selection import state as state_lib

KEY = jax.random.key(0)
group_permutations = jax.jit(selection.group_permutations, static_argnums=1)
pytestmark = pytest.mark.usefixtures("little_optimization")


def evaluation(accuracy, ratio=None):
    accuracy = jnp.asarray(accuracy, jnp.float32)
    return Evaluation(accuracy=accuracy, ratio=jnp.exp(accuracy) if ratio is None else jnp.float32(ratio))


def compiled(player):
    """The player with each of its functions as one program: one by one, operations take far longer."""
    init, observe, probability = map(jax.jit, (player.init, player.observe, player.probability))
    choose = jax.jit(player.choose, static_argnums=2)
    return player._replace(init=init, choose=choose, observe=observe, probability=probability)


def test_groups_are_clusters_numbered_from_hard_to_easy():
    levels = np.array([0.9, 0.1, 0.5])
    truth = np.repeat([2, 0, 1], 8)  # 0.9 is the easiest, 0.1 the hardest
    accuracy = np.repeat(levels, 8) + np.random.default_rng(0).normal(0, 0.01, 24)
    np.testing.assert_array_equal(group_permutations(evaluation(accuracy), 3), truth)


def test_groups_use_both_columns_of_the_state():
    ratio = np.where(np.arange(20) < 10, 1.0, 50.0)
    group = np.asarray(group_permutations(evaluation(np.full(20, 0.5), ratio), 2))
    assert len(set(group[:10])) == len(set(group[10:])) == 1
    assert group[0] != group[10]


def test_groups_of_permutations_that_are_all_alike():
    group = np.asarray(group_permutations(evaluation(np.full(30, 0.01)), 10))
    assert group.shape == (30,)
    assert ((group >= 0) & (group < 10)).all()


@pytest.mark.parametrize("seed", range(5))
def test_mean_accuracy_rises_with_the_group_number(seed):
    rng = np.random.default_rng(seed)
    accuracy = rng.random(100)
    group = np.asarray(group_permutations(evaluation(accuracy, rng.gamma(1, 5, 100)), 10))
    means = [accuracy[group == k].mean() for k in np.unique(group)]
    assert means == sorted(means)
    np.testing.assert_array_equal(np.unique(group), np.arange(len(means)))  # empty ones come last


# Members that differ from the identity in 2, 3, ..., 12 places, the farthest twice.
CYCLES = np.stack([np.r_[np.roll(np.arange(k), 1), k:12] for k in range(2, 13)] + [np.roll(np.arange(12), 2)])
OPTIONS = {
    "uniform": {},
    "round_robin": {},
    "curriculum": {"permutations": CYCLES, "steps": 50},
    "loss_prioritized": {"period": 5},
    "exp3": {"period": 5},
    "policy_gradient": {"period": 5},
    "q_learning": {"period": 5},
}


# Even draws of the policy gradient follow a share that chance decides once a period; see below.
EVEN = [f"{name}, even" for name in OPTIONS if name not in ("round_robin", "policy_gradient")]


@pytest.fixture(scope="module", params=[*selection.PLAYERS, *EVEN, "q_learning, even, from one group"])
def make_player(request):
    """Makes players of one name, all alike."""
    name, *more = request.param.split(", ")
    options = OPTIONS[name] | ({"draws": "even"} if "even" in more else {})
    options |= {"uniform_share": 0.0} if "from one group" in more else {}
    return functools.partial(selection.PLAYERS[name], num_permutations=12, **options)


@pytest.fixture(scope="module")
def player(make_player):
    return compiled(make_player())


def test_every_player_keeps_the_contract(player):
    state = player.init(KEY)
    rng = np.random.default_rng(0)
    for _ in range(4):
        counts, expected = np.zeros(12), np.zeros(12)
        for step in range(20):
            probability = np.asarray(player.probability(state))
            np.testing.assert_allclose(probability.sum(), 1, atol=1e-5)
            before, (state, index) = state, player.choose(jax.random.key(step), state, 100)
            assert index.dtype == jnp.int32
            chex.assert_trees_all_equal_shapes_and_dtypes(before, state)
            counts += np.bincount(index, minlength=12)
            expected += 100 * probability
        # Draws follow the probability: chi-squared far below its tail at 11 degrees of freedom.
        seen = expected > 0
        assert not counts[~seen].any()
        assert (np.square(counts - expected)[seen] / expected[seen]).sum() < 40
        if isinstance(state, state_lib.Dealt):
            assert np.abs(counts - expected).max() < 2.5
        before = state
        state, metrics = player.observe(KEY, state, evaluation(rng.random(12)))
        chex.assert_trees_all_equal_shapes_and_dtypes(before, state)
        assert all(np.isfinite(value) for value in metrics.values())


def test_the_state_is_all_there_is(make_player, player):
    """A saved state goes on in another player as it would have gone on in its own."""

    def go_on(player, state, rounds):
        for i in rounds:
            state, index = player.choose(jax.random.key(i), state, 100)
            accuracy = np.random.default_rng(i).random(12)
            state, _ = player.observe(jax.random.key(100 + i), state, evaluation(accuracy))
        return state, index

    state, _ = go_on(player, player.init(KEY), range(4))
    saved = jax.tree.map(np.asarray, state)
    other = compiled(make_player())
    chex.assert_trees_all_equal(go_on(player, state, range(4, 8)), go_on(other, saved, range(4, 8)))
    leaves = [leaf for leaf in jax.tree.leaves(make_player().init(KEY)) if leaf.size]
    pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves]
    assert len(set(pointers)) == len(pointers)  # a step that is given the state's memory may write over it


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("curriculum", {"steps": 0}, "steps must be at least 1, not 0"),
        ("curriculum", {"start_share": 0.0}, "start_share must be above 0 and at most 1, not 0.0"),
        ("uniform", {"draws": "odd"}, "draws must be one of independent, even, not 'odd'"),
        ("curriculum", {"order": "easy"}, "order must be one of easy_first, hard_first, not 'easy'"),
        ("loss_prioritized", {"exponent": -1.0}, "exponent must be at least 0, not -1.0"),
        ("loss_prioritized", {"min_error": 0.0}, "min_error must be above 0, not 0.0"),
        ("loss_prioritized", {"uniform_share": 1.5}, r"uniform_share must be in \[0, 1\], not 1.5"),
        ("exp3", {"uniform_share": 0.0}, "uniform_share must be above 0 and at most 1, not 0.0"),
        ("exp3", {"weight_share": 1.0}, "weight_share must be at least 0 and below 1, not 1.0"),
        ("exp3", {"bounds_decay": 0.0}, "bounds_decay must be above 0 and at most 1, not 0.0"),
        ("exp3", {"num_groups": 0}, "num_groups must be at least 1, not 0"),
        ("policy_gradient", {"num_groups": 0}, "num_groups must be at least 1, not 0"),
        ("policy_gradient", {"draws": "odd"}, "draws must be one of independent, even, not 'odd'"),
        ("policy_gradient", {"period": 0}, "period must be at least 1, not 0"),
        ("q_learning", {"capacity": 0}, "capacity must be at least 1, not 0"),
        ("q_learning", {"epsilon": 2.0}, r"epsilon must be in \[0, 1\], not 2.0"),
    ],
)
def test_an_option_that_does_not_fit_is_named(name, options, wanted):
    with pytest.raises(InputError, match=rf"^{wanted}\.$"):
        selection.PLAYERS[name](num_permutations=12, **OPTIONS[name] | options)


@pytest.fixture(scope="module")
def plain_gradient():
    """The policy gradient for 4 permutations in 2 groups, without the entropy bonus."""
    return compiled(policy_gradient.make(num_permutations=4, period=1, num_groups=2, entropy_bonus=0.0))


def test_reward_is_the_fall_below_the_linear_extrapolation(plain_gradient):
    player = plain_gradient
    state, rewards = player.init(KEY), []
    for error in (0.9, 0.8, 0.65, 0.6):
        state, metrics = player.observe(KEY, state, evaluation(np.full(4, 1 - error)))
        rewards.append(float(metrics["reward"]))
    # No line through fewer than two points; 2*0.8 - 0.9 = 0.7; 2*0.65 - 0.8 = 0.5.
    np.testing.assert_allclose(rewards, [0, 0, 0.7 - 0.65, 0.5 - 0.6], atol=1e-5)


def test_nothing_is_learned_before_there_is_a_reward(plain_gradient):
    player = plain_gradient
    state = player.init(KEY)
    for error in (0.9, 0.8):
        before, (state, _) = state, player.observe(KEY, state, evaluation(np.full(4, 1 - error)))
        chex.assert_trees_all_equal(before.params, state.params)


def test_policy_moves_towards_what_was_drawn_when_the_reward_was_good(plain_gradient):
    player = plain_gradient
    hard_and_easy = np.array([0.1, 0.1, 0.9, 0.9])
    for reward, direction in ((0.1, 1), (-0.1, -1)):
        state = player.init(KEY)
        for _ in range(2):
            state, _ = player.observe(KEY, state, evaluation(hard_and_easy))
        state = state.replace(count=jnp.array([9.0, 1.0]))  # mostly of the hard group, 0
        before = player.probability(state)[:2].sum()
        rows = state.rows
        state, _ = player.observe(KEY, state, evaluation(hard_and_easy + reward))
        after = player.probability(state.replace(rows=rows))[:2].sum()
        assert np.sign(after - before) == direction


@pytest.mark.parametrize("group", [[0, 1, 1, 1, 1, 2], [0, 0, 0, 2, 2, 2]])  # an empty one is never drawn
def test_the_first_policy_is_uniform_over_permutations_whatever_the_sizes_of_the_groups(group):
    player = policy_gradient.make(num_permutations=6, period=1, num_groups=3)
    state = player.init(KEY).replace(group=jnp.array(group))
    np.testing.assert_allclose(player.probability(state), np.full(6, 1 / 6), atol=1e-6)


@pytest.mark.parametrize(("seed", "batch_size"), [(0, 7), (1, 32), (2, 100), (3, 250)])
def test_even_draws_follow_a_probability_with_the_least_chance(seed, batch_size):
    draw = jax.jit(state_lib.draw_evenly, static_argnums=4)
    probability = np.random.default_rng(seed).dirichlet(np.ones(100)).astype(np.float32)
    owed, counts, group = jnp.zeros(100), np.zeros(100), jnp.arange(100) // 10
    for step in range(1, 60):
        index, drawn, owed = draw(jax.random.key(step), probability, owed, group, batch_size)
        assert index.shape == (batch_size,)
        np.testing.assert_array_equal(drawn, np.bincount(index, minlength=100))
        counts += drawn
        # Independent draws would be off by sqrt(expected), up to 20 here.
        np.testing.assert_allclose(counts, step * batch_size * probability, atol=2.5)


def test_even_uniform_draws_are_nearly_epochs_and_never_the_same():
    draw = jax.jit(state_lib.draw_evenly, static_argnums=4)
    probability, batches = jnp.full((100,), 0.01), []
    owed = jnp.zeros(100)
    for step in range(20):
        index, _, owed = draw(jax.random.key(step), probability, owed, None, 25)
        assert len(set(np.asarray(index).tolist())) == 25
        batches.append(frozenset(np.asarray(index).tolist()))
    assert len(set(batches)) == 20
    counts = np.bincount(np.concatenate([list(batch) for batch in batches]), minlength=100)
    assert counts.min() >= 4  # of 5
    assert counts.max() <= 6


def test_a_period_of_even_draws_comes_to_what_independent_draws_would():
    """Group counts over a period are multinomial, and every batch has its part of them."""
    make = functools.partial(policy_gradient.make, num_permutations=12, period=16, num_groups=3)
    player = make(draws="even")
    state = player.init(KEY).replace(group=jnp.repeat(jnp.arange(3), jnp.array([2, 4, 6])))

    @jax.jit
    @jax.vmap
    def play(key):
        def step(state, key):
            state, index = player.choose(key, state, 8)
            return state, index

        return jax.lax.scan(step, state, jax.random.split(key, 16))

    states, index = play(jax.random.split(KEY, 400))
    groups = np.asarray(state.group)[index]  # [400, 16, 8]
    counts = np.stack([(groups == k).sum((1, 2)) for k in range(3)], -1)
    np.testing.assert_allclose(states.count, counts)
    share = np.array([2, 4, 6]) / 12
    np.testing.assert_allclose(counts.mean(0), 128 * share, atol=1)
    np.testing.assert_allclose(counts.var(0), 128 * share * (1 - share), rtol=0.3)
    # Of what a period has of a group, each batch has a sixteenth, give or take what is still owed.
    per_batch = np.stack([(groups == k).sum(2) for k in range(3)], -1)  # [400, 16, 3]
    assert np.abs(per_batch - counts[:, None] / 16).max() < 3
    assert per_batch.std(1).mean() < 0.75  # independent ones have 1.3
    members = (np.asarray(index)[..., None] == np.arange(12)).sum((1, 2))  # [400, 12]
    assert np.abs(members - (counts / [2, 4, 6])[:, state.group]).max() < 2.5  # in turn


SIZES = (4, 6)  # permutations of two tasks, which are in two groups each


@pytest.fixture(scope="module")
def joint():
    """Players of two tasks that are one policy, without the entropy bonus."""
    return tuple(map(compiled, make_joint(num_permutations=SIZES, num_groups=2, entropy_bonus=0.0)))


def make_joint(**options):
    given = {"period": 1, "hidden": 64, "learning_rate": 0.01, "entropy_bonus": 0.01, "baseline_decay": 0.9}
    return policy_gradient.make_joint(**given | options)


def test_players_that_share_a_policy_draw_from_their_own_sets(joint):
    rng, state = np.random.default_rng(0), joint[0].init(KEY)
    for look in range(5):
        drawn = []
        for number, (player, size) in enumerate(zip(joint, SIZES, strict=True)):
            probability = np.asarray(player.probability(state))
            assert probability.shape == (size,)
            np.testing.assert_allclose(probability.sum(), 1, atol=1e-5)
            before, (state, index) = state, player.choose(jax.random.key(2 * look + number), state, 2000)
            chex.assert_trees_all_equal_shapes_and_dtypes(before, state)
            assert (index.dtype, int(index.min()), int(index.max())) == (jnp.int32, 0, size - 1)
            np.testing.assert_allclose(np.bincount(index) / 2000, probability, atol=0.06)
            group = np.split(np.asarray(state.group), [SIZES[0]])[number]
            assert set(group) == {2 * number, 2 * number + 1}
            drawn += np.bincount(group[index] - 2 * number, minlength=2).tolist()
        np.testing.assert_array_equal(state.count, drawn)
        state, *metrics = joint[0].observe(KEY, state, *(evaluation(rng.random(size)) for size in SIZES))
        assert len(metrics) == 2
        assert not state.count.any()


def test_an_update_of_two_tasks_by_hand(joint):
    player, state = joint[0], joint[0].init(KEY)
    seen = lambda rise: (evaluation(np.full(4, 0.1 + rise)), evaluation(np.full(6, 0.3 + 2 * rise)))
    for _ in range(2):
        state, *_ = player.observe(KEY, state, *seen(0))
    state = state.replace(
        group=jnp.array([0, 0, 1, 1, 2, 3, 3, 3, 3, 3]), count=jnp.array([9.0, 1.0, 3.0, 1.0])
    )
    state, *metrics = player.observe(KEY, state, *seen(0.1))
    np.testing.assert_allclose([m["error"] for m in metrics], [0.8, 0.5], atol=1e-6)
    # Of the errors, 0.9 and 0.7 before, the mean fell from 0.8 to 0.65. A first reward is its own scale.
    np.testing.assert_allclose([m["reward"] for m in metrics], [0.15, 0.15], atol=1e-6)
    np.testing.assert_allclose([m["advantage"] for m in metrics], [1, 1], atol=1e-5)
    # All logits are zero, so that all permutations of a task are drawn alike, and the entropy is largest.
    np.testing.assert_allclose([m["entropy"] for m in metrics], np.log([4, 6]), rtol=1e-5)
    # Each head's score rises with what it drew more often than was to be expected.
    score = np.array([0.9 - 1 / 2, 0.1 - 1 / 2, 0.75 - 1 / 6, 0.25 - 5 / 6])
    bias = lambda tree: tree["params"]["Dense_1"]["bias"]
    np.testing.assert_allclose(bias(state.opt_state[0].mu), -0.1 * score, rtol=1e-4)  # 1 - Adam's b1
    np.testing.assert_array_equal(np.sign(bias(state.params)), np.sign(score))


def test_a_head_sees_the_states_of_all_tasks(joint):
    player, state = joint[0], joint[0].init(KEY)
    params = jax.tree.map(lambda leaf: 0.3 * jax.random.normal(KEY, leaf.shape), state.params)
    state = state.replace(params=params)
    other = state.replace(rows=state.rows.at[2 * SIZES[0] :].add(0.5))  # those of the second task
    assert np.abs(player.probability(state) - player.probability(other)).max() > 0.01


def test_a_joint_policy_finds_the_group_of_each_task_that_teaches():
    """The world of `learn`, twice; the reward does not say in which of the two skill rose."""
    sizes = (12, 6)
    players = make_joint(num_permutations=sizes, num_groups=3)
    bases = [jnp.repeat(jnp.array([0.1, 0.3, 0.5]), size // 3) for size in sizes]

    def one(best_groups, seed):
        members = [
            jnp.repeat(jnp.arange(3), size // 3) == best
            for size, best in zip(sizes, best_groups, strict=True)
        ]

        def round_(carry, key):
            state, skills = carry
            skills = list(skills)
            for task, player in enumerate(players):
                state, index = player.choose(jax.random.fold_in(key, task), state, 64)
                skills[task] = 0.5 * skills[task] + 0.2 * members[task][index].mean()
            seen = [evaluation(base + skill) for base, skill in zip(bases, skills, strict=True)]
            state, *_ = players[0].observe(key, state, *seen)
            shares = [
                (player.probability(state) * best).sum()
                for player, best in zip(players, members, strict=True)
            ]
            return (state, tuple(skills)), jnp.stack(shares)

        keys = jax.random.split(jax.random.key(seed), 600)
        return jax.lax.scan(round_, (players[0].init(KEY), (0.0, 0.0)), keys)[1][-100:].mean(0)

    best_groups = jnp.array([[0, 0], [0, 2], [1, 0], [1, 2], [2, 1], [2, 2]])
    learned = jax.jit(jax.vmap(one))(best_groups, jnp.arange(6))
    assert (learned > 0.8).all(), learned  # by chance 1/3


@functools.partial(jax.jit, static_argnums=(0, 1))
def learn(player, rounds, best_group=1, seed=0):
    """A world in which only permutations of one group teach anything.

    12 permutations lie in three groups of fixed difficulty. Skill at all of them rises by the share of
    the draws that fell into the best group, and is forgotten at a steady rate. Returns the probability
    of the best group after each evaluation.
    """
    base = jnp.repeat(jnp.array([0.1, 0.3, 0.5]), 4)
    members = jnp.repeat(jnp.arange(3), 4) == best_group

    def round_(carry, key):
        state, skill = carry
        state, index = player.choose(key, state, 64)
        skill = 0.5 * skill + 0.2 * members[index].mean()
        state, _ = player.observe(key, state, evaluation(base + skill))
        return (state, skill), (player.probability(state) * members).sum()

    keys = jax.random.split(jax.random.key(seed), rounds)
    return jax.lax.scan(round_, (player.init(KEY), 0.0), keys)[1]


@pytest.mark.parametrize(
    ("name", "options", "share"),
    [
        ("policy_gradient", {}, 0.8),
        ("policy_gradient", {"draws": "even"}, 0.8),
        ("exp3", {}, 0.75),
        ("exp3", {"draws": "even"}, 0.6),  # skill rises alike everywhere: only chance tells arms apart
        ("q_learning", {}, 0.65),
        ("q_learning", {"draws": "even"}, 0.65),
    ],
)
def test_adaptive_players_find_the_only_group_that_teaches(name, options, share):
    player = selection.PLAYERS[name](num_permutations=12, period=1, num_groups=3, **options)
    one = lambda best_group, seed: learn(player, 600, best_group, seed)[-100:].mean()
    learned = jax.vmap(one)(jnp.repeat(jnp.arange(3), 2), jnp.tile(jnp.arange(2), 3))
    assert (learned > share).all(), learned  # by chance 1/3


@pytest.mark.parametrize("name", ["uniform", "round_robin"])
def test_uniform_players_give_every_group_its_share(name):
    shares = learn(selection.PLAYERS[name](num_permutations=12), 10)
    np.testing.assert_allclose(shares, 1 / 3, atol=1e-6)


def test_prioritized_draws_follow_difficulty_and_not_what_teaches():
    player = selection.PLAYERS["loss_prioritized"](num_permutations=12, period=1, min_error=1.0)
    shares = [learn(player, 10, group)[-1] for group in range(3)]
    assert shares[0] > shares[1] > shares[2] > 0.1


def test_groups_enter_the_curriculum_one_after_the_other_and_end_alike():
    player = selection.PLAYERS["curriculum"](
        num_permutations=12, permutations=CYCLES, steps=11, start_share=1 / 12
    )
    sizes = np.arange(2, 14).clip(max=12)  # after each of 12 steps
    for best_group in range(3):
        members = (sizes - 4 * best_group).clip(0, 4)
        np.testing.assert_allclose(learn(player, 12, best_group), members / sizes, atol=1e-6)
