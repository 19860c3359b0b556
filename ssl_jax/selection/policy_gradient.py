"""The paper's player: a policy network trained by REINFORCE beside the puzzle solver.

Büchler, Brattoli and Ommer 2018, Sec. 3.2; made precise in the docstrings where the paper is silent.
At evaluation t the selection error is E(t). The reward of everything drawn since evaluation t-1 is how
far E(t) fell below the linear extrapolation of the two errors before,

    r(t) = (2 E(t-1) - E(t-2)) - E(t),

and the policy moves towards the groups that were drawn more often than expected when r(t) was above its
moving average.

With `draws="even"`, which is ours, chance decides once a period how often each group is drawn, as often as
independent draws would come to, and no more: within the period every batch has its part of that, and the
members of a group come in turn. What the policy learns from is the same; the batches are more alike.

One policy may choose for several tasks that are trained together, as the paper's in space and in time are.
Its trunk then sees the states of all, and it has a head, which is a part of its last layer, for the groups of
each. That the heads share a trunk and one reward, in which E is the mean of the tasks' errors, is ours.
"""

import itertools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ssl_jax.selection import state as state_lib
from ssl_jax.selection.state import Evaluation, Player, check_option


@flax.struct.dataclass
class PolicyState:
    """Arrays of the policy; K groups, P permutations. Those of several tasks stand one after the other.

    Attributes:
      params: of the policy network.
      opt_state: of its optimizer.
      rows: float32 [2 P], the state it acts on, measured at the last evaluation.
      group: int32 [P], the group of each permutation since the last evaluation; the groups of a task are
        numbered from where those of the task before it end.
      count: float32 [K], how often each group was drawn since the last evaluation.
      share: float32 [P], of the draws of this period that each permutation gets, if draws are even.
      owed: float32 [P], draws of each permutation that are due, see `state.draw_evenly`, if draws are even.
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
    share: jax.Array
    owed: jax.Array
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
    draws: str = "independent",
) -> Player:
    """The policy-gradient player of one task.

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
      draws: "independent" of each other (the paper's), or "even" within a period.

    Raises:
      InputError: an option that does not fit.
    """
    (player,) = make_joint(**locals() | {"num_permutations": (num_permutations,)})
    return player


def make_joint(
    *,
    num_permutations: tuple[int, ...],
    period: int,
    num_groups: int,
    hidden: int,
    learning_rate: float,
    entropy_bonus: float,
    baseline_decay: float,
    draws: str = "independent",
) -> tuple[Player, ...]:
    """One policy for several tasks: a player for each, all of which share one state.

    A player draws from its task's set, and counts its draws. All of them observe at once, and by the same
    function, `(key, state, *evaluations) -> (state, *metrics)` with an Evaluation and metrics for each task:
    one update, by the scores of what was drawn in all tasks and the entropy bonus of each.

    Args:
      num_permutations: P of each task; the other arguments are those of `make`, for all tasks.

    Raises:
      InputError: an option that does not fit.
    """
    check_option(period >= 1, "period", period, "at least 1")
    check_option(num_groups >= 1, "num_groups", num_groups, "at least 1")
    check_option(hidden >= 1, "hidden", hidden, "at least 1")
    check_option(learning_rate > 0, "learning_rate", learning_rate, "above 0")
    check_option(entropy_bonus >= 0, "entropy_bonus", entropy_bonus, "at least 0")
    check_option(0 <= baseline_decay < 1, "baseline_decay", baseline_decay, "at least 0 and below 1")
    state_lib.check_draws(draws)
    groups = [min(num_groups, num) for num in num_permutations]
    sets, heads = _parts(num_permutations), _parts(groups)
    network = state_lib.GroupNetwork(sum(groups), hidden)
    optimizer = optax.adam(learning_rate)

    def number_through(found):
        """The groups of each task's permutations, int32, numbered from 0 -> those of all, int32 [P]."""
        return jnp.concatenate([head.start + group for head, group in zip(heads, found, strict=True)])

    def init(key):
        rows = jnp.zeros((2 * sum(num_permutations),))
        params = network.init(key, rows)
        # Nothing is known yet: permutations are dealt to the groups in turn.
        deal = lambda num, num_groups: jnp.arange(num, dtype=jnp.int32) % num_groups
        return PolicyState(
            params=params,
            opt_state=optimizer.init(params),
            rows=rows,
            group=number_through(map(deal, num_permutations, groups)),
            count=jnp.zeros((sum(groups),)),
            share=jnp.zeros((sum(num_permutations),)),
            owed=jnp.zeros((sum(num_permutations),)),
            errors=jnp.zeros((2,)),
            reward_mean=jnp.zeros(()),
            reward_square=jnp.zeros(()),
            evaluations=jnp.zeros((), jnp.int32),
        )

    def objective(params, state, advantage):
        """REINFORCE: the mean score of the draws times their advantage, plus the entropy bonus."""
        logits = network.apply(params, state.rows)
        of_head = lambda head, members: _score(
            logits[head], state.group[members] - head.start, state.count[head]
        )
        scores, spreads = zip(*map(of_head, heads, sets), strict=True)
        return -(advantage * sum(scores) + entropy_bonus * sum(spreads)), spreads

    def observe(key, state, *evaluations: Evaluation):
        del key
        errors = [1 - evaluation.accuracy.mean() for evaluation in evaluations]
        error = sum(errors) / len(errors)
        reward = state_lib.extrapolation_reward(error, state.errors, state.evaluations)
        advantage, reward_mean, reward_square = _standardize(reward, state, baseline_decay)
        gradient, spreads = jax.grad(objective, has_aux=True)(state.params, state, advantage)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = state.replace(
            params=params,
            opt_state=opt_state,
            rows=jnp.concatenate([*map(state_lib.sorted_rows, evaluations)]),
            group=number_through(map(state_lib.group_permutations, evaluations, groups)),
            count=jnp.zeros_like(state.count),
            errors=jnp.stack([error, state.errors[0]]),
            reward_mean=reward_mean,
            reward_square=reward_square,
            evaluations=state.evaluations + 1,
        )
        shared = {"reward": reward, "advantage": advantage, "baseline": reward_mean}
        metrics = [
            {"error": own, **shared, "entropy": spread} for own, spread in zip(errors, spreads, strict=True)
        ]
        return state, *metrics

    def player(head: slice, members: slice) -> Player:
        def log_probability(state):
            logits = network.apply(state.params, state.rows)
            return state_lib.member_log_probability(logits, state.group[members])

        def draw_share(key, state, group, batch_size):
            """What a period of independent draws comes to, all members of a group alike; sums to one."""
            of_groups = lambda values: state_lib.group_sums(values, group, head.stop - head.start)
            number = period * batch_size
            drawn = jax.random.multinomial(key, number, of_groups(jnp.exp(log_probability(state))))
            return (drawn / number / jnp.maximum(of_groups(1.0), 1))[group]

        def choose(key, state, batch_size):
            group = state.group[members] - head.start
            if draws == "even":
                share_key, draw_key = jax.random.split(key)
                share = jax.lax.cond(
                    state.count[head].sum() == 0,
                    lambda: draw_share(share_key, state, group, batch_size),
                    lambda: state.share[members],
                )
                index, drawn, owed = state_lib.draw_evenly(
                    draw_key, share, state.owed[members], group, batch_size
                )
                state = state.replace(
                    share=state.share.at[members].set(share), owed=state.owed.at[members].set(owed)
                )
            else:
                index = jax.random.categorical(key, log_probability(state), shape=(batch_size,))
                drawn = state_lib.tally(index, len(group))
            count = state.count.at[state.group[members]].add(drawn)
            return state.replace(count=count), index.astype(jnp.int32)

        probability = lambda state: jnp.exp(log_probability(state))
        return Player(init, choose, observe, probability, period)

    return tuple(map(player, heads, sets))


def _parts(sizes: Sequence[int]) -> list[slice]:
    """Where the entries of each task are in an array that holds those of all, one after the other."""
    return [slice(end - size, end) for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]


def _score(logits: jax.Array, group: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean log-probability of a task's draws, and entropy of its permutations in nats; float32 [].

    Args:
      logits: float32 [K], of its groups.
      group: int32 [P], of its permutations.
      count: float32 [K], draws of each group.
    """
    share = count / jnp.maximum(count.sum(), 1)
    # The log-probability of the drawn permutations, of which all in a group have the same.
    score = share @ logits - share.sum() * jax.nn.logsumexp(logits[group])
    # Of the permutations, not of the groups: largest where all permutations are drawn alike.
    log_member = state_lib.member_log_probability(logits, group)  # [P]
    return score, -(jnp.exp(log_member) * log_member).sum()


def _standardize(
    reward: jax.Array, state: PolicyState, decay: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The reward's advantage over its moving average, in units of its scale; new mean and mean square.

    Before there is one, reward and averages are zero, and stay so.
    """
    difference = reward - state.reward_mean
    # The first reward sets the averages, later ones move them.
    rate = jnp.where(state.evaluations == 2, 1.0, 1 - decay)
    square = state.reward_square + rate * (jnp.square(difference) - state.reward_square)
    mean = state.reward_mean + rate * (reward - state.reward_mean)
    return difference / (jnp.sqrt(square) + 1e-8), mean, square
