"""The arrow of time: does a clip run forwards or backwards? (Wei et al., CVPR 2018; Pickup et al. 2014)

Of all orders of frames the first and the last, which keep neighbours neighbours. So what tells the direction
is not that things move, but that some of it cannot be undone: what falls, hits, breaks or grows.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ssl_jax.pretext import frame_order


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrowOfTime(frame_order.FrameOrder):
    """The options of `FrameOrder`, whose defences serve here too: they are the same in both directions."""

    num_classes: ClassVar[int] = 2


def puzzle(
    key: jax.Array, clips: jax.Array, index: jax.Array, task: ArrowOfTime, *, train: bool
) -> jax.Array:
    """What the network sees of clips, each played in one direction.

    Args:
      key: PRNG key of this batch.
      clips: uint8 [B, u, H, W, 3].
      index: int32 [B], the classes to be named: 0 forwards, 1 backwards.
      task: sizes and defences.
      train: whether colours are augmented; windows are random in any case, from the key.

    Returns:
      float32 [B, u, h, w, 3] in the order shown.
    """
    frames = frame_order.puzzle(key, clips, task, train=train)
    return jnp.where(index[:, None, None, None, None] == 1, frames[:, ::-1], frames)
