"""Dueling DQN as pure functions, and its configs; whole runs are in test_dueling_dqn_run.py."""

import functools
import math
import types
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax.atari.replay import PRIORITY_FLOOR, Replay, Transitions
from ssl_jax.experiments import dueling_dqn
from ssl_jax.experiments.dueling_dqn import Exploration
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import mesh as mesh_lib
from ssl_jax.runtime.checkpoints import Checkpoints
from ssl_jax.runtime.errors import InputError

CONFIG = Path(__file__).parents[1] / "configs" / "dueling_dqn.py"
KEY = jax.random.PRNGKey(0)
RATE, NORM, EPSILON = 1e-2, 0.02, 1e-3
# The smallest frames that the trunk takes. With this epsilon Adam's first steps are no mere signs of
# gradients, so that rounding of those near zero does not show; and gradients are long enough to be clipped.
SMALL = {
    "protocol.frame_size": (36, 36),
    "network.hidden": 8,
    "train.batch_size": 4,
    "train.learning_rate": RATE,
    "train.max_gradient_norm": NORM,
    "train.optimizer_epsilon": EPSILON,
}


FOUR = {"environments.num": 4}
# Most programs run once or twice, and take longer to compile than to run.
pytestmark = pytest.mark.usefixtures("little_optimization")


def load(arg="smoke", **overrides):
    return config_lib.load(f"{CONFIG}:{arg}", {key: str(value) for key, value in (FOUR | overrides).items()})


def make_setup(arg="smoke", **overrides):
    return dueling_dqn.setup_from_config(load(arg, **SMALL | overrides))


def refused(arg="smoke", **overrides) -> str:
    """The one sentence with which a config is refused."""
    with pytest.raises(InputError) as caught:
        dueling_dqn.setup_from_config(load(arg, **overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_close(left, right, **tolerance):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for some, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(some, other, **tolerance)


def assert_same(left, right):
    assert_close(left, right, rtol=0, atol=0)


def copy(tree):
    """On the host, out of reach of donation."""
    return jax.tree.map(np.array, tree)


def noise(shapes, seed):
    """Parameters of those shapes, as large as fresh ones; nothing to compile."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        bound = math.prod(leaf.shape[:-1]) ** -0.5 if len(leaf.shape) > 1 else 0.05
        return jnp.asarray(rng.uniform(-bound, bound, leaf.shape), leaf.dtype)

    return jax.tree.map(draw, shapes)


def made_up_agent(setup, seed=0):
    """An agent in the midst of things, of a setup with one: its target network is not its network."""
    shapes = jax.eval_shape(functools.partial(dueling_dqn.create_state, setup), KEY).agent
    return shapes.replace(
        params=noise(shapes.params, seed + 1),
        target_params=noise(shapes.params, seed + 2),
        opt_state=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes.opt_state),
        best_params=noise(shapes.params, seed + 3),
        best_return=jnp.float32(-3),
        best_step=jnp.int32(8),
    )


def made_up_batches(num, size=4, seed=0) -> Transitions:
    """Transitions [num, size, ...] of noise, some at the end of an episode, with rewards that matter."""
    rng = np.random.default_rng(seed)
    return Transitions(
        s_tm1=jnp.asarray(rng.integers(256, size=(num, size, 36, 36, 4), dtype=np.uint8)),
        a_tm1=jnp.asarray(rng.integers(6, size=(num, size))),
        r_t=jnp.asarray(rng.normal(0, 2, (num, size)), jnp.float32),
        discount_t=jnp.asarray(rng.choice([0.0, 0.97], (num, size)), jnp.float32),
        s_t=jnp.asarray(rng.integers(256, size=(num, size, 36, 36, 4), dtype=np.uint8)),
        indices=jnp.zeros((num, size), jnp.int32),
        weights=jnp.asarray(rng.uniform(0.2, 1, (num, size)), jnp.float32),
    )


# --- The same, written out once more


def q_values(setup, params, s):
    return setup.network.apply({"params": params}, s)


def td_errors_by_hand(setup, params, target_params, batch, double_q=True):
    """Errors float32 [batch_size], transition by transition."""
    q_tm1 = q_values(setup, params, batch.s_tm1)
    target, online = q_values(setup, target_params, batch.s_t), q_values(setup, params, batch.s_t)
    errors = []
    for i in range(len(batch.r_t)):
        action = jnp.argmax(online[i] if double_q else target[i])
        value = jax.lax.stop_gradient(batch.r_t[i] + batch.discount_t[i] * target[i, action])
        errors.append(value - q_tm1[i, batch.a_tm1[i]])
    return jnp.stack(errors)


def q_gradient_by_hand(setup, params, target_params, batch, double_q=True):
    """Loss, errors and gradient of all parameters; that of an auxiliary head is zero."""

    def loss(params):
        errors = td_errors_by_hand(setup, params, target_params, batch, double_q)
        size = jnp.abs(errors)
        huber = jnp.where(size <= 1, errors**2 / 2, size - 0.5)
        return (batch.weights * huber).mean(), errors

    (value, errors), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return value, errors, gradient


class AdamByHand:
    """Kingma and Ba 2015, Algorithm 1, on gradients cut to a norm."""

    def __init__(self, rate=RATE):
        self.rate, self.t, self.mean, self.square = rate, 0, None, None

    def step(self, params, gradient):
        gradient = copy(gradient)
        norm = np.sqrt(sum((leaf**2).sum(dtype=np.float64) for leaf in jax.tree.leaves(gradient)))
        assert norm > 1.1 * NORM  # so that cutting shows
        gradient = jax.tree.map(lambda g: g * np.float32(NORM / norm), gradient)
        if self.mean is None:
            self.mean = self.square = jax.tree.map(np.zeros_like, gradient)
        self.t += 1
        self.mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, self.mean, gradient)
        self.square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, self.square, gradient)
        first, second = 1 - 0.9**self.t, 1 - 0.999**self.t

        def move(p, m, v):
            return np.asarray(p) - self.rate * (m / first) / (np.sqrt(v / second) + EPSILON)

        return jax.tree.map(move, params, self.mean, self.square)


# --- Updates


@pytest.fixture(scope="module")
def setup():
    return make_setup()


@pytest.fixture(scope="module")
def agent(setup):
    return made_up_agent(setup)


@pytest.fixture(scope="module")
def improve(setup):
    return jax.jit(functools.partial(dueling_dqn.improve, setup))


def improved_by_hand(setup, agent, batches, double_q):
    """Parameters after the updates; errors and losses of each."""
    params, adam, errors, losses = agent.params, AdamByHand(), [], []
    gradient_of = jax.jit(functools.partial(q_gradient_by_hand, setup, double_q=double_q))
    for i in range(len(batches.r_t)):
        batch = jax.tree.map(lambda x, i=i: x[i], batches)
        loss, error, gradient = gradient_of(params, agent.target_params, batch)
        params = adam.step(params, gradient)
        errors.append(error)
        losses.append(loss)
    return params, np.stack(errors), float(np.mean(losses))


@pytest.mark.parametrize("double_q", [True, False])
def test_two_updates_are_those_worked_out_by_hand(double_q, setup, agent, improve):
    batches = made_up_batches(2)
    if not double_q:
        improve = jax.jit(functools.partial(dueling_dqn.improve, make_setup(**{"train.double_q": False})))
    result, errors, metrics = improve(0, 0, KEY, agent, batches)
    params, expected_errors, loss = improved_by_hand(setup, agent, batches, double_q)
    np.testing.assert_allclose(errors, expected_errors, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["train/q_loss"], loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["train/td_error"], np.abs(expected_errors).mean(), rtol=1e-4)
    assert_close(result.params, params, rtol=1e-4, atol=1e-6)
    largest = max(float(jnp.abs(a - b).max()) for a, b in zip(
        jax.tree.leaves(params), jax.tree.leaves(agent.params), strict=True))  # fmt: skip
    assert largest > 1e-3  # they did move
    assert_same(result.best_params, agent.best_params)


def test_double_and_plain_q_learning_differ_here(setup, agent):
    batch = jax.tree.map(lambda x: x[0], made_up_batches(1, 16))
    errors = jax.jit(functools.partial(td_errors_by_hand, setup), static_argnums=3)
    double, plain = (errors(agent.params, agent.target_params, batch, double_q) for double_q in (True, False))
    over = np.asarray(batch.discount_t) == 0
    np.testing.assert_array_equal(double[over], plain[over])
    assert (double[~over] < plain[~over]).any()
    assert (double[~over] <= plain[~over] + 1e-5).all()  # the largest of the target's values is larger


def test_a_scan_does_what_unrolled_updates_do(setup, agent, improve, monkeypatch):
    batches = made_up_batches(2)
    unrolled = improve(0, 9, KEY, agent, batches)
    monkeypatch.setattr(dueling_dqn, "layers", types.SimpleNamespace(fast_on_cpu=lambda: False))
    scanning = functools.partial(dueling_dqn.improve, setup)
    assert "scan" in str(jax.make_jaxpr(scanning)(0, 9, KEY, agent, batches))
    assert_close(jax.jit(scanning)(0, 9, KEY, agent, batches), unrolled, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("before", "due"),
    [(0, False), (7, False), (8, True), (9, True), (10, False), (17, False), (18, True), (19, True)],
)
def test_the_target_network_is_copied_when_the_count_passes_a_multiple(before, due, agent, improve):
    """Of 10, the smoke preset's period, with two updates at a time."""
    result, _, _ = improve(0, before, KEY, agent, made_up_batches(2))
    assert_same(result.target_params, result.params if due else agent.target_params)


def test_epsilon_falls_in_a_line_after_the_random_phase():
    exploration = Exploration(random_steps=100, decay_steps=200, final_epsilon=0.1)
    steps = {0: 1, 99: 1, 100: 1, 150: 0.775, 200: 0.55, 300: 0.1, 301: 0.1, 1_000_000: 0.1}
    for step, epsilon in steps.items():
        np.testing.assert_allclose(exploration.epsilon(jnp.int32(step)), epsilon, rtol=1e-6)
    at_once = Exploration(random_steps=100, decay_steps=0, final_epsilon=0.1)
    np.testing.assert_allclose([at_once.epsilon(jnp.int32(step)) for step in (100, 101)], [1, 0.1], rtol=1e-6)


def test_actions_are_random_first_and_greedy_in_the_end():
    setup = make_setup(**{"environments.num": 32, "exploration.random_steps": 320, "replay.capacity": 640,
                          "exploration.decay_steps": 320, "exploration.final_epsilon": 0.0,
                          "train.agent_steps": 640})  # fmt: skip
    agent = made_up_agent(setup)
    state = dueling_dqn.State(step=jnp.int32(0), updates=jnp.int32(0), key=KEY, agent=agent, replay=None)
    actor = dueling_dqn.make_actor(setup)
    s_t = np.asarray(made_up_batches(1, 32).s_tm1[0])
    greedy = jax.jit(functools.partial(q_values, setup))(agent.params, s_t).argmax(-1)
    actions = {step: np.asarray(actor(state.replace(step=jnp.int32(step)), s_t)) for step in (0, 1, 20, 21)}
    assert len(set(actions[0])) == 6
    assert (actions[0] != actions[1]).any()  # each step draws anew
    assert (actions[0] != greedy).sum() > 16
    np.testing.assert_array_equal(actions[20], greedy)
    np.testing.assert_array_equal(actions[21], greedy)


@pytest.mark.parametrize(
    ("num", "updates", "between"), [(1, 1, 4), (2, 1, 2), (4, 1, 1), (8, 2, 1), (32, 8, 1)]
)
def test_one_update_for_four_agent_steps_whatever_the_number_of_environments(num, updates, between):
    setup = make_setup(**{"environments.num": num, "exploration.random_steps": 160, "replay.capacity": 640})
    assert (setup.updates_per_step, setup.steps_between_updates) == (updates, between)
    assert 4 * setup.updates_per_step == num * setup.steps_between_updates
    assert setup.num_steps == math.ceil(240 / num)


# --- The task beside it


@pytest.fixture(scope="module")
def tasks():
    """Of both schedules: setup, agent, and the jitted update."""
    found = {}
    for schedule in ("joint", "alternate"):
        setup = make_setup("smoke,aux=sequence", **{"auxiliary.schedule": schedule, "auxiliary.weight": 0.5})
        agent = made_up_agent(setup)
        step = jax.jit(functools.partial(dueling_dqn.update, setup))
        found[schedule] = setup, agent, step
    return found


def gradients_by_hand(setup, params, target_params, batch):
    """That of Q-learning, and that of the task at the same parameters, each of all parameters."""
    inputs, labels = setup.task.function(KEY, batch.s_tm1)

    def task_loss(params):
        logits = setup.network.apply({"params": params}, inputs, method="auxiliary")
        chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return (jnp.log(jnp.exp(logits).sum(-1)) - chosen).mean()

    *_, of_q = q_gradient_by_hand(setup, params, target_params, batch)
    return of_q, jax.grad(task_loss)(params)


def part(tree, *names):
    return {name: tree[name] for name in names}


Q_PARTS = ("trunk", "value_head", "advantage_head")
TASK_PARTS = ("trunk", "auxiliary_head")
BATCH = jax.tree.map(lambda x: x[0], made_up_batches(1))


@pytest.fixture(scope="module")
def both_gradients(tasks):
    """`gradients_by_hand` of params, target_params and batch; they do not depend on the schedule."""
    setup, *_ = tasks["joint"]
    return jax.jit(functools.partial(gradients_by_hand, setup))


def test_joint_is_one_step_by_the_weighted_sum(tasks, both_gradients):
    _, agent, step = tasks["joint"]
    (params, opt_state), (_, metrics) = step(
        agent.target_params, (agent.params, agent.opt_state), (BATCH, KEY), 1.0
    )
    of_q, of_task = both_gradients(agent.params, agent.target_params, BATCH)
    both = jax.tree.map(lambda q, task: q + 0.5 * task, of_q, of_task)
    assert_close(params, AdamByHand().step(agent.params, both), rtol=1e-4, atol=1e-6)
    assert opt_state.keys() == {"q"}
    for name, gradient in (("q", of_q), ("auxiliary", of_task)):
        norm = np.sqrt(sum((np.asarray(x) ** 2).sum() for x in jax.tree.leaves(gradient["trunk"])))
        np.testing.assert_allclose(metrics[f"gradient/{name}_norm"], norm, rtol=1e-4)


def test_alternate_is_a_q_step_and_then_a_task_step_from_there(tasks, both_gradients):
    _, agent, step = tasks["alternate"]
    (params, opt_state), _ = step(agent.target_params, (agent.params, agent.opt_state), (BATCH, KEY), 1.0)
    of_q, _ = both_gradients(agent.params, agent.target_params, BATCH)
    between = agent.params | AdamByHand().step(part(agent.params, *Q_PARTS), part(of_q, *Q_PARTS))
    _, of_task = both_gradients(between, agent.target_params, BATCH)
    end = between | AdamByHand(0.5 * RATE).step(part(between, *TASK_PARTS), part(of_task, *TASK_PARTS))
    assert_close(params, end, rtol=1e-4, atol=1e-6)
    assert opt_state.keys() == {"q", "auxiliary"}
    _, wrong = both_gradients(agent.params, agent.target_params, BATCH)  # at the old parameters
    assert (
        abs(np.asarray(wrong["trunk"]["conv1"]["kernel"] - of_task["trunk"]["conv1"]["kernel"])).max() > 1e-5
    )


@pytest.mark.parametrize("schedule", ["joint", "alternate"])
def test_the_task_moves_no_q_head_and_q_learning_not_the_tasks(schedule, tasks):
    setup, agent, step = tasks[schedule]
    of_q = functools.partial(dueling_dqn.q_gradient, setup)
    q, _ = jax.eval_shape(of_q, agent.params, agent.target_params, BATCH)
    of_task = functools.partial(dueling_dqn.auxiliary_gradient, setup)
    task, _ = jax.eval_shape(of_task, agent.params, BATCH.s_tm1, KEY)
    assert q.keys() == set(Q_PARTS)
    assert task.keys() == set(TASK_PARTS)
    nothing_to_learn = BATCH._replace(weights=jnp.zeros(4))
    carry = agent.params, agent.opt_state
    (params, _), _ = step(agent.target_params, carry, (nothing_to_learn, KEY), 1.0)
    for name in ("value_head", "advantage_head"):
        assert_same(params[name], agent.params[name])
    for name in TASK_PARTS:
        moves = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), params[name], agent.params[name])
        assert max(jax.tree.leaves(moves)) > 1e-4


def test_gradients_compared_by_hand():
    tree = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    parallel = jax.tree.map(lambda x: 2 * x, tree)
    orthogonal = {"a": jnp.array([0.0, 7.0]), "b": jnp.array([[0.0]])}
    slanted = {"a": jnp.array([5.0, 0.0]), "b": jnp.array([[0.0]])}  # 3 / 5
    cases = (
        (parallel, 10, 1),
        (jax.tree.map(jnp.negative, tree), 5, -1),
        (orthogonal, 7, 0),
        (slanted, 5, 0.6),
    )
    for other, norm, cosine in cases:
        found = dueling_dqn.compare_gradients(tree, other)
        assert found.keys() == {"gradient/q_norm", "gradient/auxiliary_norm", "gradient/cosine"}
        np.testing.assert_allclose(found["gradient/q_norm"], 5, rtol=1e-6)
        np.testing.assert_allclose(found["gradient/auxiliary_norm"], norm, rtol=1e-6)
        np.testing.assert_allclose(found["gradient/cosine"], cosine, atol=1e-6)
    nothing = jax.tree.map(jnp.zeros_like, tree)
    assert dueling_dqn.compare_gradients(tree, nothing)["gradient/cosine"] == 0


def moving_squares(num, frames=4):
    """Stacks uint8 [num, 36, 36, frames] in which a square crosses the picture from left to right."""
    stacks = np.full((num, 36, 36, frames), 60, np.uint8)
    for i in range(num):
        for t in range(frames):
            stacks[i, 5 + 6 * i : 11 + 6 * i, 2 + 8 * t : 8 + 8 * t, t] = 250
    return jnp.asarray(stacks)


@pytest.mark.parametrize("schedule", ["alternate", "joint"])
def test_the_order_of_moving_squares_is_learned(schedule, all_optimizations):
    setup = make_setup(
        "smoke,aux=sequence",
        **{
            "auxiliary.schedule": schedule,
            "network.hidden": 16,
            "train.learning_rate": 3e-3,
            "train.max_gradient_norm": 10.0,
            "train.optimizer_epsilon": 1e-8,
        },
    )
    agent = made_up_agent(setup)
    fours = lambda x: jnp.tile(x, (4,) + (1,) * (x.ndim - 1))
    batch = jax.tree.map(fours, BATCH._replace(s_tm1=moving_squares(4), s_t=moving_squares(4)))
    step = jax.jit(functools.partial(dueling_dqn.update, setup), compiler_options=all_optimizations)
    carry, accuracies = (agent.params, agent.opt_state), []
    for i in range(250):
        carry, (_, metrics) = step(agent.target_params, carry, (batch, jax.random.fold_in(KEY, i)))
        accuracies.append(metrics["auxiliary/accuracy"])
    assert np.mean(accuracies[:20]) < 0.2
    assert np.mean(accuracies[-20:]) > 0.5  # chance: 1 / 24


# --- A vector step: memory, draws, updates, priorities

PRIORITIZED = {
    "replay.priority_exponent": 0.6,
    "exploration.random_steps": 20,
    "replay.capacity": 200,
    "replay.importance_steps": 240,
}


def made_up_row(setup, seed):
    """What one agent's environments might show: noise, with an episode's end now and then."""
    rng = np.random.default_rng(seed)
    num = setup.play.num
    return {
        "frame": rng.integers(256, size=(num, 36, 36), dtype=np.uint8),
        "first": rng.random(num) < (0.1 if seed % 1000 else 1.0),
        "r_t": rng.normal(0, 1, num).astype(np.float32),
        "discount_t": (rng.random(num) < 0.9).astype(np.float32),
        "action": rng.integers(6, size=num).astype(np.uint8),
    }


def made_up_state(setup, seed=0, rows=25):
    """One agent after some vector steps; the first row of seed 0, 1000, ... begins an episode everywhere."""
    replay = setup.replay.init()
    for i in range(rows):
        replay = add(setup.replay, replay, made_up_row(setup, 1000 * seed + i))
    return dueling_dqn.State(
        step=jnp.int32(rows),
        updates=jnp.int32(8),
        key=KEY,
        agent=made_up_agent(setup, 10 * seed),
        replay=replay,
    )


@functools.partial(jax.jit, static_argnums=0)
def add(memory, replay, row):
    return memory.add(replay, **row)


@pytest.fixture(scope="module")
def prioritized():
    return make_setup(**PRIORITIZED)


@pytest.fixture(scope="module")
def state(prioritized):
    """On the host: to be copied, for a learner consumes what it is given."""
    return copy(made_up_state(prioritized))


def on_device(tree):
    return jax.tree.map(jnp.array, tree)


@pytest.fixture(scope="module")
def three_steps(prioritized, state):
    """What the learner makes of three vector steps with one update each: states and metrics."""
    learner, running, found = dueling_dqn.make_learner(prioritized, 1), on_device(state), []
    for i in range(3):
        running, metrics = learner(running, made_up_row(prioritized, 500 + i))
        found.append((copy(running), copy(metrics)))
    return found


@pytest.fixture(scope="module")
def remember(prioritized):
    return jax.jit(functools.partial(dueling_dqn.remember, prioritized, 1))


@pytest.fixture(scope="module")
def improve_prioritized(prioritized):
    return jax.jit(functools.partial(dueling_dqn.improve, prioritized))


def test_priorities_are_the_errors_of_the_network_before_the_update(
    prioritized, state, three_steps, remember
):
    key = dueling_dqn.agent_keys(prioritized, KEY)
    replay, batches = remember(state.step, key, on_device(state.replay), made_up_row(prioritized, 500))
    batch = jax.tree.map(lambda x: x[0], batches)
    by_hand = jax.jit(functools.partial(td_errors_by_hand, prioritized))
    errors = by_hand(state.agent.params, state.agent.target_params, batch)
    expected = np.array(replay.weight).reshape(-1)
    indices, new = np.asarray(batch.indices), (np.abs(errors) + PRIORITY_FLOOR) ** 0.6
    for index in indices:
        expected[index] = new[indices == index].max()
    after, metrics = three_steps[0]
    np.testing.assert_allclose(after.replay.weight.reshape(-1), expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["train/td_error"], np.abs(errors).mean(), rtol=1e-4)
    assert (expected[indices] != 1).all()  # that of what was never drawn
    # Importance: after 25 of 60 vector steps beta has come 25 / 60 of its way from 0.4 to 1.
    weight = np.asarray(replay.weight).reshape(-1)[indices]
    np.testing.assert_allclose(batch.weights, (weight.min() / weight) ** (0.4 + 0.6 * 25 / 60), rtol=1e-5)


def test_a_vector_step_counts_itself_and_its_updates(prioritized, state, three_steps):
    after, _ = three_steps[-1]
    assert (after.step, after.updates) == (28, 11)
    assert_same(after.agent.target_params, three_steps[1][0].agent.params)  # the 10th update was due
    watcher = dueling_dqn.make_learner(prioritized, 0)
    watched, metrics = watcher(on_device(state), made_up_row(prioritized, 500))
    assert metrics == {}
    assert (watched.step, watched.updates) == (26, 8)
    assert_same(watched.agent, state.agent)
    np.testing.assert_array_equal(watched.replay.frame, three_steps[0][0].replay.frame)


def test_a_memory_on_the_host_changes_nothing(prioritized, state, three_steps):
    setup = make_setup(**PRIORITIZED, **{"replay.place": "host"})
    learner, running = dueling_dqn.make_learner(setup, 1), on_device(state)
    for i, (expected, expected_metrics) in enumerate(three_steps):
        running, metrics = learner(running, made_up_row(setup, 500 + i))
        assert_close(copy(running), expected, rtol=1e-4, atol=1e-6)
        assert_close(copy(metrics), expected_metrics, rtol=1e-4, atol=1e-6)
    assert running.replay.frame.devices() == {dueling_dqn.memory_device(setup)}


def test_two_agents_learn_what_each_would_alone(prioritized, state, remember, improve_prioritized):
    setup = make_setup(**PRIORITIZED, num_seeds=2)
    keys = dueling_dqn.agent_keys(setup, KEY)
    np.testing.assert_array_equal(keys[0], dueling_dqn.agent_keys(prioritized, KEY))
    states = state, copy(made_up_state(prioritized, 1))
    rows = made_up_row(prioritized, 500), made_up_row(prioritized, 501)

    alone, alone_metrics = [], []
    for key, one, row in zip(keys, states, rows, strict=True):
        replay, batches = remember(one.step, key, one.replay, row)
        agent, errors, metrics = improve_prioritized(one.step, one.updates, key, one.agent, batches)
        replay = prioritized.replay.update_priorities(replay, batches.indices.reshape(-1), errors.reshape(-1))
        alone.append((agent, replay))
        alone_metrics.append(metrics)

    stack = lambda *leaves: np.stack(leaves)
    both = state.replace(
        agent=jax.tree.map(stack, *(one.agent for one in states)),
        replay=jax.tree.map(stack, *(one.replay for one in states)),
    )
    result, metrics = dueling_dqn.make_learner(setup, 1)(on_device(both), jax.tree.map(stack, *rows))
    together = result.agent, result.replay
    assert_close(copy(together), jax.tree.map(stack, *alone), rtol=1e-3, atol=1e-5)
    means = jax.tree.map(lambda *x: np.mean(x), *alone_metrics)
    assert_close(copy(metrics), means, rtol=1e-3, atol=1e-5)
    assert (result.step, result.updates) == (26, 9)


def test_only_several_agents_have_an_axis():
    shapes = {}
    for num in (1, 3):
        setup = make_setup(num_seeds=num)
        found = jax.eval_shape(functools.partial(dueling_dqn.create_state, setup), KEY)
        shapes[num] = [leaf.shape for leaf in jax.tree.leaves((found.agent, found.replay))]
        assert found.step.shape == found.updates.shape == ()
    assert () in shapes[1]  # best_return has no axis at all
    assert shapes[3] == [(3, *shape) for shape in shapes[1]]


def test_rows_hold_what_is_learned_from():
    step = dueling_dqn.TimeStep(
        frame=np.arange(4 * 9).reshape(4, 3, 3).astype(np.uint8),
        s_t=None,
        r_t=np.float32([-7, 0.5, 0, 400]),
        discount_t=np.float32([1, 0, 1, 1]),
        first=np.array([False, False, True, False]),
        last=None,
        lives=None,
        episode_return=None,
        episode_length=None,
    )
    actions = np.int32([5, 0, 1, 2])
    row = dueling_dqn.make_row(make_setup(), step, actions)
    np.testing.assert_array_equal(row["r_t"], [-1, 0.5, 0, 1])
    assert row.keys() == {"frame", "first", "r_t", "discount_t", "action"}
    setup = make_setup(**{"num_seeds": 2, "environments.num": 2, "protocol.reward_clip": False})
    row = dueling_dqn.make_row(setup, step, actions)
    np.testing.assert_array_equal(row["r_t"], [[-7, 0.5], [0, 400]])
    np.testing.assert_array_equal(row["action"], [[5, 0], [1, 2]])
    np.testing.assert_array_equal(row["frame"][1, 0], step.frame[2])


# --- Starting from another run's trunk


def test_start_from_takes_the_trunk_of_either_kind_of_run(tmp_path):
    setup = make_setup()
    trunk = copy(made_up_agent(setup).params["trunk"])
    for name, state in (
        ("pretraining", {"params": {"encoder": trunk, "head": {"bias": np.zeros(2)}}}),
        ("agent", {"agent": {"params": {"trunk": trunk, "value_head": {"bias": np.zeros(1)}}}}),
    ):
        checkpoints = Checkpoints(tmp_path / name / "checkpoints")
        checkpoints.save(1, state, {})
        checkpoints.close()
        setup = make_setup(**{"network.start_from": tmp_path / name / "checkpoints"})
        assert_same(copy(dueling_dqn.load_trunk(setup)), trunk)
    state = jax.eval_shape(functools.partial(dueling_dqn.create_state, setup), KEY)
    assert state.agent.params["trunk"].keys() == trunk.keys()


def test_start_from_a_trunk_that_is_not_finite_names_the_tensor(tmp_path):
    trunk = copy(made_up_agent(make_setup()).params["trunk"])
    trunk["conv2"]["bias"][3] = np.nan
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, {"params": {"encoder": trunk}}, {})
    checkpoints.close()
    setup = make_setup(**{"network.start_from": tmp_path / "checkpoints"})
    with pytest.raises(
        InputError, match=r"config.network.start_from=\S+ holds NaN .* in conv2/bias \(1 of 64"
    ):
        dueling_dqn.create_state(setup, KEY)


def test_start_from_what_holds_no_trunk(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, {"params": {"decoder": np.zeros(3)}}, {})
    checkpoints.close()
    for path, sentence in (
        (tmp_path / "checkpoints", "holds neither an encoder of pre-training nor the trunk of a Q-network"),
        (tmp_path / "nothing", str(tmp_path / "nothing")),
    ):
        with pytest.raises(InputError) as caught:
            dueling_dqn.create_state(make_setup(**{"network.start_from": path}), KEY)
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)


# --- Bad input


def test_unknown_names():
    sentence = refused("smoke,game=Pnog")
    assert sentence.startswith("config.protocol: unknown Atari game 'Pnog', did you mean 'Pong'? known: ")
    assert "Breakout" in sentence
    assert "the name of the game, 'Pong', and set frame_skip" in refused("smoke,game=ALE/Pong-v5")
    with pytest.raises(InputError, match="did you mean 'sequence'"):
        load("smoke,aux=sequenze")
    assert "did you mean 'rotation'" in refused(**{"auxiliary.name": "rotatoin"})
    config = load()
    with config.unlocked():
        config.train.learning_rat = 0.1
    with pytest.raises(
        InputError, match=r"config\.train\.learning_rat', did you mean 'config\.train\.learning_rate'"
    ):
        dueling_dqn.setup_from_config(config)


@pytest.mark.parametrize(
    ("arg", "overrides", "says"),
    [
        ("smoke,aux=rotation", {"protocol.frame_size": (52, 60)}, ["rotation", "52 x 60", "square"]),
        ("smoke,aux=jigsaw", {"auxiliary.grid": (3, 3)}, ["jigsaw", "52 x 52", "3 x 3"]),
        ("paper,aux=jigsaw", {"auxiliary.grid": (5, 5)}, ["jigsaw", "84 x 84", "5 x 5"]),
        ("smoke,aux=sequence", {"protocol.stack": 1}, ["sequence", "stack of 1"]),
        ("smoke", {"environments.num": 6}, ["config.environments.num=6", "config.train.steps_per_update=4"]),
        ("smoke", {"environments.num": 0}, ["config.environments.num must be at least 1, not 0"]),
        ("smoke", {"num_seeds": 0}, ["config.num_seeds must be at least 1, not 0"]),
        ("smoke", {"exploration.random_steps": 19}, ["config.exploration.random_steps=19", "at least 20"]),
        ("smoke", {"protocol.frame_size": (84, 35)}, ["frame_size=(84, 35)", "at least 36 x 36"]),
        ("smoke", {"train.checkpoint_every": 7}, ["config.train.checkpoint_every=7 must be at least 8"]),
        ("smoke", {"evaluation.episodes": 3}, ["evaluation.episodes=3", "config.evaluation.num_envs=2"]),
        ("smoke", {"protocol.evaluation_episodes": 5}, ["config.protocol.evaluation_episodes=5"]),
        ("smoke", {"replay.capacity": 39}, ["config.replay.capacity=39 must be at least 40"]),
        ("smoke", {"environments.threads": -1}, ["config.environments.threads must be at least 0"]),
        ("smoke", {"network.hidden": 0}, ["config.network.hidden must be at least 1"]),
        ("smoke", {"network.motion_gain": 0.0}, ["config.network.motion_gain must be a number above 0"]),
        ("smoke", {"evaluation.video_frames": -1}, ["config.evaluation.video_frames must be at least 0"]),
        ("smoke", {"exploration.final_epsilon": 1.5}, ["final_epsilon must be a probability", "1.5"]),
        ("smoke", {"train.learning_rate": 0.0}, ["config.train.learning_rate must be above 0"]),
        ("smoke", {"auxiliary.weight": 0.0}, ["config.auxiliary.weight must be above 0"]),
        ("smoke", {"train.target_period": 0}, ["config.train.target_period must be at least 1"]),
        ("smoke", {"replay.place": "cloud"}, ["config.replay.place", "'device'", "'host'"]),
        ("smoke", {"train.agent_steps": 64},
         ["config.train.agent_steps=64 makes no update", "exploration.random_steps=64", "at least 65"]),
        ("smoke", {"train.agent_steps": 20},
         ["config.train.agent_steps=20 makes no update", "exploration.random_steps=64", "at least 65"]),
        ("smoke", {"exploration.random_steps": 300}, ["config.train.agent_steps=240", "at least 301"]),
        ("smoke", {"environments.num": 1, "train.steps_per_update": 128, "exploration.random_steps": 130},
         ["config.train.agent_steps=240 makes no update", "random_steps=130", "at least 257"]),
        ("smoke", {"train.target_period": 44},
         ["config.train.target_period=44 must be below the 44 updates", "config.train.agent_steps=240"]),
        ("smoke", {"replay.capacity": 40, "train.batch_size": 41},
         ["config.train.batch_size=41", "config.replay.capacity=40"]),
        ("smoke", {"replay.n_step": 0}, ["config.replay.n_step must be at least 1, not 0"]),
        ("smoke", {"replay.priority_exponent": -0.5}, ["config.replay.priority_exponent must be at least 0"]),
        ("smoke", {"replay.importance_exponent": 1.5}, ["replay.importance_exponent must lie in [0, 1]"]),
        ("smoke", {"train.gamma": 1.01}, ["config.train.gamma must lie in [0, 1], not 1.01"]),
        ("smoke", {"protocol.evaluation_epsilon": 1.0}, ["evaluation_epsilon=1.0 would score"]),
        ("smoke", {"seed": -1}, ["config.seed must be at least 0, not -1"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(arg, overrides, says):
    sentence = refused(arg, **overrides)
    for words in says:
        assert words in sentence


def test_sizes_that_just_fit():
    for arg, overrides in (
        ("smoke", {"exploration.random_steps": 20}),
        ("smoke", {"replay.capacity": 40}),
        ("smoke", {"train.checkpoint_every": 8}),
        ("smoke", {"train.target_period": 43}),
        ("smoke", {"train.target_period": 1, "train.agent_steps": 69}),
        # What happens at the end as well may be further off than the end.
        ("smoke", {f"train.{what}_every": 10_000 for what in ("log", "evaluate", "checkpoint")}),
        ("smoke", {"exploration.decay_steps": 10_000, "replay.importance_steps": 10_000}),
        ("smoke", {"protocol.frame_size": (36, 36)}),
        ("smoke,aux=jigsaw", {"auxiliary.grid": (4, 4)}),
        ("paper,aux=jigsaw", {"auxiliary.grid": (3, 3)}),
    ):
        dueling_dqn.setup_from_config(load(arg, **overrides))


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_a_memory_that_does_not_fit_says_what_would(num_seeds, monkeypatch):
    device = jax.devices()[0]
    for capacity, free in ((400, 500_000), (100_000, 77_777_777), (1_000_000, 2_000_000_000)):
        make = functools.partial(make_setup, num_seeds=num_seeds, **{"protocol.frame_size": (52, 52)})
        setup = make(**{"replay.capacity": capacity})
        monkeypatch.setattr(mesh_lib, "free_bytes", lambda device, free=free: free)
        with pytest.raises(InputError) as caught:
            dueling_dqn.check_memory(setup, device)
        sentence = str(caught.value)
        assert f"config.replay.capacity={capacity:,} transitions" in sentence
        assert ("for 3 agents" in sentence) == (num_seeds == 3)
        assert f"needs {num_seeds * setup.replay.num_bytes / 1e9:.2f} GB" in sentence
        assert f"{free / 1e9:.2f} GB are free" in sentence
        assert "place=host" not in sentence  # this is the host
        fitting = int(sentence.rpartition("config.replay.capacity=")[2].rstrip(".").replace(",", ""))
        dueling_dqn.check_memory(make(**{"replay.capacity": fitting}), device)
        with pytest.raises(InputError):
            dueling_dqn.check_memory(make(**{"replay.capacity": int(1.02 * fitting) + 8}), device)
    monkeypatch.setattr(mesh_lib, "free_bytes", lambda device: None)  # nobody says
    dueling_dqn.check_memory(setup, device)


def test_a_transition_takes_little_more_than_its_frame():
    memory = Replay(capacity=100_000, num_envs=4, n_step=3, priority_exponent=0.6)
    assert 84 * 84 < memory.num_bytes / 100_000 <= 7_300


@pytest.mark.parametrize(
    "arg", [None, "smoke", "paper,game=Breakout", "nature,game=Seaquest,aux=arrow_of_time"]
)
@pytest.mark.parametrize("aux", ["none", "rotation", "sequence", "jigsaw"])
def test_presets_are_good(arg, aux):
    config = config_lib.load(f"{CONFIG}:{arg}" if arg else str(CONFIG), {"auxiliary.name": aux})
    setup = dueling_dqn.setup_from_config(config)
    assert (setup.task is None) == (aux == "none")
    assert setup.replay.num_bytes < 7.5e9


def test_the_learning_rate_falls_over_the_last_share_of_the_training():
    setup = make_setup(
        "smoke", **{"environments.num": 4, "train.agent_steps": 240, "train.decay_share": 0.25}
    )
    assert [float(setup.rate_factor(step)) for step in (0, 45, 50, 59)] == pytest.approx(
        [1, 1, 10 / 15, 1 / 15]
    )
    assert make_setup("smoke", **{"train.decay_share": 0.0}).rate_factor(59) == 1


@pytest.mark.parametrize("max_norm", [4.0, 5.0, 6.0])
def test_clipping_is_that_of_optax(max_norm):
    gradient = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[-4.0]])}  # norm 5
    ours, theirs = dueling_dqn.clip_by_global_norm(max_norm), optax.clip_by_global_norm(max_norm)
    assert ours.init(gradient) == theirs.init(gradient)
    actual, state = ours.update(gradient, ours.init(gradient))
    expected, _ = theirs.update(gradient, theirs.init(gradient))
    assert state == theirs.init(gradient)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), actual, expected)


def test_no_gradient_at_all_stays_none():
    clip = dueling_dqn.clip_by_global_norm(1.0)
    zeros, _ = clip.update({"a": jnp.zeros(2)}, clip.init(None))
    np.testing.assert_array_equal(zeros["a"], [0, 0])


def test_half_the_rate_moves_the_parameters_half_as_far(tasks):
    _, agent, step = tasks["joint"]
    moved = []
    for rate in (1.0, 0.5):
        (params, _), _ = step(agent.target_params, (agent.params, agent.opt_state), (BATCH, KEY), rate)
        moved.append(jax.tree.map(jnp.subtract, params, agent.params))
    chex.assert_trees_all_close(jax.tree.map(lambda x: x / 2, moved[0]), moved[1], atol=1e-7)
