"""The paper's player: a policy network trained by REINFORCE beside the puzzle solver.

Büchler, Brattoli and Ommer 2018, Sec. 3.2; made precise in the docstrings where the paper is silent.
At evaluation t the selection error is E(t). The reward of everything drawn since evaluation t-1 is how
far E(t) fell below the linear extrapolation of the two errors before,

    r(t) = (2 E(t-1) - E(t-2)) - E(t),

and the policy moves towards the groups that were drawn more often than expected when r(t) was above its
moving average.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from ssl_jax.selection.state import Evaluation, Player, group_permutations, sorted_rows


class PolicyNetwork(nn.Module):
    """Two layers from the sorted state [2 P] to the logits of the groups [K].

    They are added to the logarithms of the groups' sizes, and the last layer starts at zero: the first
    policy is uniform over permutations.
    """

    num_groups: int
    hidden: int

    @nn.compact
    def __call__(self, rows: jax.Array) -> jax.Array:
        """State [2 P] -> logits [K]."""
        hidden = nn.tanh(nn.Dense(self.hidden)(rows))
        return nn.Dense(self.num_groups, kernel_init=nn.initializers.zeros)(hidden)


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
    """
    num_groups = min(num_groups, num_permutations)
    network = PolicyNetwork(num_groups, hidden)
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

    def group_log_probability(params, rows, group):
        size = jnp.zeros((num_groups,)).at[group].add(1)
        # A group starts with its share of the set. Equal shares for all groups would draw the members of
        # small ones tens of times as often, and the solver would learn to guess them.
        prior = jnp.where(size > 0, jnp.log(jnp.maximum(size, 1)), -1e9)  # empty groups: never
        logits = network.apply(params, rows) + prior
        return jax.nn.log_softmax(logits), size

    def log_probability(state):
        """Log-probability of each permutation [P]: of its group, then of a member, uniformly."""
        log_group, size = group_log_probability(state.params, state.rows, state.group)
        return (log_group - jnp.log(jnp.maximum(size, 1)))[state.group]

    def choose(key, state, batch_size):
        # Drawing a member of the joint distribution is drawing a group and then a member of it.
        index = jax.random.categorical(key, log_probability(state), shape=(batch_size,))
        count = state.count.at[state.group[index]].add(1)
        return state.replace(count=count), index.astype(jnp.int32)

    def objective(params, state, advantage):
        """REINFORCE: the mean score of the draws times their advantage, plus the entropy bonus."""
        log_group, size = group_log_probability(params, state.rows, state.group)
        share = state.count / jnp.maximum(state.count.sum(), 1)  # [K]
        score = jnp.where(size > 0, share * log_group, 0).sum()
        # Of the permutations, not of the groups: largest where all permutations are drawn alike.
        log_member = log_group - jnp.log(jnp.maximum(size, 1))
        entropy = -jnp.where(size > 0, jnp.exp(log_group) * log_member, 0).sum()
        return -(advantage * score + entropy_bonus * entropy), entropy

    def observe(key, state, evaluation: Evaluation):
        del key
        error = 1 - evaluation.accuracy.mean()
        expected = 2 * state.errors[0] - state.errors[1]
        # Two errors are needed for a line; before there are, nothing is rewarded.
        known = (state.evaluations >= 2).astype(jnp.float32)
        reward = known * (expected - error)
        difference = known * (reward - state.reward_mean)
        # The first reward sets the averages, later ones move them.
        rate = jnp.where(state.evaluations == 2, 1.0, 1 - baseline_decay) * known
        reward_square = state.reward_square + rate * (jnp.square(difference) - state.reward_square)
        advantage = difference / (jnp.sqrt(reward_square) + 1e-8)
        gradient, entropy = jax.grad(objective, has_aux=True)(state.params, state, advantage)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = PolicyState(
            params=params,
            opt_state=opt_state,
            rows=sorted_rows(evaluation),
            group=group_permutations(evaluation, num_groups),
            count=jnp.zeros_like(state.count),
            errors=jnp.stack([error, state.errors[0]]),
            reward_mean=state.reward_mean + rate * (reward - state.reward_mean),
            reward_square=reward_square,
            evaluations=state.evaluations + 1,
        )
        metrics = {
            "error": error,
            "reward": reward,
            "advantage": advantage,
            "baseline": state.reward_mean,
            "entropy": entropy,
        }
        return state, metrics

    return Player(
        init=init,
        choose=choose,
        observe=observe,
        probability=lambda state: jnp.exp(log_probability(state)),
        period=period,
    )
