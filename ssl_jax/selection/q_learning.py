"""A small double DQN that decides at each evaluation which group the coming samples are drawn from.

Mnih et al. 2015 (replay, target network, clipped errors, epsilon-greedy), targets of van Hasselt et al. 2015,
on state, actions and reward of the policy gradient; an action, a group, is held until the next evaluation.
"""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ssl_jax.losses import double_q_errors, epsilon_greedy
from ssl_jax.selection import state as state_lib
from ssl_jax.selection.state import Evaluation, Player, check_option, entropy


@flax.struct.dataclass
class QState:
    """Arrays of the player; P permutations, K groups, M transitions."""

    params: dict  # of the network that learns
    target_params: dict  # of its copy, which values what comes after
    opt_state: optax.OptState
    rows: jax.Array  # float32 [2 P], the state at the last evaluation
    group: jax.Array  # int32 [P], the group of each permutation since then
    action: jax.Array  # int32 [], the group that is drawn from since then
    memory: dict[str, jax.Array]  # rows_tm1 and rows_t [M, 2 P], a_tm1 int32 [M], r_t [M]
    errors: jax.Array  # float32 [2], E(t-1) and E(t-2)
    evaluations: jax.Array  # int32 [], how many there have been


def make(
    *,
    num_permutations: int,
    period: int,
    num_groups: int = 10,
    hidden: int = 64,
    learning_rate: float = 0.003,
    discount: float = 0.5,
    capacity: int = 256,
    batch_size: int = 32,
    updates: int = 4,
    target_period: int = 10,
    explore: int = 50,
    epsilon: float = 0.1,
    uniform_share: float = 0.2,
    draws: str = "independent",
) -> Player:
    """The Q-learning player.

    Args:
      num_permutations: P.
      period: training steps between two evaluations, and so between two actions.
      num_groups: K; groups can be fewer when permutations are too alike.
      hidden: width of the network.
      learning_rate: of Adam.
      discount: of the next state's value.
      capacity: M, the transitions remembered.
      batch_size: transitions in an update.
      updates: at each evaluation.
      target_period: evaluations between two copies to the target network.
      explore: evaluations at first whose actions are all random.
      epsilon: share of the later actions that are random.
      uniform_share: of the draws, over the whole set, so that the solver sees more than one group.
      draws: see `state.from_probability`.

    Raises:
      InputError: an option that does not fit.
    """
    options = locals()
    for name in ("period", "num_groups", "capacity", "batch_size", "updates", "target_period"):
        check_option(options[name] >= 1, name, options[name], "at least 1")
    for name in ("discount", "epsilon", "uniform_share"):
        check_option(0 <= options[name] <= 1, name, options[name], "in [0, 1]")
    check_option(hidden >= 1, "hidden", hidden, "at least 1")
    check_option(learning_rate > 0, "learning_rate", learning_rate, "above 0")
    check_option(explore >= 0, "explore", explore, "at least 0")
    num_groups = min(num_groups, num_permutations)
    network = state_lib.GroupNetwork(num_groups, hidden)
    optimizer = optax.adam(learning_rate)

    def init(key):
        rows = jnp.zeros((2 * num_permutations,))
        params = network.init(key, rows)
        transition = {"rows_tm1": rows, "a_tm1": jnp.int32(0), "r_t": jnp.float32(0), "rows_t": rows}
        return QState(
            params=params,
            target_params=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            rows=rows,
            group=jnp.zeros((num_permutations,), jnp.int32),  # as yet all are in one, which is drawn from
            action=jnp.zeros((), jnp.int32),
            memory=jax.tree.map(lambda of: jnp.zeros((capacity, *of.shape), of.dtype), transition),
            errors=jnp.zeros((2,)),
            evaluations=jnp.zeros((), jnp.int32),
        )

    def probability(state):
        member = state.group == state.action
        member = jnp.where(member.any(), member, True)  # a group that is empty stands for the whole set
        return (1 - uniform_share) * member / member.sum() + uniform_share / num_permutations

    def loss(params, target_params, batch):
        q_tm1, a_tm1, r_t = network.apply(params, batch["rows_tm1"]), batch["a_tm1"], batch["r_t"]
        q_t = [network.apply(of, batch["rows_t"]) for of in (target_params, params)]  # value, selector
        errors = double_q_errors(q_tm1, a_tm1, r_t, jnp.full_like(r_t, discount), *q_t)
        return optax.losses.huber_loss(errors).mean()

    def learn(key, state, memory, stored):
        """Steps of Adam on the first `stored` rows, with rewards in units of their root mean square."""
        scale = jnp.sqrt(jnp.square(memory["r_t"]).sum() / jnp.maximum(stored, 1)) + 1e-8
        memory = memory | {"r_t": memory["r_t"] / scale}

        def update(carry, key):
            params, opt_state = carry
            rows = jax.random.randint(key, (batch_size,), 0, jnp.maximum(stored, 1))
            batch = jax.tree.map(lambda column: column[rows], memory)
            value, gradient = jax.value_and_grad(loss)(params, state.target_params, batch)
            change, opt_state = optimizer.update(gradient, opt_state)
            return (optax.apply_updates(params, change), opt_state), value

        # An empty memory's transitions are all zero, as is the new network's every answer: no gradient.
        keys = jax.random.split(key, updates)
        (params, opt_state), values = jax.lax.scan(update, (state.params, state.opt_state), keys)
        return params, opt_state, values.mean()

    def observe(key, state, evaluation: Evaluation):
        learn_key, act_key = jax.random.split(key)
        n, error = state.evaluations, 1 - evaluation.accuracy.mean()
        reward = state_lib.extrapolation_reward(error, state.errors, n)
        rows = state_lib.sorted_rows(evaluation)
        now = {"rows_tm1": state.rows, "a_tm1": state.action, "r_t": reward, "rows_t": rows}
        slot = jnp.where(n < 2, capacity, (n - 2) % capacity)  # without a reward there is no transition
        memory = jax.tree.map(lambda past, row: past.at[slot].set(row, mode="drop"), state.memory, now)
        stored = jnp.clip(n - 1, 0, capacity)
        params, opt_state, td_loss = learn(learn_key, state, memory, stored)
        target_params = optax.periodic_update(params, state.target_params, n + 1, target_period)
        chance = jnp.where(n < explore, 1.0, epsilon)
        state = QState(
            params=params,
            target_params=target_params,
            opt_state=opt_state,
            rows=rows,
            group=state_lib.group_permutations(evaluation, num_groups),
            action=epsilon_greedy(act_key, network.apply(params, rows)[None], chance)[0],
            memory=memory,
            errors=jnp.stack([error, state.errors[0]]),
            evaluations=n + 1,
        )
        spread = entropy(probability(state))
        return state, {"error": error, "reward": reward, "td_loss": td_loss, "entropy": spread}

    return state_lib.from_probability(init, probability, observe, period, draws=draws)
