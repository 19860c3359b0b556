"""Self-supervised questions about the frame stacks that an agent sees, asked beside Q-learning.

    rotation        by how many quarter turns was the whole stack turned?      4 classes
    sequence        in which order are its frames?                             stack! classes
    arrow_of_time   do they run forwards or backwards?                         2 classes
    jigsaw          in which order are the tiles of its frames?                up to `max_permutations`

The first two are those of the Dueling DQN experiment (Agarwal, Sinha and Ayush), the others its future
tasks; the arrow of time is from Wei et al., "Learning and using the arrow of time", CVPR 2018. Inputs look
like the stacks they come from, so that one trunk sees both. A stack of equal frames, as at the start of an
episode, has no answer in time: the share of such stacks bounds the accuracy.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.pretext import frame_order, jigsaw, permutations
from ssl_jax.pretext.rotation import rotate
from ssl_jax.runtime.config import check_known
from ssl_jax.runtime.errors import InputError

NAMES = ("rotation", "sequence", "arrow_of_time", "jigsaw")


class Task(NamedTuple):
    """A question to which the answer is known.

    Attributes:
      num_classes: answers there are.
      function: pure, (key, stacks uint8 [B, H, W, T]) -> (inputs, of the same shape and dtype, and labels
        int32 [B], uniform in [0, num_classes)).
    """

    num_classes: int
    function: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def make(
    *,
    name: str,
    stack: int = 4,
    frame_size: tuple[int, int] = (84, 84),
    grid: tuple[int, int] = (2, 2),
    max_permutations: int = 100,
    seed: int = 0,
) -> Task:
    """The task of that name.

    Args:
      name: one of `NAMES`.
      stack: T, frames of a stack.
      frame_size: (H, W), height and width of a frame in pixels.
      grid: rows and columns of the jigsaw; only it asks.
      max_permutations: classes of the jigsaw: all orders of its tiles where there are no more, else a
        maximal-Hamming set of so many.
      seed: of that set.

    Raises:
      InputError: if there is no such task, or it does not fit the stacks.
    """
    check_known("auxiliary task", name, NAMES)
    if name == "jigsaw":
        return _jigsaw(frame_size, grid, max_permutations, seed)
    if name == "rotation":
        if frame_size[0] != frame_size[1]:
            raise InputError(
                f"name='rotation' does not fit frames of {frame_size[0]} x {frame_size[1]} pixels: "
                "a quarter turn needs square ones"
            )
        return Task(4, _choice(4, rotate))
    if stack < 2:
        raise InputError(f"name={name!r} does not fit a stack of {stack} frame: it needs at least 2 in order")
    orders = _all_orders(stack)
    if name == "arrow_of_time":
        orders = orders[jnp.array([0, -1])]  # forwards, and the last in lexicographic order: backwards
    return Task(len(orders), _choice(len(orders), lambda x, label: frame_order.permute(x, orders[label])))


def _choice(num_classes, transform):
    """The function of a task that shows `transform(stacks, labels)`."""

    def function(key, stacks):
        labels = jax.random.randint(key, stacks.shape[:1], 0, num_classes)
        return transform(stacks, labels), labels

    return function


def _jigsaw(frame_size, grid, max_permutations, seed):
    """All frames of a stack cut and shuffled alike, tiles put back side by side."""
    if min(grid) < 1 or math.prod(grid) < 2:
        raise InputError(f"grid must have at least two tiles, not {grid[0]} x {grid[1]}")
    if max_permutations < 2:
        raise InputError(f"max_permutations must be at least 2, not {max_permutations}")
    if frame_size[0] % grid[0] or frame_size[1] % grid[1]:
        raise InputError(
            f"grid={tuple(grid)} does not fit 'jigsaw': frames of {frame_size[0]} x {frame_size[1]} pixels "
            f"do not divide into a grid of {grid[0]} x {grid[1]} equal tiles"
        )
    num_tiles = math.prod(grid)
    if math.factorial(num_tiles) <= max_permutations:
        orders = _all_orders(num_tiles)
    else:
        orders = jnp.asarray(permutations.make(num=max_permutations, length=num_tiles, seed=seed))
    tile = (frame_size[0] // grid[0], frame_size[1] // grid[1])

    def transform(stacks, labels):
        tiles = jigsaw.cover(stacks, tile)  # [B, rows, columns, h, w, T]
        listed = tiles.reshape(len(stacks), num_tiles, *tiles.shape[3:])
        return jigsaw.join(jigsaw.shuffle(listed, orders[labels]).reshape(tiles.shape))

    return Task(len(orders), _choice(len(orders), transform))


def _all_orders(length):
    """Permutations int32 [length!, length] in lexicographic order: class 0 changes nothing."""
    return jnp.asarray(np.array(list(itertools.permutations(range(length))), np.int32))
