"""Who picks the next permutation: one interface, several players.

A player is four pure functions, as an optax optimizer is two; its state holds arrays only, lives inside
the experiment's state and is saved with it. Choosing happens inside the jitted training step, observing
only once in `period` steps (Büchler, Brattoli and Ommer 2018: sparse updates).
"""

from ssl_jax.selection import policy_gradient, uniform
from ssl_jax.selection.state import Evaluation, Player, group_permutations

__all__ = ["PLAYERS", "Evaluation", "Player", "group_permutations", "make"]

PLAYERS = {"uniform": uniform.make, "policy_gradient": policy_gradient.make}
