"""The decision process: what a player is, what it sees of the network, and how it draws.

The state is the network's skill at each permutation, measured on held-out pictures: s in R^{P x 2} with
columns accuracy and probability ratio. Actions are groups of permutations of similar difficulty, found
by k-means over the rows of s and ordered from hard to easy, so that action k keeps its meaning while its
members change (Büchler et al. 2018, Sec. 3.2).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from ssl_jax.runtime.errors import InputError

KMEANS_ITERATIONS = 10
DRAWS = ("independent", "even")


class Player(NamedTuple):
    """Who picks the permutations. P is the size of the permutation set.

    Attributes:
      init: `key -> state`.
      choose: `(key, state, batch_size) -> (state, index)`, index int32 [batch_size] in [0, P); most players
        have that of `from_probability`.
      observe: `(key, state, Evaluation) -> (state, metrics)`, metrics a dict of float32 scalars. Of players
        that share a state (see `policy_gradient.make_joint`), with an Evaluation and metrics for each.
      probability: `state -> float32 [P]`, the distribution that `choose` draws from, as even draws do on the
        mean; sums to one.
      period: training steps between two observations; 0 for a player that never looks.
    """

    init: Callable[[jax.Array], Any]
    choose: Callable[[jax.Array, Any, int], tuple[Any, jax.Array]]
    observe: Callable[[jax.Array, Any, "Evaluation"], tuple[Any, dict[str, jax.Array]]]
    probability: Callable[[Any], jax.Array]
    period: int


@flax.struct.dataclass
class Evaluation:
    """The network's skill at each permutation on a held-out slice.

    Attributes:
      accuracy: float32 [P], share of pictures whose permutation was named rightly.
      ratio: float32 [P], mean probability of the right class over that of the largest other one.
    """

    accuracy: jax.Array
    ratio: jax.Array


def standardized_rows(evaluation: Evaluation) -> jax.Array:
    """The rows of the state with both columns on one scale: float32 [P, 2], mean 0, deviation 1.

    The ratio enters as its logarithm: it grows without bound, and a few pictures that the network is
    very sure of must not drown the others.
    """
    rows = jnp.stack([evaluation.accuracy, jnp.log(evaluation.ratio + 1e-6)], axis=1)  # [P, 2]
    return (rows - rows.mean(0, keepdims=True)) / (rows.std(0, keepdims=True) + 1e-6)


@functools.partial(jax.jit, static_argnums=1)
def group_permutations(evaluation: Evaluation, num_groups: int) -> jax.Array:
    """K-means over the rows of the state; returns the group of each permutation, int32 [P].

    Groups are numbered by their mean accuracy, 0 the hardest. A group may be empty, which leaves its
    number unused at the end. Deterministic: centres start at quantiles of the rows ordered by accuracy.
    """
    rows = standardized_rows(evaluation)  # [P, 2]
    num = rows.shape[0]
    order = jnp.argsort(rows.sum(1), stable=True)
    quantiles = (jnp.arange(num_groups) * 2 + 1) * num // (2 * num_groups)
    centres = rows[order[quantiles]]  # [K, 2]

    def assign(centres):
        distance = jnp.square(rows[:, None, :] - centres[None, :, :]).sum(-1)  # [P, K]
        return jax.nn.one_hot(jnp.argmin(distance, axis=1), num_groups)  # [P, K]

    def iterate(_, centres):
        member = assign(centres)
        size = member.sum(0)[:, None]  # [K, 1]
        return jnp.where(size > 0, member.T @ rows / jnp.maximum(size, 1), centres)

    member = assign(jax.lax.fori_loop(0, KMEANS_ITERATIONS, iterate, centres))  # [P, K]
    size = member.sum(0)
    accuracy = jnp.where(size > 0, evaluation.accuracy @ member / jnp.maximum(size, 1), jnp.inf)
    rank = jnp.argsort(jnp.argsort(accuracy, stable=True))  # [K], from hard to easy, empty ones last
    return rank[jnp.argmax(member, axis=1)].astype(jnp.int32)


def sorted_rows(evaluation: Evaluation) -> jax.Array:
    """What a policy network reads: accuracy and log ratio, rows in order of accuracy, float32 [2 P].

    Sorting makes the input mean the same whichever permutation is hard today; the values are not
    standardised, for the policy should see how far the training has come.
    """
    order = jnp.argsort(evaluation.accuracy, stable=True)
    return jnp.concatenate([evaluation.accuracy[order], jnp.log(evaluation.ratio[order] + 1e-6) / 10])


class GroupNetwork(nn.Module):
    """Two layers from the sorted state [2 P] to a number for each group [K]; at first all are zero."""

    num_groups: int
    hidden: int

    @nn.compact
    def __call__(self, rows: jax.Array) -> jax.Array:
        """State [..., 2 P] -> [..., K]."""
        hidden = nn.tanh(nn.Dense(self.hidden)(rows))
        return nn.Dense(self.num_groups, kernel_init=nn.initializers.zeros)(hidden)


def extrapolation_reward(error: jax.Array, errors: jax.Array, evaluations: jax.Array) -> jax.Array:
    """How far the selection error fell below the line through the two before.

    Args:
      error: float32 [], E(t).
      errors: float32 [2], E(t-1) and E(t-2).
      evaluations: int32 [], how many there were before this one.

    Returns:
      float32 [], (2 E(t-1) - E(t-2)) - E(t); 0 before there are two errors for a line.
    """
    return jnp.where(evaluations >= 2, 2 * errors[0] - errors[1] - error, 0.0)


def group_sums(values: jax.Array | float, group: jax.Array, num_groups: int) -> jax.Array:
    """Sums over each group's members: values float32 [P] (or one for all), group int32 [P] -> [K]."""
    return jnp.zeros((num_groups,)).at[group].add(values)


def member_log_probability(logits: jax.Array, group: jax.Array) -> jax.Array:
    """Log-probability of each permutation, float32 [P], where it weighs as its group says, logits [K].

    Drawing from it is drawing a group and then a member of it, uniformly. Equal logits are a uniform draw
    from the set: a group has its share of it. Equal shares for all groups would draw the members of small
    ones tens of times as often. An empty group is never drawn.
    """
    return jax.nn.log_softmax(logits[group])


@flax.struct.dataclass
class Dealt:
    """State of a player whose draws are even: its own, and `owed`, float32 [P], see `draw_evenly`."""

    own: Any
    owed: jax.Array


def from_probability(
    init: Callable[[jax.Array], Any],
    probability: Callable[[Any], jax.Array],
    observe: Callable[[jax.Array, Any, Evaluation], tuple[Any, dict[str, jax.Array]]],
    period: int,
    *,
    draws: str,
    count: Callable[[Any, jax.Array], Any] = lambda state, drawn: state,
) -> Player:
    """A player that chooses by its probability; its first four arguments are those of `Player`.

    Args:
      init: makes its state.
      probability: of each permutation.
      observe: learns from an Evaluation.
      period: training steps between two of these.
      draws: "independent" of each other; or "even": each permutation comes as often as its probabilities
        add up to, but for one or two, which makes batches more alike and teaches more (README).
      count: `(state, drawn) -> state`, what the player remembers of how often each permutation was drawn in
        a batch, float32 [P]; by default nothing.

    Raises:
      InputError: other draws.
    """
    check_draws(draws)

    def choose(key, state, batch_size):
        chance = probability(state)
        index = draw(key, chance, batch_size)
        return count(state, tally(index, len(chance))), index

    if draws == "independent":
        return Player(init, choose, observe, probability, period)

    def init_evenly(key):
        state = init(key)
        return Dealt(state, jnp.zeros_like(probability(state)))

    def choose_evenly(key, state, batch_size):
        chance = probability(state.own)
        # What is due from before a look lapses where nothing is to be drawn any more.
        owed = jnp.where(chance > 0, state.owed, 0)
        index, drawn, owed = draw_evenly(key, chance, owed, None, batch_size)
        return Dealt(count(state.own, drawn), owed), index

    def observe_own(key, state, evaluation):
        own, metrics = observe(key, state.own, evaluation)
        return state.replace(own=own), metrics

    return Player(init_evenly, choose_evenly, observe_own, lambda state: probability(state.own), period)


def tally(index: jax.Array, num_permutations: int) -> jax.Array:
    """How often each permutation was drawn: int32 [B] -> float32 [P]."""
    return jnp.zeros(num_permutations).at[index].add(1)


def draw(key: jax.Array, probability: jax.Array, batch_size: int) -> jax.Array:
    """Permutations, int32 [batch_size], from float32 [P]."""
    return jax.random.categorical(key, jnp.log(probability), shape=(batch_size,)).astype(jnp.int32)


def draw_evenly(
    key: jax.Array, probability: jax.Array, owed: jax.Array, group: jax.Array | None, batch_size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Permutations with the least chance about how often each comes, by systematic sampling (Madow 1949).

    What is owed grows by `batch_size` times the probability before every batch, and falls by one with every
    draw: so draws follow the probability, one too many at most, and seldom more than a few too few; a uniform
    one gives something close to epochs over the set.

    Args:
      key: chooses among those that are owed something.
      probability: float32 [P].
      owed: float32 [P], at first zero, from the call before.
      group: int32 [P]; of each group a batch has what is owed to its members, give or take one. None: there
        are no groups.
      batch_size: B.

    Returns:
      int32 [B]; how often each was drawn, float32 [P]; and what is owed now, float32 [P].
    """
    owed = owed + batch_size * probability
    order_key, start_key = jax.random.split(key)
    order = jnp.argsort(jax.random.uniform(order_key, owed.shape) + (0 if group is None else group))
    ends = jnp.cumsum(jnp.maximum(owed, 0)[order])
    # At equal distances, from a random start on.
    places = (jnp.arange(batch_size) + jax.random.uniform(start_key)) * ends[-1] / batch_size
    index = order[jnp.minimum(jnp.searchsorted(ends, places, side="right"), len(owed) - 1)]
    # Counted once: several devices, with a part of the batch each, add up what they drew.
    drawn = tally(index, len(owed))
    return index.astype(jnp.int32), drawn, owed - drawn


def entropy(probability: jax.Array) -> jax.Array:
    """Of the permutations drawn, in nats; log P where all are drawn alike."""
    return jax.scipy.special.entr(probability).sum()


def check_draws(draws: str) -> None:
    """Raises InputError unless they are one of `DRAWS`."""
    check_option(draws in DRAWS, "draws", draws, f"one of {', '.join(DRAWS)}")


def check_option(fits: bool, name: str, value: Any, wanted: str) -> None:
    """Raises InputError where an option of a player does not fit."""
    if not fits:
        raise InputError(f"{name} must be {wanted}, not {value!r}.")
