"""Every permutation in turn: the least random way to show each as often as all others.

Sampling without replacement, as epochs over a data set are: in P draws each permutation comes exactly once,
in an order of its own (Bottou 2009, "Curiously fast convergence of some stochastic gradient descent
algorithms").
"""

import flax.struct
import jax
import jax.numpy as jnp

from ssl_jax.selection.state import Player


@flax.struct.dataclass
class RoundRobinState:
    """Where the turn is.

    Attributes:
      order: int32 [P], the permutations in the order of this epoch.
      position: int32 [], the next of them, in [0, P).
    """

    order: jax.Array
    position: jax.Array


def make(*, num_permutations: int) -> Player:
    """A player that goes through the set epoch after epoch, shuffled anew for each; it never looks.

    Its probability is that of a draw whose place in the epoch is not known: 1 / P for each. The next draws of
    one state are not independent, but without replacement.

    Args:
      num_permutations: P.
    """
    indices = jnp.arange(num_permutations, dtype=jnp.int32)

    def init(key):
        return RoundRobinState(order=jax.random.permutation(key, indices), position=jnp.zeros((), jnp.int32))

    def choose(key, state, batch_size):
        # As many epochs as a batch can begin: it may be larger than the set, and may cross its end.
        keys = jax.random.split(key, -(-batch_size // num_permutations))
        fresh = jax.vmap(jax.random.permutation, (0, None))(keys, indices)
        orders = jnp.concatenate([state.order[None], fresh])  # [epochs + 1, P]
        index = jax.lax.dynamic_slice(orders.reshape(-1), (state.position,), (batch_size,))
        end = state.position + batch_size
        order = orders[end // num_permutations]
        return RoundRobinState(order=order, position=end % num_permutations), index

    def probability(state):
        del state
        return jnp.full((num_permutations,), 1 / num_permutations)

    return Player(
        init=init,
        choose=choose,
        observe=lambda key, state, evaluation: (state, {}),
        probability=probability,
        period=0,
    )
