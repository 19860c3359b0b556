"""The paper's player: a policy network trained by REINFORCE beside the puzzle solver.

Büchler, Brattoli and Ommer 2018, Sec. 3.2; made precise in the docstrings where the paper is silent.
At evaluation t the selection error is E(t). The reward of everything drawn since evaluation t-1 is how
far E(t) fell below the linear extrapolation of the two errors before,

    r(t) = (2 E(t-1) - E(t-2)) - E(t),

and the policy moves towards the groups that were drawn more often than expected when r(t) was above its
moving average.
"""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ssl_jax.selection import state as state_lib
from ssl_jax.selection.state import Evaluation, Player, check_option


@flax.struct.dataclass
class PolicyState:
    """Arrays of the policy-gradient player; K groups, P permutations.

    Attributes:
      params: of the policy network.
      opt_state: of its optimizer.
      rows: float32 [2 P], the state it acts on, measured at the last evaluation.
      group: int32 [P], the group of each permutation since the last evaluation.
      count: float32 [K], how often each group was drawn since the last evaluation.
      errors: float32 [2], E(t-1) and E(t-2).
      reward_mean: float32 [], moving average of the reward (REINFORCE's baseline).
      reward_square: float32 [], moving average of the squared advantage, for its scale.
      evaluations: int32 [], how many there have been.
    """

    params: dict
    opt_state: optax.OptState
    rows: jax.Array
    group: jax.Array
    count: jax.Array
    errors: jax.Array
    reward_mean: jax.Array
    reward_square: jax.Array
    evaluations: jax.Array


def make(
    *,
    num_permutations: int,
    period: int,
    num_groups: int = 10,
    hidden: int = 64,
    learning_rate: float = 0.01,
    entropy_bonus: float = 0.01,
    baseline_decay: float = 0.9,
) -> Player:
    """The policy-gradient player.

    Args:
      num_permutations: P.
      period: training steps between two evaluations, and so between two policy updates.
      num_groups: K; groups can be fewer when permutations are too alike.
      hidden: width of the policy network.
      learning_rate: of Adam, for the policy network.
      entropy_bonus: weight of the entropy (nats) of the permutations drawn in the objective. The reward is
        a second difference of small errors, mostly noise; the bonus is what keeps the policy from
        following it.
      baseline_decay: of the moving averages of reward and squared advantage.

    Raises:
      InputError: an option that does not fit.
    """
    check_option(period >= 1, "period", period, "at least 1")
    check_option(num_groups >= 1, "num_groups", num_groups, "at least 1")
    num_groups = min(num_groups, num_permutations)
    network = state_lib.GroupNetwork(num_groups, hidden)
    optimizer = optax.adam(learning_rate)

    def init(key):
        rows = jnp.zeros((2 * num_permutations,))
        params = network.init(key, rows)
        return PolicyState(
            params=params,
            opt_state=optimizer.init(params),
            rows=rows,
            # Nothing is known yet: permutations are dealt to the groups in turn.
            group=jnp.arange(num_permutations, dtype=jnp.int32) % num_groups,
            count=jnp.zeros((num_groups,)),
            errors=jnp.zeros((2,)),
            reward_mean=jnp.zeros(()),
            reward_square=jnp.zeros(()),
            evaluations=jnp.zeros((), jnp.int32),
        )

    def log_probability(state):
        return state_lib.member_log_probability(network.apply(state.params, state.rows), state.group)

    def choose(key, state, batch_size):
        index = jax.random.categorical(key, log_probability(state), shape=(batch_size,))
        count = state.count.at[state.group[index]].add(1)
        return state.replace(count=count), index.astype(jnp.int32)

    def objective(params, state, advantage):
        """REINFORCE: the mean score of the draws times their advantage, plus the entropy bonus."""
        logits = network.apply(params, state.rows)
        share = state.count / jnp.maximum(state.count.sum(), 1)  # [K]
        # The log-probability of the drawn permutations, of which all in a group have the same.
        score = share @ logits - share.sum() * jax.nn.logsumexp(logits[state.group])
        # Of the permutations, not of the groups: largest where all permutations are drawn alike.
        log_member = state_lib.member_log_probability(logits, state.group)  # [P]
        spread = -(jnp.exp(log_member) * log_member).sum()
        return -(advantage * score + entropy_bonus * spread), spread

    def observe(key, state, evaluation: Evaluation):
        del key
        error = 1 - evaluation.accuracy.mean()
        known = (state.evaluations >= 2).astype(jnp.float32)
        reward = state_lib.extrapolation_reward(error, state.errors, state.evaluations)
        difference = known * (reward - state.reward_mean)
        # The first reward sets the averages, later ones move them.
        rate = jnp.where(state.evaluations == 2, 1.0, 1 - baseline_decay) * known
        reward_square = state.reward_square + rate * (jnp.square(difference) - state.reward_square)
        advantage = difference / (jnp.sqrt(reward_square) + 1e-8)
        gradient, spread = jax.grad(objective, has_aux=True)(state.params, state, advantage)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = PolicyState(
            params=params,
            opt_state=opt_state,
            rows=state_lib.sorted_rows(evaluation),
            group=state_lib.group_permutations(evaluation, num_groups),
            count=jnp.zeros_like(state.count),
            errors=jnp.stack([error, state.errors[0]]),
            reward_mean=state.reward_mean + rate * (reward - state.reward_mean),
            reward_square=reward_square,
            evaluations=state.evaluations + 1,
        )
        metrics = {"error": error, "reward": reward, "advantage": advantage}
        return state, metrics | {"baseline": state.reward_mean, "entropy": spread}

    return Player(
        init=init,
        choose=choose,
        observe=observe,
        probability=lambda state: jnp.exp(log_probability(state)),
        period=period,
    )
