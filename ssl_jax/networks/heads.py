"""Heads that name what was done to a picture or clip, on top of an encoder that sees its parts alone.

    tiles [B, m, h, w, 3] -> encoder, fc6 (per tile) -> features [B, m, d] -> fc7, classifier -> logits

The siamese, context-free arrangement of Noroozi and Favaro 2016 (Sec. 3.2): tiles meet only in fc7. So
the answers to *every* permutation of an image cost far less than as many passes: its tiles are encoded
once, and fc7, which is linear in the stacked features, is a sum of m of m x m products,

    fc7(p) = b + sum_i features[p[i]] @ W[i] = b + sum_i partial[p[i], i].

What remains for each permutation is that sum, a product with an m * m row of zeros and ones, and the
classifier, which is the larger part: 2 * fc7 * classes operations, 8 MFLOP at paper size with 1000
classes, where encoding the nine tiles takes 3,900. `permutations_per_image` keeps that in bounds.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.networks.layers import loop_shape

ANSWERS_PER_STEP = 4096  # (image, permutation) pairs whose fc7 and logits are in memory at once


class JigsawHead(nn.Module):
    """fc6 per tile, the stacked fc7, and a classifier over the permutation set.

    Kernels before a ReLU start He normal. The classifier starts at zero, and the loss at log(classes).

    Attributes:
      num_classes: size of the permutation set.
      fc6: features per tile.
      fc7: features of the puzzle.
      dropout: rate after fc6 and fc7, in training; from the random stream "dropout".
      dtype: of the computation; parameters and logits are float32.
    """

    num_classes: int
    fc6: int = 1024
    fc7: int = 4096
    dropout: float = 0.5
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Names the layers; in the parameters they are fc6, fc7 and classifier."""
        he_normal = nn.initializers.he_normal()
        self.fc6_layer = nn.Dense(self.fc6, dtype=self.dtype, kernel_init=he_normal, name="fc6")
        self.fc7_layer = nn.Dense(self.fc7, dtype=self.dtype, kernel_init=he_normal, name="fc7")
        self.classifier = nn.Dense(
            self.num_classes, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="classifier"
        )
        self.drop = nn.Dropout(self.dropout)

    def tile_features(self, maps: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, h, w, c] of single tiles -> features [N, fc6]."""
        return self.drop(rectified(self.fc6_layer, maps), deterministic=not train)

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Features [B, m, fc6] in shuffled order -> float32 logits [B, num_classes]."""
        hidden = self.drop(rectified(self.fc7_layer, features), deterministic=not train)
        return self.classifier(hidden).astype(jnp.float32)

    def permutation_margins(
        self, features: jax.Array, permutations: jax.Array, index: jax.Array
    ) -> jax.Array:
        """By how much the right class leads, for tiles [B, m, fc6] in true order: see `stepwise_margins`."""
        return stepwise_margins(self._answer, features, permutations, index)

    def _answer(self, features, permutations, index):
        """Logits [s, n, K, classes] for features [s, n, m, fc6] and rows [s, n, K] of permutations."""
        tiles = features.shape[2]
        kernel, bias = weights(self.fc7_layer)
        partial = jnp.einsum("snjd,ide->snjie", features, kernel.reshape(tiles, -1, self.fc7))
        partial = partial.reshape(*features.shape[:2], tiles * tiles, self.fc7)
        # Row p has a one where tile j is at position i. A product with it is faster than gathering.
        shown = permutations[:, None, :] == jnp.arange(tiles)[None, :, None]
        shown = shown.reshape(len(permutations), tiles * tiles).astype(self.dtype)
        hidden = nn.relu(jnp.einsum("snkq,snqe->snke", shown[index], partial) + bias)
        kernel, bias = weights(self.classifier)
        return (jnp.einsum("snke,ec->snkc", hidden, kernel) + bias).astype(jnp.float32)


class FrameOrderHead(nn.Module):
    """fc6 per frame, an LSTM over the frames in the order shown, and a classifier over all its outputs.

    Büchler, Brattoli and Ommer 2018 have an LSTM join the frames. The last output alone would do, having
    seen them all, but learns more slowly: joined, every frame is as near to the answer as the last one.
    The half of the LSTM's gates that looks at the frames is the same for every permutation and computed
    once.

    What all frames share, which is nearly everything, tells nothing of their order, so features are taken
    relative to their clip: [ours], see `relative_to_clip`. In 12 orders of Freeway clips, 200 steps of 32,
    0.83 are right with it and 0.08, as many as by chance, without.

    Kernels before a ReLU start He normal. The classifier starts at zero, and the loss at log(classes).

    Attributes:
      num_classes: size of the permutation set.
      fc6: features per frame.
      lstm: size of the LSTM's state.
      dropout: rate after fc6 and the LSTM, in training; from the random stream "dropout".
      dtype: of the computation; parameters and logits are float32.
    """

    num_classes: int
    fc6: int = 1024
    lstm: int = 256
    dropout: float = 0.5
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Names the layers; in the parameters they are fc6, lstm and classifier."""
        he_normal = nn.initializers.he_normal()
        self.fc6_layer = nn.Dense(self.fc6, dtype=self.dtype, kernel_init=he_normal, name="fc6")
        self.lstm_layer = nn.RNN(nn.OptimizedLSTMCell(self.lstm, dtype=self.dtype), name="lstm")
        self.classifier = nn.Dense(
            self.num_classes, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="classifier"
        )
        self.drop = nn.Dropout(self.dropout)

    def tile_features(self, maps: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, h, w, c] of single frames -> features [N, fc6]."""
        return self.drop(rectified(self.fc6_layer, maps), deterministic=not train)

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Features [B, m, fc6] in shuffled order -> float32 logits [B, num_classes]."""
        outputs = self.lstm_layer(relative_to_clip(features))
        hidden = self.drop(outputs.reshape(len(outputs), -1), deterministic=not train)
        return self.classifier(hidden).astype(jnp.float32)

    def permutation_margins(
        self, features: jax.Array, permutations: jax.Array, index: jax.Array
    ) -> jax.Array:
        """By how much the right class leads, for frames [B, m, fc6] in true order: see `stepwise_margins`."""
        return stepwise_margins(self._answer, features, permutations, index)

    def _answer(self, features, permutations, index):
        """Logits [s, n, K, classes] for features [s, n, m, fc6] and rows [s, n, K] of permutations."""
        cell = self.lstm_layer.variables["params"]["cell"]
        join = lambda kind, part: jnp.concatenate([cell[kind + gate][part] for gate in "ifgo"], -1)
        recurrent = join("h", "kernel").astype(self.dtype)
        # What the gates see of a frame, for all frames: [s, n, m, 4 lstm].
        features = relative_to_clip(features)
        seen = jnp.einsum("snmd,de->snme", features, join("i", "kernel").astype(self.dtype))
        seen += join("h", "bias").astype(self.dtype)[None, None, None]
        order = permutations[index]  # [s, n, K, m]
        state, outputs = jnp.zeros((*index.shape, self.lstm), self.dtype), []
        for i in range(order.shape[-1]):
            gates = jnp.take_along_axis(seen, order[..., i, None], axis=2)
            if outputs:  # What came out before the first frame is zero.
                gates += jnp.einsum("snkd,de->snke", outputs[-1], recurrent)
            enter, keep, new, leave = jnp.split(gates, 4, axis=-1)
            state = nn.sigmoid(keep) * state + nn.sigmoid(enter) * jnp.tanh(new)
            outputs.append(nn.sigmoid(leave) * jnp.tanh(state))
        kernel, bias = weights(self.classifier)
        return (jnp.einsum("snkd,dc->snkc", jnp.concatenate(outputs, -1), kernel) + bias).astype(jnp.float32)


def rectified(layer: nn.Dense, x: jax.Array) -> jax.Array:
    """What a layer makes of x [N, ...], flattened, less what is negative: [N, features of the layer]."""
    return nn.relu(layer(x.reshape(x.shape[0], -1)))


def weights(layer: nn.Dense) -> tuple[jax.Array, jax.Array]:
    """A layer's kernel, and its bias with the axes of answers, in the dtype of its computation."""
    params = layer.variables["params"]
    return params["kernel"].astype(layer.dtype), params["bias"].astype(layer.dtype)[None, None, None]


def stepwise_margins(
    answer: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    features: jax.Array,
    permutations: jax.Array,
    index: jax.Array,
) -> jax.Array:
    """By how much the right class leads when each example is shuffled in K ways.

    Args:
      answer: (features [s, n, m, d], permutations, rows of them [s, n, K]) -> logits [s, n, K, classes].
      features: float [B, m, d] of the parts, in true order.
      permutations: int [P, m]; row i is class i.
      index: int [B, K], the rows that an example answers.

    Returns:
      float32 [B, K], see `margins`. Logits of `ANSWERS_PER_STEP` pairs exist at a time.
    """
    shape = loop_shape(len(index), ANSWERS_PER_STEP // index.shape[1])

    def step(inputs):
        features, index = inputs
        return margins(answer(features, permutations, index), index)

    divided = (jnp.moveaxis(array.reshape(*shape, *array.shape[1:]), 2, 0) for array in (features, index))
    lead = lax.map(step, tuple(divided))  # [steps, shards, n, K]
    return jnp.moveaxis(lead, 0, 2).reshape(index.shape)


def relative_to_clip(features: jax.Array) -> jax.Array:
    """Features [..., m, d] less their mean over the m frames, with a root mean square of 1.

    The same whatever the order of the frames. Frames that are all alike give zeros.
    """
    features = features - features.mean(-2, keepdims=True)
    return features * lax.rsqrt((features**2).mean((-2, -1), keepdims=True) + 1e-6)


class ColorHead(nn.Module):
    """1 x 1 convolutions that name the colour of each cell of a map (Zhang, Isola and Efros 2016).

    The only head that keeps the map's places. The classifier starts at zero, and the loss at log(classes).

    Attributes:
      num_classes: colours, see `pretext.colorization`.
      hidden: channels between the two convolutions.
      dtype: of the computation; parameters and logits are float32.
    """

    num_classes: int
    hidden: int = 256
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Names the layers; a Dense layer on channels is a 1 x 1 convolution."""
        self.hidden_layer = nn.Dense(
            self.hidden, dtype=self.dtype, kernel_init=nn.initializers.he_normal(), name="hidden"
        )
        self.classifier = nn.Dense(
            self.num_classes, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="classifier"
        )

    def tile_features(self, maps: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, h, w, c] of single pictures -> features [N, h, w, hidden]."""
        del train
        return nn.relu(self.hidden_layer(maps.astype(self.dtype)))

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Features [B, 1, h, w, hidden] -> float32 logits [B, h, w, num_classes]."""
        del train
        return self.classifier(features[:, 0]).astype(jnp.float32)


class PuzzleNetwork(nn.Module):
    """One encoder, and a head for each task.

    Attributes:
      encoder: float [N, h, w, 3] -> maps [N, h', w', c].
      heads: task -> what becomes of the maps.
      output_dtype: of the logits.
    """

    encoder: nn.Module
    heads: Mapping[str, nn.Module]
    output_dtype: Any = jnp.float32

    def part_features(self, parts: jax.Array, task: str, *, train: bool) -> jax.Array:
        """Parts [B, m, h, w, 3] -> features [B, m, d], or what else the head makes of each part's map."""
        maps = self.encoder(parts.reshape(-1, *parts.shape[2:]), train=train)
        features = self.heads[task].tile_features(maps, train=train)
        return features.reshape(*parts.shape[:2], *features.shape[1:])

    def __call__(self, parts: jax.Array, task: str, *, train: bool) -> jax.Array:
        """Parts [B, m, h, w, 3] in the order shown -> logits [B, classes of the task] of `output_dtype`."""
        features = self.part_features(parts, task, train=train)
        return self.heads[task].classify(features, train=train).astype(self.output_dtype)

    def initialize(self, parts: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Reaches every parameter, for `init`: task -> parts; returns the logits."""
        return {task: self(of_task, task, train=False) for task, of_task in parts.items()}

    def permutation_margins(
        self, parts: jax.Array, task: str, permutations: jax.Array, index: jax.Array
    ) -> jax.Array:
        """By how much the right class leads when each example is shuffled in K ways.

        Args:
          parts: float [B, m, h, w, 3] in true order; each is encoded once.
          task: one whose classes are permutations.
          permutations: int [P, m]; row i is class i.
          index: int [B, K], the rows that an example answers.

        Returns:
          float32 [B, K], see `margins`.
        """
        features = self.part_features(parts, task, train=False)
        return self.heads[task].permutation_margins(features, permutations, index)


def margins(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Logits [..., C], int [...] -> float32 [...]: logit of the right class minus the largest other one.

    It is the logarithm of the ratio of their probabilities.
    """
    logits = logits.astype(jnp.float32)
    right = label[..., None] == jnp.arange(logits.shape[-1])[(None,) * label.ndim]
    others = jnp.where(right, -jnp.inf, logits).max(-1)
    return jnp.take_along_axis(logits, label[..., None], -1)[..., 0] - others


def answered(num_examples: int, num_classes: int, each: int | None) -> jax.Array:
    """Which classes the examples of a batch answer: int32 [B, K], example n n K, ..., n K + K - 1 (mod P).

    So each class is answered by B K / P examples. `each` is K; None: all P.
    """
    each = min(each or num_classes, num_classes)
    first = jnp.arange(num_examples)[:, None] * each % num_classes
    return (first + jnp.arange(each)[None]) % num_classes


def answer_sums(
    margins: jax.Array, index: jax.Array, num_classes: int, mask: jax.Array
) -> dict[str, jax.Array]:
    """How every class was answered.

    Args:
      margins: float32 [B, K], see the function of that name.
      index: int [B, K] from `answered`.
      num_classes: P.
      mask: bool [B], examples that count.

    Returns:
      float32 [P] sums over the batch: "correct" (the right class won), "ratio" (probability of the right
      class over that of the largest other one, kept within exp(-20) and exp(20)) and "count". Sums of
      several batches may be added; divided by "count" they are means.
    """
    # Back from the answers of an example, [B, K], to a table [B, P] with gaps. A sum by scattering
    # would not be the same twice on a GPU.
    each = index.shape[1]
    place = (jnp.arange(num_classes)[None] - index[:, :1]) % num_classes
    counts = (place < each) & mask[:, None]
    return _sums(jnp.take_along_axis(margins, jnp.minimum(place, each - 1), axis=1), counts)


def cell_sums(
    margins: jax.Array, classes: jax.Array, num_classes: int, mask: jax.Array
) -> dict[str, jax.Array]:
    """How every class was answered, by those cells of maps that are of the class.

    Args:
      margins: float32 [B, h, w], see the function of that name.
      classes: int [B, h, w].
      num_classes: P.
      mask: bool [B], examples that count.

    Returns:
      float32 [P] sums, see `answer_sums`; a class that no cell is of has a "count" of 0.
    """
    of_class = classes[..., None] == jnp.arange(num_classes)[None, None, None]
    counts = of_class & mask[:, None, None, None]
    return _sums(margins.reshape(-1, 1), counts.reshape(-1, num_classes))


def _sums(margins, counts):
    """Sums over the rows of a table of margins, [N, P] or [N, 1], where `counts` [N, P] is true."""
    values = {"correct": margins > 0, "ratio": jnp.exp(jnp.clip(margins, -20, 20)), "count": 1.0}
    return {name: jnp.where(counts, value, 0.0).sum(0) for name, value in values.items()}
