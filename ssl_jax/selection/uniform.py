"""The usual practice: every permutation is equally likely, always (Noroozi and Favaro 2016)."""

import jax.numpy as jnp

from ssl_jax.selection.state import Player, from_probability


def make(*, num_permutations: int, draws: str = "independent") -> Player:
    """A player that draws uniformly from the set and never looks at the network.

    Args:
      num_permutations: P.
      draws: see `state.from_probability`; even ones come close to `round_robin`.

    Raises:
      InputError: an option that does not fit.
    """

    def probability(state):
        del state
        return jnp.full((num_permutations,), 1 / num_permutations)

    return from_probability(
        init=lambda key: (),
        probability=probability,
        observe=lambda key, state, evaluation: (state, {}),
        period=0,
        draws=draws,
    )
