"""The usual practice: every permutation is equally likely, always (Noroozi and Favaro 2016)."""

import jax
import jax.numpy as jnp

from ssl_jax.selection.state import Player


def make(*, num_permutations: int) -> Player:
    """A player that draws uniformly from the set and never looks at the network."""

    def choose(key, state, batch_size):
        return state, jax.random.randint(key, (batch_size,), 0, num_permutations)

    def probability(state):
        del state
        return jnp.full((num_permutations,), 1 / num_permutations)

    return Player(
        init=lambda key: (),
        choose=choose,
        observe=lambda key, state, evaluation: (state, {}),
        probability=probability,
        period=0,
    )
