"""Memory of what was played: one frame a step, stacks and n-step returns rebuilt at sampling time.

Time runs down a ring of rows, each environment has a column. Row t holds what arrived with time step t and
the action chosen on it, so that it is written once, in one piece, when the action is known:

    row   frame  first  r_t  discount_t  action        stack 4, n = 2, newest row 7, no row overwritten yet
     0     f0     yes    0       1         a0          (f0 f0 f0 f0) a0 -> r1 + g r2,       g^2, (f0 f0 f1 f2)
     1     f1     .      r1      1         a1          (f0 f0 f0 f1) a1 -> r2 + g r3,       0,   (f0 f1 f2 f3)
     2     f2     .      r2      1         a2          (f0 f0 f1 f2) a2 -> r3,              0,   (f0 f1 f2 f3)
     3     f3     .      r3      0         (a3)        none: the game was over, a3 was ignored
     4     f0'    yes    0       1         a4          (f0' f0' f0' f0') a4 -> r5 + g r6,   g^2, ...
     5     f1'    .      r5      1         a5          (f0' f0' f0' f1') a5 -> r6 + g r7,   g^2, ...
     6     f2'    .      r6      1         a6          not yet: row 8 is to come
     7     f3'    .      r7      1         a7          not yet: rows 8 and 9 are to come

Row i begins a transition if (1) row i + 1 is not the first of an episode, (2) the n rows after it are
there, and (3) the stack - 1 rows before it have not been overwritten. A walk forwards ends before the next
`first`, so an episode that ended without a terminal (truncation, or a run that was interrupted and began
again with `Environments.reset`) gives a shorter return and bootstraps from its last real observation. A
walk backwards ends at `first`. Nothing else is ever needed to keep episodes apart.

The weights of a draw lie in blocks of about the square root of their number, beside the sum of each block:
a draw takes a block by the sums, then a row of it. (1) to (3) change for two rows only with each new one.
A block's sum is always computed anew from its weights, so that it cannot drift, nor depend on the order of
writes that happen at once.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.runtime.errors import InputError

PRIORITY_FLOOR = 1e-6  # keeps a transition without error from never being drawn again


@flax.struct.dataclass
class ReplayState:
    """Arrays of a replay memory: C rows (a ring), N environments, b rows a block.

    Attributes:
      frame: uint8 [C, N, height * width].
      first: bool [C, N].
      reward: float32 [C, N], the learning reward.
      discount: bool [C, N], False after a termination.
      action: uint8 [C, N].
      weight: [ceil(C / b), b * N], of drawing the transition that begins there: uint8, 0 or 1, if uniform;
        else float32, the priority to the power of its exponent.
      block_weight: int32 or float32 [ceil(C / b)], sums of `weight`.
      max_weight: float32 [], the largest weight there has been; new transitions get it.
      position: int32 [], the row to be written next.
    """

    frame: jax.Array
    first: jax.Array
    reward: jax.Array
    discount: jax.Array
    action: jax.Array
    weight: jax.Array
    block_weight: jax.Array
    max_weight: jax.Array
    position: jax.Array


class Transitions(NamedTuple):
    """B transitions, each over the next k agent steps: n, or fewer where the episode ended before.

    Attributes:
      s_tm1: uint8 [B, height, width, stack], the observation, oldest frame first.
      a_tm1: int32 [B], the action taken on it.
      r_t: float32 [B], sum over j < k of gamma^j times the reward of step j + 1, up to a termination.
      discount_t: float32 [B], gamma^k, or 0 if there was a termination.
      s_t: uint8 [B, height, width, stack], the observation k steps later.
      indices: int32 [B], for `update_priorities`.
      weights: float32 [B], importance weights, of which the largest is 1.
    """

    s_tm1: jax.Array
    a_tm1: jax.Array
    r_t: jax.Array
    discount_t: jax.Array
    s_t: jax.Array
    indices: jax.Array
    weights: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """A replay memory for N environments: the sizes; its contents are a `ReplayState`.

    All methods are pure. Jit them, and donate the state to those that return one: it is then updated in
    place. They can be vmapped over states, for agents that each have a memory of their own.

    Attributes:
      capacity: agent steps to keep, of all environments together; rounded down to whole rows.
      num_envs: N.
      n_step: agent steps of a return (Sutton 1988; Hessel et al. 2018 use 3).
      gamma: discount of an agent step.
      priority_exponent: alpha of Schaul et al. 2016, proportional variant; 0 draws uniformly.
      stack: frames of an observation.
      frame_size: (height, width) in pixels.

    Raises:
      InputError: the memory would be too short to hold a transition.
    """

    capacity: int
    num_envs: int
    n_step: int = 1
    gamma: float = 0.99
    priority_exponent: float = 0.0
    stack: int = 4
    frame_size: tuple[int, int] = (84, 84)

    def __post_init__(self):
        for name in ("num_envs", "n_step", "stack"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        least = (self.n_step + self.stack) * self.num_envs
        if self.capacity < least:
            raise InputError(
                f"capacity must be at least {least} agent steps for {self.num_envs} environments with a "
                f"stack of {self.stack} and {self.n_step}-step returns, not {self.capacity}"
            )
        if not 0 <= self.gamma <= 1 or self.priority_exponent < 0:
            raise InputError(
                "gamma must be from 0 to 1 and priority_exponent at least 0, not "
                f"{self.gamma} and {self.priority_exponent}"
            )

    @property
    def rows(self) -> int:
        """C, time steps kept of each environment."""
        return self.capacity // self.num_envs

    @property
    def block_rows(self) -> int:
        """b, rows of a block; about as many weights in a block as there are blocks."""
        return max(1, round(math.sqrt(self.rows / self.num_envs)))

    @property
    def num_bytes(self) -> int:
        """What `init` allocates."""
        return sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(jax.eval_shape(self.init)))

    def init(self, device: jax.Device | jax.sharding.Sharding | None = None) -> ReplayState:
        """An empty memory, made where it will stay: on a device, the host's CPU included, or a sharding."""
        rows, num_envs, blocks = self.rows, self.num_envs, -(-self.rows // self.block_rows)
        uniform = self.priority_exponent == 0
        zeros = functools.partial(jnp.zeros, device=device)
        return ReplayState(
            frame=zeros((rows, num_envs, math.prod(self.frame_size)), jnp.uint8),
            first=jnp.ones((rows, num_envs), bool, device=device),  # no row begins a transition yet
            reward=zeros((rows, num_envs), jnp.float32),
            discount=zeros((rows, num_envs), bool),
            action=zeros((rows, num_envs), jnp.uint8),
            weight=zeros((blocks, self.block_rows * num_envs), jnp.uint8 if uniform else jnp.float32),
            block_weight=zeros((blocks,), jnp.int32 if uniform else jnp.float32),
            max_weight=jnp.ones((), jnp.float32, device=device),
            position=zeros((), jnp.int32),
        )

    def add(
        self,
        state: ReplayState,
        frame: jax.Array,
        first: jax.Array,
        r_t: jax.Array,
        discount_t: jax.Array,
        action: jax.Array,
    ) -> ReplayState:
        """Writes a row: a time step, and the actions chosen on it.

        Args:
          state: the memory. The first row that it gets must be the first of an episode everywhere, as
            `Environments.reset` gives it.
          frame: uint8 [N, height, width], the newest frame.
          first: bool [N], the row begins an episode.
          r_t: float32 [N], the reward to learn from, of the actions in the row before.
          discount_t: [N], 0 after a termination, else 1; of the actions in the row before.
          action: integers [N] below 256, chosen on this time step.
        """
        newest = state.position

        def write(array, row):
            row = row.reshape(1, *array.shape[1:]).astype(array.dtype)
            return lax.dynamic_update_slice_in_dim(array, row, newest, axis=0)

        state = state.replace(
            frame=write(state.frame, frame),
            first=write(state.first, first),
            reward=write(state.reward, r_t),
            discount=write(state.discount, discount_t),
            action=write(state.action, action),
            position=(newest + 1) % self.rows,
        )
        # (1) and (2): the row n before now has all that follows it, unless a `first` follows at once.
        complete = (newest - self.n_step) % self.rows
        begins = ~state.first[(complete + 1) % self.rows]  # [N]
        # (3): with what this row overwrote, one more row lost the oldest frame of its stack.
        broken = (newest + self.stack - 1) % self.rows
        return self._set_weights(
            state,
            jnp.stack([complete, broken]),
            jnp.stack([begins * state.max_weight, jnp.zeros((self.num_envs,))]),
        )

    def sample(
        self, state: ReplayState, key: jax.Array, batch_size: int, beta: jax.typing.ArrayLike = 1.0
    ) -> Transitions:
        """Draws transitions, with replacement.

        Args:
          state: the memory. It must hold a transition: n + 1 rows without a `first` after the first one.
          key: of the draw.
          batch_size: B, static.
          beta: exponent of the importance weights (Schaul et al. 2016, Sec. 3.4).
        """
        indices, weight = _draw(key, state.weight, state.block_weight, batch_size)
        row, column = indices // self.num_envs, indices % self.num_envs
        r_t, discount_t, steps = self._returns(state, row, column)
        rows = [self._stack_rows(state, newest, column) for newest in (row, row + steps)]
        # One gather of whole frames for both observations. The barrier keeps XLA from merging it with the
        # transposition into a gather of single bytes (25 times slower on a CPU).
        at = jnp.stack(rows, axis=1), column[:, None, None]
        frames = lax.optimization_barrier(state.frame.at[at].get(mode="promise_in_bounds"))
        stacks = frames.reshape(batch_size, 2, self.stack, *self.frame_size).transpose(1, 0, 3, 4, 2)
        return Transitions(
            s_tm1=stacks[0],
            a_tm1=state.action[row, column].astype(jnp.int32),
            r_t=r_t,
            discount_t=discount_t,
            s_t=stacks[1],
            indices=indices,
            # (1 / (size * probability)) ** beta over its largest value: size and sum of weights cancel.
            weights=(weight.min() / weight) ** beta,
        )

    def update_priorities(self, state: ReplayState, indices: jax.Array, td_errors: jax.Array) -> ReplayState:
        """Sets the priorities of transitions to their |TD error|; changes nothing if drawing is uniform.

        Args:
          state: the memory.
          indices: int32 [B], from `sample`; what can no longer be drawn by now stays so.
          td_errors: float32 [B]. Of a transition that was drawn twice the larger one counts.
        """
        if self.priority_exponent == 0:
            return state
        at = jnp.divmod(indices, state.weight.shape[1])
        new = (jnp.abs(td_errors) + PRIORITY_FLOOR) ** self.priority_exponent
        new = jnp.where(state.weight[at] > 0, new, 0)
        # A maximum and not a plain write: the order of writes to one place is not defined on a GPU.
        weight = state.weight.at[at].set(0).at[at].max(new)
        return state.replace(
            weight=weight,
            block_weight=state.block_weight.at[at[0]].set(weight[at[0]].sum(axis=1)),
            max_weight=jnp.maximum(state.max_weight, new.max()),
        )

    def _set_weights(self, state: ReplayState, rows: jax.Array, weights: jax.Array) -> ReplayState:
        """Gives two rows [2] the weights [2, N], and their blocks the sums."""
        block, row_of_block = jnp.divmod(rows, self.block_rows)
        entry = row_of_block[:, None] * self.num_envs + jnp.arange(self.num_envs)[None]  # [2, N]
        # One scatter for both rows: XLA writes it in place, but would copy all weights between two writes.
        weight = state.weight.at[block[:, None], entry].set(weights.astype(state.weight.dtype))
        sums = weight[block].sum(axis=1, dtype=state.block_weight.dtype)
        return state.replace(weight=weight, block_weight=state.block_weight.at[block].set(sums))

    def _stack_rows(self, state: ReplayState, row: jax.Array, column: jax.Array) -> jax.Array:
        """The rows [B, stack], oldest first, of the frames in the observation at a row [B]."""
        back = jnp.arange(self.stack)[None, :]
        first = state.first[(row[:, None] - back) % self.rows, column[:, None]]  # [B, stack]
        first |= back == self.stack - 1
        age = jnp.argmax(first, axis=1, keepdims=True)  # of the oldest frame of this episode in the stack
        return (row[:, None] - jnp.minimum(back[:, ::-1], age)) % self.rows

    def _returns(
        self, state: ReplayState, row: jax.Array, column: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The return from a row [B] on, its discount, and the agent steps it spans; each [B]."""
        r_t = jnp.zeros(row.shape)
        discount_t = jnp.ones(row.shape)
        steps = jnp.zeros_like(row)
        same_episode = jnp.ones(row.shape, bool)
        for k in range(1, self.n_step + 1):
            at = (row + k) % self.rows, column
            same_episode &= ~state.first[at]
            r_t += jnp.where(same_episode, discount_t * state.reward[at], 0)
            discount_t *= jnp.where(same_episode, self.gamma * state.discount[at], 1)
            steps += same_episode
        return r_t, discount_t, steps


def _draw(key, weight, block_weight, num):
    """Draws `num` indices of `weight` [blocks, entries], flattened, in proportion; and their weights.

    Integer weights are drawn exactly. An entry of weight 0 is never drawn, whatever the rounding of sums.
    """
    block_key, entry_key = jax.random.split(key)
    block = _pick(block_key, jnp.broadcast_to(block_weight, (num, *block_weight.shape)))
    candidates = weight[block]  # [num, entries]
    entry = _pick(entry_key, candidates)
    chosen = jnp.take_along_axis(candidates, entry[:, None], axis=1)[:, 0]
    return block * weight.shape[1] + entry, chosen.astype(jnp.float32)


def _pick(key, weight):
    """Draws a column of each row of `weight` [num, entries] in proportion: int32 [num]."""
    exact = jnp.issubdtype(weight.dtype, jnp.integer)
    sums = jnp.cumsum(weight, axis=1, dtype=jnp.int32 if exact else jnp.float32)
    sums = jnp.where(weight > 0, sums, 0)
    total = sums.max(axis=1)
    if exact:
        point = jax.random.randint(key, total.shape, 0, total)
    else:
        point = jax.random.uniform(key, total.shape) * total
    # The first entry whose sum lies above the point; entries without weight have no sum.
    return jnp.argmax(sums > point[:, None], axis=1).astype(jnp.int32)
