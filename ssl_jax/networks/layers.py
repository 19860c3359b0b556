"""Convolution and max pooling, in forms with the same answers; local response normalisation.

The *plain* form is what XLA offers, and meant for GPU and TPU. The *cpu* form is for XLA's CPU
backend, where grouped convolutions, gradients of convolutions and select-and-scatter are slow. Both
have the same parameters, values and gradients, to float32 rounding; `fast_on_cpu` is the one place
that chooses. *blocks*, for strided convolutions of few channels, is the plain form but on a CPU, see
`_block_conv`. A batch may be split among devices along axis 0: the cpu form then communicates nothing
but the sum of the kernels' gradients, as the plain form does.
"""

import functools
import math
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssl_jax.runtime.config import check_known
from ssl_jax.runtime.errors import InputError

Form = Literal["auto", "plain", "blocks", "cpu"]

# Interpolation points of Winograd's algorithm, in the order of use; good for 5 x 5 kernels at most.
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)
# With fewer (channels in) * (channels out), its transforms cost more than it saves.
MIN_WINOGRAD_PAIRS = 4096
# Patches of a few images at a time, so that they are still in the cache when they are multiplied.
PATCH_BYTES = 4 << 20


def fast_on_cpu(form: Form = "auto") -> bool:
    """Whether to use the cpu form.

    Raises:
      InputError: `form` is none of "auto" (choose by the default backend), "plain", "blocks" and "cpu".
    """
    check_known("form", form, get_args(Form))
    return jax.default_backend() == "cpu" if form == "auto" else form == "cpu"


@functools.cache
def compiler_options() -> dict[str, str]:
    """Options of `jax.jit` for a network of few channels, such as a Q-network; none but on a CPU.

    XLA's CPU backend gives convolutions to YNNPACK, which computes each on one thread. XLA's own take all
    threads: on two cores, an update of a Q-network takes a quarter to a third less time; on one core, as
    long. Products of matrices stay with YNNPACK; and so do sums, which XLA would write the squares of all
    gradients to memory for, a tenth of an update. An XLA that does not know the option does without.
    """
    if jax.default_backend() != "cpu":
        return {}
    kinds = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"  # those that stay with YNNPACK
    options = {"xla_cpu_experimental_ynn_fusion_type": kinds}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def check_input(x: jax.Array, smallest: int, who: str) -> None:
    """Raises InputError for images [N, h, w, c] smaller than `smallest` pixels in height or width."""
    if min(x.shape[1:3]) < smallest:
        raise InputError(
            f"images of {x.shape[1]} x {x.shape[2]} pixels are too small for {who}; the smallest it takes "
            f"are {smallest} x {smallest}"
        )


def asked_for(layer: str | None, layers: tuple[str, ...]) -> str:
    """The layer whose map an encoder is to give: one of its layers, or for None the last.

    Raises:
      InputError: it has no such layer.
    """
    layer = layer or layers[-1]
    check_known("layer", layer, layers)
    return layer


class Conv(nn.Module):
    """A convolution with bias. Parameters: kernel [k, k, channels in / groups, features], bias [features].

    Attributes:
      features: channels out.
      window: k, height and width of the kernel in pixels.
      stride: pixels.
      padding: zeros on each of the four sides, pixels.
      groups: independent convolutions among which channels in and out are divided.
      kernel_init: He normal, for the ReLU that follows.
      dtype: of the computation; parameters are float32.
      form: see the module, and `fast_on_cpu`.
    """

    features: int
    window: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    dtype: Any = jnp.float32
    form: Form = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Float [N, h, w, c] -> [N, h', w', features] of `dtype`."""
        shape = (self.window, self.window, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = conv(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
            form=self.form,
        )
        return y + bias.astype(self.dtype)[None, None, None]


def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    form: Form = "auto",
) -> jax.Array:
    """A convolution without bias: float [N, h, w, c], [k, k, c / groups, d] -> [N, h', w', d].

    The cpu form computes in float32, whatever the dtype of `x`, and rounds the result: XLA's CPU
    backend multiplies matrices of bfloat16 no faster.
    """
    if not fast_on_cpu(form):
        fits = stride > 1 and kernel.shape[0] % stride == 0 and groups == 1
        if form == "blocks" and fits and fast_on_cpu():
            return _block_conv(stride, padding, x, kernel)
        if jax.device_count() == 1:
            return _lax_conv(stride, padding, x, kernel, groups)
        # One convolution in groups is not divided along the batch: XLA would gather x on every device.
        single, dtype = functools.partial(_lax_conv, stride, padding), x.dtype
    else:
        # XLA's CPU backend takes 6 times longer for the gradient of one convolution in two groups
        # than for that of two convolutions.
        _, window, channels, features = kernel.shape
        many = channels * features // groups >= MIN_WINOGRAD_PAIRS
        winograd = stride == 1 and window in (3, 5) and many
        single = _winograd_conv if winograd else functools.partial(_im2col_conv, stride)
        single, dtype = functools.partial(single, padding), jnp.float32
    parts = (jnp.split(array.astype(dtype), groups, axis=-1) for array in (x, kernel))
    return jnp.concatenate(list(map(single, *parts)), axis=-1).astype(x.dtype)


def _lax_conv(stride, padding, x, kernel, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _block_conv(stride, padding, x, kernel):
    """A convolution of stride s, whose window it divides, as one of stride 1 over blocks of s x s pixels.

    A block's pixels are its channels. For the gradient of a strided one XLA's CPU backend multiplies mostly
    zeros.
    """
    window, _, channels, features = kernel.shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = (size // stride for size in x.shape[1:3])
    x = x[:, : height * stride, : width * stride].reshape(len(x), height, stride, width, stride, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), height, width, -1)
    kernel = kernel.reshape(window // stride, stride, window // stride, stride, channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(window // stride, window // stride, -1, features)
    return _lax_conv(1, 0, x, kernel)


# --- Small kernels, stride 1, many channels: Winograd's minimal filtering


def _winograd_conv(padding, x, kernel):
    """A convolution of stride 1 with 2 to 6 times fewer multiplications.

    F(m x m, r x r) of Lavin and Gray 2016 (arXiv 1509.09308, Sec. 4), with every transform a matrix
    product. All axes that are merged have the batch in front, so that it can be split among devices.
    """
    num, height, width, channels = x.shape
    window = kernel.shape[0]
    sizes = [size + 2 * padding - window + 1 for size in (height, width)]

    def num_products(m):
        return math.prod(-(-size // m) * (m + window - 1) for size in sizes)

    tile = min((4, 3, 2), key=num_products)  # m, pixels of the output that are computed at once
    output, filters, data = _minimal_filtering(tile, window)
    rows = _tiled(data, tile, height, padding, sizes[0])
    columns = _tiled(data, tile, width, padding, sizes[1])
    t, tiles_h, tiles_w = len(data), rows.shape[1], columns.shape[1]

    v = rows.reshape(-1, height) @ x.transpose(1, 0, 2, 3).reshape(height, -1)
    v = jnp.tensordot(v.reshape(-1, num, width, channels), columns, ((2,), (2,)))
    v = v.reshape(t, tiles_h, num, channels, t, tiles_w).transpose(0, 4, 2, 1, 5, 3)
    u = np.kron(filters, filters) @ kernel.reshape(window**2, -1)
    y = jnp.matmul(v.reshape(t * t, -1, channels), u.reshape(t * t, channels, -1))
    y = np.kron(output, output) @ y.reshape(t * t, -1)
    y = y.reshape(tile, tile, num, tiles_h, tiles_w, -1).transpose(2, 3, 0, 4, 1, 5)
    y = y.reshape(num, tiles_h * tile, tiles_w * tile, -1)
    return y[:, : sizes[0], : sizes[1]]


@functools.cache
def _minimal_filtering(m, r):
    """Matrices with sum_j g[j] d[i + j] = (output @ (filters @ g * data @ d))[i] for i < m, j < r.

    A product of polynomials of degrees m - 1 and r - 1 is known from its values at m + r - 2 points
    and its leading coefficient; filtering is the transpose of that (Toom and Cook).

    Returns:
      float32 output [m, m + r - 1], filters [m + r - 1, r], data [m + r - 1, m + r - 1].
    """
    t = m + r - 1
    values = np.vander(POINTS[: t - 1], t, increasing=True)

    def evaluate(num_coefficients):
        return np.vstack([values[:, :num_coefficients], np.eye(num_coefficients)[-1:]])

    filters, data = evaluate(r), np.linalg.inv(evaluate(t)).T
    # Rows of the two may be scaled against each other, and round off less when they are alike.
    scale = np.exp2(np.round(np.log2(np.abs(data).sum(1) / np.abs(filters).sum(1)) / 2))[:, None]
    return tuple(np.float32(matrix) for matrix in (evaluate(m).T, filters * scale, data / scale))


def _tiled(data, tile, size, padding, out):
    """`data` [t, t] for all tiles that cover `out` pixels: float32 [t, tiles, size], unpadded."""
    tiles = -(-out // tile)
    matrix = np.zeros((len(data), tiles, tiles * tile + len(data) + size), np.float32)
    for i in range(tiles):
        matrix[:, i, i * tile : i * tile + len(data)] = data
    return matrix[:, :, padding : padding + size]


# --- Any other convolution: patches and one matrix product


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _im2col_conv(stride, padding, x, kernel):
    """XLA's convolution where no gradient is asked for: it takes half the time on many small tiles."""
    return _lax_conv(stride, padding, x, kernel)


def _im2col_conv_forward(stride, padding, x, kernel):
    """A convolution as patches times kernel, for a few images at a time."""
    window, _, _, features = kernel.shape
    num_steps, patches = _patches_of_step(stride, padding, x, window)
    out = [(size + 2 * padding - window) // stride + 1 for size in x.shape[1:3]]

    def step(i, y):
        product = patches(i) @ kernel.reshape(-1, features)
        return lax.dynamic_update_index_in_dim(y, product, i, axis=2)

    *batch, pixels, _ = jax.eval_shape(patches, 0).shape
    y = jnp.zeros((*batch, num_steps, pixels, features), x.dtype)
    return lax.fori_loop(0, num_steps, step, y).reshape(len(x), *out, features), (x, kernel)


def _im2col_conv_backward(stride, padding, residuals, gradient):
    x, kernel = residuals
    window, _, _, features = kernel.shape
    # XLA drops this where nobody reads it, as in a first layer.
    _, input_gradient = jax.vjp(lambda x: _lax_conv(stride, padding, x, kernel), x)
    (dx,) = input_gradient(gradient)

    num_steps, patches = _patches_of_step(stride, padding, x, window)
    shards, n, pixels, size = jax.eval_shape(patches, 0).shape
    gradient = gradient.reshape(shards, n, num_steps, pixels, features)

    def step(i, dw):
        g = lax.dynamic_index_in_dim(gradient, i, axis=2, keepdims=False)
        return dw + jnp.einsum("snpk,snpd->skd", patches(i), g)

    dw = lax.fori_loop(0, num_steps, step, jnp.zeros((shards, size, features), x.dtype))
    return dx, dw.sum(0).reshape(kernel.shape)


_im2col_conv.defvjp(_im2col_conv_forward, _im2col_conv_backward)


def loop_shape(num: int, most: int) -> tuple[int, int, int]:
    """How to divide a batch for a loop: [num] -> [shards, n, steps].

    Each step takes n images of every shard: as many as divide the batch, but not more than `most`, or 1.
    A batch that is split among all devices has its shards there: they loop without communication.
    """
    shards = jax.device_count() if num % jax.device_count() == 0 else 1
    each = num // shards
    n = next(n for n in range(max(1, min(most, each)), 0, -1) if each % n == 0)
    return shards, n, each // n


def _patches_of_step(stride, padding, x, window):
    """The number of steps, and a function from a step to its patches [shards, n, h' * w', k * k * c]."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = jax.eval_shape(lambda x: _patches(x, window, stride), x[0]).size
    shape = loop_shape(len(x), PATCH_BYTES // (4 * size))
    x = x.reshape(*shape, *x.shape[1:])

    def patches(i):
        return _patches(lax.dynamic_index_in_dim(x, i, axis=2, keepdims=False), window, stride)

    return shape[2], patches


def _patches(x, window, stride):
    """Float [..., h, w, c] -> [..., h' * w', window * window * c], without padding.

    Columns first: then a patch, like a row of it before, is one run of contiguous numbers.
    """
    *batch, height, width, channels = x.shape
    out_h, out_w = ((size - window) // stride + 1 for size in (height, width))

    def cut(array, size, hop, num, axis):
        runs = [lax.slice_in_dim(array, i * hop, i * hop + size, axis=-1) for i in range(num)]
        return jnp.stack(runs, axis=axis)

    row = window * channels
    columns = cut(x.reshape(*batch, height, width * channels), row, stride * channels, out_w, -3)
    columns = columns.reshape(*batch, out_w, height * row)
    patches = cut(columns, window * row, stride * row, out_h, -3).reshape(*batch, out_h * out_w, window * row)
    # Without the barrier XLA would compute patches element by element inside the product.
    return lax.optimization_barrier(patches)


# --- Pooling


def max_pool(x: jax.Array, window: int = 3, stride: int = 2, *, form: Form = "auto") -> jax.Array:
    """Maxima of windows inside the map: [N, h, w, c] -> [N, (h - window) // stride + 1, ..., c].

    The gradient goes to the first of equal maxima in both forms, row by row. Windows of 11 x 11 at most.
    """
    if fast_on_cpu(form):
        return _strided_max(window, stride, x)
    return nn.max_pool(x, (window, window), (stride, stride))


def _strided_slices(x, window, stride):
    """One [N, h', w', c] for each of the window's pixels, row by row."""
    ends = [(size - window) // stride * stride + 1 for size in x.shape[1:3]]
    for i in range(window):
        for j in range(window):
            yield x[:, i : i + ends[0] : stride, j : j + ends[1] : stride]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _strided_max(window, stride, x):
    return functools.reduce(jnp.maximum, _strided_slices(x, window, stride))


def _strided_max_forward(window, stride, x):
    largest = _strided_max(window, stride, x)
    where = jnp.full(largest.shape, -1, jnp.int8)
    for i, part in reversed(list(enumerate(_strided_slices(x, window, stride)))):
        where = jnp.where(part == largest, jnp.int8(i), where)
    # A byte each instead of the map; the barrier keeps XLA from recomputing it from the map.
    largest, where = lax.optimization_barrier((largest, where))
    return largest, (where, x.shape)


def _strided_max_backward(window, stride, residuals, gradient):
    """The gradient of pixel stride * q + r is that of windows q, q - 1, ..., if it was their maximum."""
    where, (num, height, width, channels) = residuals
    reach = -(-window // stride)  # windows that hold a pixel, along an axis
    blocks = [-(-size // stride) for size in (height, width)]

    def shifted(array, i, j, fill):
        """Entry [q - i, q' - j] at block [q, q'], for each of the block's stride x stride pixels."""
        ends = [n - m - size for n, m, size in zip(blocks, (i, j), array.shape[1:3], strict=True)]
        array = lax.pad(array, fill, ((0, 0, 0), (i, ends[0], 0), (j, ends[1], 0), (0, 0, 0)))
        return array[:, :, None, :, None]

    dx = jnp.zeros((num, blocks[0], stride, blocks[1], stride, channels), gradient.dtype)
    for i in range(reach):
        for j in range(reach):
            y, x = np.mgrid[:stride, :stride] + stride * np.array([i, j])[:, None, None]
            pixel = np.where((y < window) & (x < window), y * window + x, -2).astype(np.int8)
            hit = shifted(where, i, j, jnp.int8(-1)) == pixel[None, None, :, None, :, None]
            dx += jnp.where(hit, shifted(gradient, i, j, jnp.zeros((), gradient.dtype)), 0)
    dx = dx.reshape(num, blocks[0] * stride, blocks[1] * stride, channels)
    return (lax.optimization_barrier(dx[:, :height, :width]),)


_strided_max.defvjp(_strided_max_forward, _strided_max_backward)


# --- Normalisation


def local_response_norm(
    x: jax.Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> jax.Array:
    """x / (k + alpha / size * (sum of squares over `size` channels around)) ** beta, float [..., c].

    As in Caffe and PyTorch, alpha is divided by the size (Krizhevsky et al. 2012, Sec. 3.3, do not).
    One form for all backends.

    Args:
      x: channels last.
      size: channels of a neighbourhood, odd.
      alpha: of the squares.
      beta: the power.
      k: of a channel in a silent neighbourhood.
    """
    windows, strides = (1,) * (x.ndim - 1) + (size,), (1,) * x.ndim
    denominator = k + alpha / size * lax.reduce_window(x * x, 0.0, lax.add, windows, strides, "SAME")
    if beta == 0.75:  # square roots cost less than powers
        root = lax.rsqrt(denominator)
        return x * (root * jnp.sqrt(root))
    return x * denominator**-beta
