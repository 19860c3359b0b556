"""Who picks the next permutation: one interface, several players.

A player is four pure functions, as an optax optimizer is two (most are made from three, by
`state.from_probability`, which draws for them); its state holds arrays only, lives inside
the experiment's state and is saved with it. Choosing happens inside the jitted training step, observing
only once in `period` steps (Büchler, Brattoli and Ommer 2018: sparse updates). Players of several tasks can
share one state, and then learn from all of these tasks at once (`policy_gradient.make_joint`).
"""

from ssl_jax.selection import (
    curriculum,
    exp3,
    loss_prioritized,
    policy_gradient,
    q_learning,
    round_robin,
    uniform,
)
from ssl_jax.selection.state import Evaluation, Player, group_permutations

__all__ = ["PLAYERS", "Evaluation", "Player", "group_permutations"]

PLAYERS = {
    "uniform": uniform.make,
    "round_robin": round_robin.make,
    "curriculum": curriculum.make,
    "loss_prioritized": loss_prioritized.make,
    "exp3": exp3.make,
    "policy_gradient": policy_gradient.make,
    "q_learning": q_learning.make,
}
