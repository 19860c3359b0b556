"""Which pixels an answer hangs on: maps of gradients, and whether such maps can be believed.

A network enters as `logits`, a function of pictures alone: float [N, H, W, C] -> [N, K], in which the row of
a picture depends on no other picture (normalisation by running statistics, no dropout). Give it as
`jax.tree_util.Partial(apply, variables)` rather than with its variables in a closure: those then stay out of
the compiled program, which is compiled once for all variables.

Maps are signed, float32 [N, H, W, C], except those of squares; `heat` makes pictures of them.

Sources: plain gradient, Simonyan et al. 2014 (arXiv 1312.6034); SmoothGrad, Smilkov et al. 2017 (arXiv
1706.03825), of squares in Hooker et al. 2019 (arXiv 1806.10758); VarGrad, Adebayo et al. 2018 (arXiv
1810.03307); integrated gradients, Sundararajan et al. 2017 (arXiv 1703.01365); randomised parameters, Adebayo
et al. 2018 (arXiv 1810.03292); deletion and insertion, Petsiuk et al. 2018 (arXiv 1806.07421).
"""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from scipy import stats

from ssl_jax.runtime.errors import InputError

Logits = Callable[[jax.Array], jax.Array]


# --- Maps


@flax.struct.dataclass
class NoisyGradients:
    """Moments, over noisy copies of each picture, of the gradient of its target's logit.

    Attributes:
      mean: SmoothGrad, float32 [N, H, W, C].
      mean_square: SmoothGrad of squares, not negative; what Agarwal, Sinha and Ayush show.
      variance: VarGrad, not negative; `mean_square` less the square of `mean`.
    """

    mean: jax.Array
    mean_square: jax.Array
    variance: jax.Array


def gradient(logits: Logits, images: jax.Array, target: jax.Array) -> jax.Array:
    """The gradient of one logit of each picture by its pixels.

    Args:
      logits: see the module.
      images: float [N, H, W, C], as the network wants them.
      target: int [N], the logit in question; of `logits`' answers, usually the largest.

    Returns:
      float32 [N, H, W, C].
    """
    return _jitted_gradient(_partial(logits), jnp.asarray(images), jnp.asarray(target))


def noisy_gradients(
    logits: Logits,
    images: jax.Array,
    target: jax.Array,
    key: jax.Array,
    *,
    samples: int = 50,
    noise: float = 0.15,
    chunk: int = 10,
    input_range: float | None = None,
) -> NoisyGradients:
    """Gradients at noisy copies of each picture: SmoothGrad, SmoothGrad of squares, and VarGrad.

    Args:
      logits: see the module.
      images: float [N, H, W, C], as the network wants them.
      target: int [N], the logit in question.
      key: of the noise. The noise of sample s of picture n hangs on the key, s and n alone.
      samples: noisy copies of each picture.
      noise: standard deviation of the noise as a share of the range of the input; 0.1 to 0.2 in Smilkov et
        al. (Sec. 3.2).
      chunk: copies of each picture at a time; memory grows with it, and the result does not change.
      input_range: largest less smallest possible input; None: that of each picture, as in Smilkov et al.

    Raises:
      InputError: samples or chunk are less than 1, or the noise is negative.
    """
    if samples < 1 or chunk < 1 or noise < 0:
        raise InputError(
            f"samples and chunk must be at least 1, and noise at least 0, not {samples}, {chunk} and {noise}"
        )
    images = jnp.asarray(images, jnp.float32)
    if input_range is None:
        spread = images.max((1, 2, 3)) - images.min((1, 2, 3))
    else:
        spread = jnp.full(len(images), input_range, jnp.float32)
    return _noisy_gradients(
        _partial(logits), images, jnp.asarray(target), key, noise * spread, samples, min(chunk, samples)
    )


def integrated_gradients(
    logits: Logits,
    images: jax.Array,
    target: jax.Array,
    baseline: jax.Array,
    *,
    steps: int = 64,
    chunk: int = 8,
) -> jax.Array:
    """What each pixel adds to a logit on the straight way from a baseline to the picture.

    Args:
      logits: see the module.
      images: float [N, H, W, C], as the network wants them.
      target: int [N], the logit in question.
      baseline: float, of a shape that broadcasts to that of the images (with their number of axes): the
        picture that says nothing, such as black or the mean colour.
      steps: points on the way, at the middles of equal parts.
      chunk: points at a time; memory grows with it, and the result does not change.

    Returns:
      float32 [N, H, W, C], whose sum over a picture is its logit less that of the baseline, but for the
      error of `steps` points (completeness, Sundararajan et al., Proposition 1).

    Raises:
      InputError: steps or chunk are less than 1.
    """
    if steps < 1 or chunk < 1:
        raise InputError(f"steps and chunk must be at least 1, not {steps} and {chunk}")
    images = jnp.asarray(images, jnp.float32)
    baseline = jnp.broadcast_to(jnp.asarray(baseline, jnp.float32), images.shape)
    return _integrated_gradients(
        _partial(logits), images, jnp.asarray(target), baseline, steps, min(chunk, steps)
    )


def all_heats(
    logits: Logits,
    images: jax.Array,
    target: jax.Array,
    key: jax.Array,
    *,
    samples: int,
    noise: float,
    steps: int,
    chunk: int,
) -> dict[str, jax.Array]:
    """How much each pixel matters by every kind of map.

    Args:
      logits: see the module.
      images: float [N, H, W, C], as the network wants them; integrated gradients begin at zero.
      target: int [N], the logit in question.
      key, samples, noise: see `noisy_gradients`.
      steps: of integrated gradients.
      chunk: copies of each picture at a time.

    Returns:
      "squares", "mean", "variance", "integrated" and "gradient" -> float32 [N, H, W].
    """
    noisy = noisy_gradients(logits, images, target, key, samples=samples, noise=noise, chunk=chunk)
    nothing = jnp.zeros((1,) * images.ndim)
    maps = {
        "squares": noisy.mean_square,
        "mean": noisy.mean,
        "variance": noisy.variance,
        "integrated": integrated_gradients(logits, images, target, nothing, steps=steps, chunk=chunk),
        "gradient": gradient(logits, images, target),
    }
    return {name: heat(of_kind) for name, of_kind in maps.items()}


def heat(maps: jax.Array) -> jax.Array:
    """How much each pixel matters: maps [N, H, W, C] -> [N, H, W], sums of absolute values over channels."""
    return jnp.abs(maps).sum(-1)


def _partial(logits):
    """As a pytree, so that arrays bound to a function are arguments of the program, and it is static."""
    return logits if isinstance(logits, Partial) else Partial(logits)


def _gradient(logits, images, target):
    def total(images):
        answers = logits(images).astype(jnp.float32)
        return jnp.take_along_axis(answers, target[:, None], axis=1).sum()

    return jax.grad(total)(images.astype(jnp.float32))


_jitted_gradient = jax.jit(_gradient)


def _gradients_of_copies(logits, copies, target):
    """Copies [c, N, H, W, C] of pictures -> gradients of that shape, in one batch of c N pictures."""
    batch = copies.reshape(-1, *copies.shape[2:])
    return _gradient(logits, batch, jnp.tile(target, len(copies))).reshape(copies.shape)


@functools.partial(jax.jit, static_argnames=("samples", "chunk"))
def _noisy_gradients(logits, images, target, key, deviation, samples, chunk):
    axes = (slice(None),) + (None,) * (images.ndim - 1)

    def draw(sample, number):
        return jax.random.normal(
            jax.random.fold_in(jax.random.fold_in(key, sample), number), images.shape[1:]
        )

    def step(moments, first):
        count, mean, spread = moments
        number = first + jnp.arange(chunk)
        noise = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(number, jnp.arange(len(images)))
        gradients = _gradients_of_copies(logits, images[None] + deviation[axes][None] * noise, target)
        # Of the last chunk, only the samples that were asked for count. Chan et al. 1983: moments of two
        # parts are joined without the difference of two large numbers.
        counts = (number < samples)[(slice(None),) + (None,) * images.ndim]
        num = counts.sum().astype(jnp.float32)
        new_mean = jnp.where(counts, gradients, 0).sum(0) / num
        new_spread = jnp.where(counts, gradients - new_mean[None], 0)
        difference, total = new_mean - mean, count + num
        mean += difference * (num / total)
        spread += (new_spread**2).sum(0) + difference**2 * (count * num / total)
        return (total, mean, spread), None

    start = jnp.zeros(()), jnp.zeros_like(images), jnp.zeros_like(images)
    (_, mean, spread), _ = lax.scan(step, start, jnp.arange(0, samples, chunk))
    variance = spread / samples
    return NoisyGradients(mean, mean**2 + variance, variance)


@functools.partial(jax.jit, static_argnames=("steps", "chunk"))
def _integrated_gradients(logits, images, target, baseline, steps, chunk):
    axes = (slice(None),) + (None,) * images.ndim

    def step(total, first):
        number = first + jnp.arange(chunk)
        share = ((number + 0.5) / steps)[axes]
        gradients = _gradients_of_copies(logits, baseline[None] + share * (images - baseline)[None], target)
        return total + jnp.where((number < steps)[axes], gradients, 0).sum(0), None

    total, _ = lax.scan(step, jnp.zeros_like(images), jnp.arange(0, steps, chunk))
    return (images - baseline) * total / steps


# --- Whether the maps can be believed


def rank_correlation(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each map with the other: float [N, H, W] twice -> float64 [N].

    Between the maps of a network and those of the same network with random parameters it tells what a map
    shows of what was learned (Adebayo et al. 2018, Sec. 3): near 1, only the picture.

    Equal values share the mean of their ranks. NaN where all values are equal.
    """
    ranks = [stats.rankdata(array.reshape(len(array), -1), axis=1) for array in (maps, others)]
    ranks = [rank - rank.mean(1, keepdims=True) for rank in ranks]
    with np.errstate(invalid="ignore"):
        return (ranks[0] * ranks[1]).sum(1) / np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))


@flax.struct.dataclass
class Curve:
    """How an answer follows the pixels that are shown.

    Attributes:
      share: float32 [S + 1], of the pixels that have been deleted or inserted, from 0 to 1.
      probability: float32 [N, S + 1], of each picture's target.
      auc: float32 [N], the area under the curve, in [0, 1].
    """

    share: jax.Array
    probability: jax.Array
    auc: jax.Array


def deletion(
    logits: Logits,
    images: jax.Array,
    target: jax.Array,
    maps: jax.Array,
    baseline: jax.Array,
    *,
    steps: int = 32,
) -> Curve:
    """The target's probability while pixels are deleted, the hottest first (Petsiuk et al. 2018).

    A good map makes it fall soon: the smaller the area, the better. Pixels of equal heat go row by row.

    Args:
      logits: see the module; their softmax is the probability.
      images: float [N, H, W, C], as the network wants them.
      target: int [N].
      maps: heat, float [N, H, W].
      baseline: what deleted pixels become; of a shape that broadcasts to that of the images (with their
        number of axes). Grey, which is 0 for normalised pictures, in Petsiuk et al.
      steps: equal shares of the pixels; each is one batch of N pictures.

    Raises:
      InputError: steps are less than 1, or the heat has another shape than the pictures.
    """
    return _exchange(logits, images, baseline, target, maps, steps)


def insertion(
    logits: Logits,
    images: jax.Array,
    target: jax.Array,
    maps: jax.Array,
    baseline: jax.Array,
    *,
    steps: int = 32,
) -> Curve:
    """The target's probability while pixels are put on a baseline, the hottest first; see `deletion`.

    A good map makes it rise soon: the larger the area, the better. The baseline of Petsiuk et al. is the
    picture itself, `blurred`, since edges of single pixels on grey would be answers of their own.
    """
    return _exchange(logits, baseline, images, target, maps, steps)


def _exchange(logits, before, after, target, maps, steps):
    before, after = jnp.broadcast_arrays(jnp.asarray(before, jnp.float32), jnp.asarray(after, jnp.float32))
    if steps < 1 or maps.shape != before.shape[:3]:
        raise InputError(
            f"heat {list(maps.shape)} must have the size of the pictures, {list(before.shape[:3])}, and "
            f"steps be at least 1, not {steps}"
        )
    return _curve(_partial(logits), before, after, jnp.asarray(target), jnp.asarray(maps), steps)


@functools.partial(jax.jit, static_argnames="steps")
def _curve(logits, before, after, target, maps, steps):
    heat = maps.reshape(len(maps), -1)
    order = jnp.argsort(-heat, axis=1, stable=True)
    rank = jnp.argsort(order, axis=1).reshape(maps.shape)  # 0 is the hottest pixel
    share = jnp.arange(steps + 1) / steps

    def probability(share):
        exchanged = rank < jnp.round(share * heat.shape[1])
        answers = logits(jnp.where(exchanged[..., None], after, before)).astype(jnp.float32)
        return jnp.take_along_axis(jax.nn.softmax(answers), target[:, None], axis=1)[:, 0]

    curve = lax.map(probability, share).T
    return Curve(share, curve, (curve[:, 1:] + curve[:, :-1]).mean(1) / 2)


def blurred(images: jax.Array, deviation: float = 5.0) -> jax.Array:
    """Pictures float [N, H, W, C] without detail: convolved with a Gaussian, its deviation in pixels.

    At the borders the pictures go on as in a mirror.
    """
    reach = int(np.ceil(2 * deviation))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    for axis in (1, 2):
        images = jnp.einsum(
            "oi,...i->...o", _blur(images.shape[axis], weights), jnp.moveaxis(images, axis, -1)
        )
        images = jnp.moveaxis(images, -1, axis)
    return images


def _blur(size, weights):
    """Each pixel's share in each blurred one: float32 [size, size]."""
    reach = len(weights) // 2
    shares = np.zeros((size, size))
    for offset, weight in zip(range(-reach, reach + 1), weights / weights.sum(), strict=True):
        place = np.arange(size) + offset
        place = place % (2 * size)
        np.add.at(shares, (np.arange(size), np.where(place < size, place, 2 * size - 1 - place)), weight)
    return np.float32(shares)
