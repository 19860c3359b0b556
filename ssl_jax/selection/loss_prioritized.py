"""What the network gets wrong is drawn more often, as prioritized replay does with its errors.

Schaul, Quan, Antonoglou and Silver 2016, "Prioritized experience replay", Sec. 3.3, Equation 1: in proportion
to (error + eps)^alpha. The error of a permutation is the share of pictures whose permutation was named
wrongly, and not the loss that the ratio of probabilities implies: that is a mean of ratios, which a few
pictures the network is sure of decide. Unlike in replay, no weights correct the draws: every permutation is
measured, however rarely it is drawn.
"""

import jax.numpy as jnp

from ssl_jax.selection.state import Evaluation, Player, check_option, entropy, from_probability


def make(
    *,
    num_permutations: int,
    period: int,
    exponent: float = 1.0,
    min_error: float = 0.01,
    uniform_share: float = 0.1,
    draws: str = "independent",
) -> Player:
    """A player that draws permutation i in proportion to (1 - accuracy_i + min_error)^exponent.

    Its state is the accuracy of each permutation at the last evaluation, float32 [P]; before there is one,
    all are alike and drawn uniformly.

    Args:
      num_permutations: P.
      period: training steps between two evaluations.
      exponent: alpha; 0 draws uniformly.
      min_error: eps, added to every error, so that what is solved is not forgotten.
      uniform_share: of the draws, in [0, 1], that are uniform over the set.
      draws: see `state.from_probability`.

    Raises:
      InputError: an option that does not fit.
    """
    check_option(period >= 1, "period", period, "at least 1")
    check_option(exponent >= 0, "exponent", exponent, "at least 0")
    check_option(min_error > 0, "min_error", min_error, "above 0")
    check_option(0 <= uniform_share <= 1, "uniform_share", uniform_share, "in [0, 1]")

    def probability(accuracy):
        priority = (1 - accuracy + min_error) ** exponent
        return (1 - uniform_share) * priority / priority.sum() + uniform_share / num_permutations

    def observe(key, accuracy, evaluation: Evaluation):
        del key, accuracy
        accuracy = evaluation.accuracy
        return accuracy, {"error": 1 - accuracy.mean(), "entropy": entropy(probability(accuracy))}

    return from_probability(
        init=lambda key: jnp.zeros((num_permutations,)),
        probability=probability,
        observe=observe,
        period=period,
        draws=draws,
    )
