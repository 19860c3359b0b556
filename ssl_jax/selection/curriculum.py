"""Easy permutations first, and then more and more of the set, on a schedule that is fixed beforehand.

Bengio, Louradour, Collobert and Weston 2009, "Curriculum learning": a sequence of distributions of growing
entropy that ends at the whole set, drawn uniformly (Sec. 3).

Difficulty is the Hamming distance to the identity, the number of tiles that moved. Near it counts as easy,
for most of the picture is as it was and few tiles are to be placed; far from it everything has to be. This is
a guess made before training, of which the network knows nothing, so its reverse is a player as well. Sets
chosen for large distances have few different ones; of equally distant permutations, the order in the set
decides.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np

from ssl_jax.selection.state import Player, check_option, from_probability

ORDERS = ("easy_first", "hard_first")


def make(
    *,
    num_permutations: int,
    permutations: np.ndarray,
    steps: int,
    start_share: float = 0.1,
    order: Literal["easy_first", "hard_first"] = "easy_first",
    draws: str = "independent",
) -> Player:
    """A player that draws uniformly from a pool that grows; it never looks at the network.

    Its state is the number of training steps that it has chosen for, int32 [].

    Args:
      num_permutations: P.
      permutations: the set, int [P, m].
      steps: training steps until the pool is the whole set; it grows linearly.
      start_share: of the set, in the pool of the first step; at least one permutation is.
      order: whether the pool starts from the permutations nearest to the identity or farthest from it.
      draws: see `state.from_probability`.

    Raises:
      InputError: an option that does not fit.
    """
    check_option(steps >= 1, "steps", steps, "at least 1")
    check_option(0 < start_share <= 1, "start_share", start_share, "above 0 and at most 1")
    check_option(order in ORDERS, "order", order, f"one of {', '.join(ORDERS)}")
    distance = (np.asarray(permutations) != np.arange(np.shape(permutations)[1])).sum(1)  # [P]
    signed = distance if order == "easy_first" else -distance
    rank = np.argsort(np.argsort(signed, kind="stable"))  # [P], 0 enters the pool first

    def probability(step):
        share = start_share + (1 - start_share) * jnp.minimum(step / steps, 1)
        size = jnp.maximum(jnp.round(share * num_permutations), 1)
        return (rank < size) / size

    return from_probability(
        init=lambda key: jnp.zeros((), jnp.int32),
        probability=probability,
        observe=lambda key, step, evaluation: (step, {}),
        period=0,
        draws=draws,
        count=lambda step, drawn: step + 1,
    )
