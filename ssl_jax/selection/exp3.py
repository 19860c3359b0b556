"""An adversarial bandit whose arms are the groups of permutations, by rank of difficulty.

Auer, Cesa-Bianchi, Freund and Schapire 2002, "The nonstochastic multiarmed bandit problem", Secs. 3 and 8
(Exp3.S, whose weights can come back); for curricula, Graves et al. 2017, "Automated curriculum learning for
neural networks", whose reward is learning progress scaled by its history.

Of each group one knows how much its own accuracy rose since the last look. A bandit, which
needs a reward for each arm, can use this; it is richer than the one error that rewards the policy gradient.
Where draws are even, each arm is drawn as often as it was to be: importance weights are close to one, and the
bandit learns from what became of each group alone, not from progress that all share.
Groups are found anew at each look, so an arm is no set of permutations but a rank: weight k is of the k-th
hardest group, whoever is in it.
"""

import flax.struct
import jax
import jax.numpy as jnp

from ssl_jax.selection.state import (
    Evaluation,
    Player,
    check_option,
    entropy,
    from_probability,
    group_permutations,
    group_sums,
    member_log_probability,
)


@flax.struct.dataclass
class Exp3State:
    """Arrays of the bandit; K groups, P permutations.

    Attributes:
      log_weight: float32 [K], logarithms of the arms' weights, which sum to one.
      group: int32 [P], the group of each permutation since the last evaluation.
      count: float32 [K], how often each group was drawn since then.
      accuracy: float32 [P], at the last evaluation.
      bounds: float32 [2], the running least and largest progress of a group.
      evaluations: int32 [], how many there have been.
    """

    log_weight: jax.Array
    group: jax.Array
    count: jax.Array
    accuracy: jax.Array
    bounds: jax.Array
    evaluations: jax.Array


def make(
    *,
    num_permutations: int,
    period: int,
    num_groups: int = 10,
    learning_rate: float = 0.2,
    uniform_share: float = 0.1,
    weight_share: float = 0.001,
    bounds_decay: float = 0.95,
    draws: str = "independent",
) -> Player:
    """The bandit.

    A permutation weighs as much as its group's arm says, w[group], and a share of the draws is uniform:
    p = (1 - gamma) w[group] / sum(w[group]) + gamma / P. Equal weights draw uniformly, whatever the sizes.

    Args:
      num_permutations: P.
      period: training steps between two evaluations, and so between two updates of the weights.
      num_groups: K; groups can be fewer when permutations are too alike.
      learning_rate: of the logarithms of the weights, per evaluation. In Auer et al. it is gamma / K for one
        draw; here the many draws of a period are averaged into one step.
      uniform_share: gamma, in (0, 1].
      weight_share: alpha of Exp3.S, in [0, 1): of all weight, dealt out equally at each evaluation.
      bounds_decay: in (0, 1]; how much of the range of progress is kept from one evaluation to the next.
      draws: see `state.from_probability`.

    Raises:
      InputError: an option that does not fit.
    """
    check_option(period >= 1, "period", period, "at least 1")
    check_option(num_groups >= 1, "num_groups", num_groups, "at least 1")
    check_option(0 < uniform_share <= 1, "uniform_share", uniform_share, "above 0 and at most 1")
    check_option(0 <= weight_share < 1, "weight_share", weight_share, "at least 0 and below 1")
    check_option(0 < bounds_decay <= 1, "bounds_decay", bounds_decay, "above 0 and at most 1")
    num_groups = min(num_groups, num_permutations)

    def init(key):
        del key
        return Exp3State(
            log_weight=jnp.full((num_groups,), -jnp.log(num_groups)),
            group=jnp.arange(num_permutations, dtype=jnp.int32) % num_groups,
            count=jnp.zeros((num_groups,)),
            accuracy=jnp.zeros((num_permutations,)),
            bounds=jnp.zeros((2,)),
            evaluations=jnp.zeros((), jnp.int32),
        )

    def probability(state):
        weighted = jnp.exp(member_log_probability(state.log_weight, state.group))
        return (1 - uniform_share) * weighted + uniform_share / num_permutations

    def count(state, drawn):
        return state.replace(count=state.count + group_sums(drawn, state.group, num_groups))

    def reward_of(progress, present, state):
        """Progress [K] scaled to [0, 1] by its running range, and that range; 0 where none is known."""
        lowest = jnp.where(present, progress, jnp.inf).min()
        highest = jnp.where(present, progress, -jnp.inf).max()
        # The first progress sets the range; later it shrinks from both sides, and grows where it must.
        low, high = jnp.where(state.evaluations == 1, jnp.stack([lowest, highest]), state.bounds)
        slack = (1 - bounds_decay) / 2 * (high - low)
        low, high = jnp.minimum(low + slack, lowest), jnp.maximum(high - slack, highest)
        known = state.evaluations >= 1
        reward = jnp.where(known & present, (progress - low) / (high - low + 1e-8), 0)
        return reward, jnp.where(known, jnp.stack([low, high]), state.bounds)

    def observe(key, state, evaluation: Evaluation):
        del key
        size = group_sums(1.0, state.group, num_groups)
        progress = group_sums(evaluation.accuracy - state.accuracy, state.group, num_groups)
        progress = progress / jnp.maximum(size, 1)  # [K], of the groups that were drawn from
        reward, bounds = reward_of(progress, size > 0, state)
        share = state.count / jnp.maximum(state.count.sum(), 1)
        # Importance weights: what is rarely drawn counts for more when it is, so that no arm is favoured.
        chance = group_sums(probability(state), state.group, num_groups)
        estimate = jnp.where(size > 0, share * reward / jnp.maximum(chance, 1e-8), 0)
        weight = jax.nn.softmax(state.log_weight + learning_rate * estimate)
        weight = (1 - weight_share) * weight + weight_share / num_groups
        state = Exp3State(
            log_weight=jnp.log(jnp.maximum(weight, 1e-30)),
            group=group_permutations(evaluation, num_groups),
            count=jnp.zeros_like(state.count),
            accuracy=evaluation.accuracy,
            bounds=bounds,
            evaluations=state.evaluations + 1,
        )
        metrics = {
            "error": 1 - evaluation.accuracy.mean(),
            "progress": jnp.where(state.evaluations > 1, share @ progress, 0),
            "entropy": entropy(probability(state)),
        }
        return state, metrics

    return from_probability(init, probability, observe, period, draws=draws, count=count)
