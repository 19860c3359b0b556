"""Heads that name the permutation, on top of an encoder that never sees the order.

    tiles [B, m, h, w, 3] -> encoder, fc6 (per tile) -> features [B, m, d] -> fc7, classifier -> logits

The siamese, context-free arrangement of Noroozi and Favaro 2016 (Sec. 3.2): tiles meet only in fc7. So
the answers to *every* permutation of an image cost far less than as many passes: its tiles are encoded
once, and fc7, which is linear in the stacked features, is a sum of m of m x m products,

    fc7(p) = b + sum_i features[p[i]] @ W[i] = b + sum_i partial[p[i], i].

What remains for each permutation is that sum, a product with an m * m row of zeros and ones, and the
classifier, which is the larger part: 2 * fc7 * classes operations, 8 MFLOP at paper size with 1000
classes, where encoding the nine tiles takes 3,900. `permutations_per_image` keeps that in bounds.
"""

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
        hidden = nn.relu(self.fc6_layer(maps.reshape(maps.shape[0], -1)))
        return self.drop(hidden, deterministic=not train)

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Features [B, m, fc6] in shuffled order -> float32 logits [B, num_classes]."""
        hidden = nn.relu(self.fc7_layer(features.reshape(features.shape[0], -1)))
        hidden = self.drop(hidden, deterministic=not train)
        return self.classifier(hidden).astype(jnp.float32)

    def permutation_logits(self, features: jax.Array, permutations: jax.Array) -> jax.Array:
        """Features [B, m, fc6] in true order, int [P, m] -> float32 logits [B, P, num_classes].

        Equal to `classify` of `features[:, permutations[p]]` for every p, up to the order of sums.
        """
        num = len(features)
        index = jnp.broadcast_to(jnp.arange(len(permutations))[None], (num, len(permutations)))
        return self._answer(features[None], permutations, index[None])[0]

    def permutation_margins(
        self, features: jax.Array, permutations: jax.Array, index: jax.Array
    ) -> jax.Array:
        """By how much the right class leads when each image is shuffled in K ways.

        Args:
          features: float [B, m, fc6] in true order.
          permutations: int [P, m]; row i is class i.
          index: int [B, K], the rows that an image answers.

        Returns:
          float32 [B, K]: logit of the right class minus the largest other one, which is the logarithm
          of the ratio of their probabilities. Logits of `ANSWERS_PER_STEP` pairs exist at a time.
        """
        shape = loop_shape(len(index), ANSWERS_PER_STEP // index.shape[1])

        def step(inputs):
            features, index = inputs
            logits = self._answer(features, permutations, index)
            right = index[..., None] == jnp.arange(self.num_classes)[None, None, None]
            others = jnp.where(right, -jnp.inf, logits).max(-1)
            return jnp.take_along_axis(logits, index[..., None], -1)[..., 0] - others

        divided = (jnp.moveaxis(array.reshape(*shape, *array.shape[1:]), 2, 0) for array in (features, index))
        margins = lax.map(step, tuple(divided))  # [steps, shards, n, K]
        return jnp.moveaxis(margins, 0, 2).reshape(index.shape)

    def _answer(self, features, permutations, index):
        """Logits [s, n, K, classes] for features [s, n, m, fc6] and rows [s, n, K] of permutations."""
        tiles = features.shape[2]
        kernel, bias = self._weights(self.fc7_layer)
        partial = jnp.einsum("snjd,ide->snjie", features, kernel.reshape(tiles, -1, self.fc7))
        partial = partial.reshape(*features.shape[:2], tiles * tiles, self.fc7)
        # Row p has a one where tile j is at position i. A product with it is faster than gathering.
        shown = permutations[:, None, :] == jnp.arange(tiles)[None, :, None]
        shown = shown.reshape(len(permutations), tiles * tiles).astype(self.dtype)
        hidden = nn.relu(jnp.einsum("snkq,snqe->snke", shown[index], partial) + bias)
        kernel, bias = self._weights(self.classifier)
        return (jnp.einsum("snke,ec->snkc", hidden, kernel) + bias).astype(jnp.float32)

    def _weights(self, layer):
        """Kernel, and bias with the axes of answers, in the dtype of the computation."""
        params = layer.variables["params"]
        return params["kernel"].astype(self.dtype), params["bias"].astype(self.dtype)[None, None, None]


class PuzzleNetwork(nn.Module):
    """An encoder and a head.

    Attributes:
      encoder: float [N, h, w, 3] -> maps [N, h', w', c].
      head: what becomes of the maps.
    """

    encoder: nn.Module
    head: JigsawHead

    def tile_features(self, tiles: jax.Array, *, train: bool) -> jax.Array:
        """Tiles [B, m, h, w, 3] -> features [B, m, fc6]."""
        maps = self.encoder(tiles.reshape(-1, *tiles.shape[2:]), train=train)
        return self.head.tile_features(maps, train=train).reshape(*tiles.shape[:2], -1)

    def __call__(self, tiles: jax.Array, *, train: bool) -> jax.Array:
        """Shuffled tiles [B, m, h, w, 3] -> float32 logits [B, num_classes]."""
        return self.head.classify(self.tile_features(tiles, train=train), train=train)

    def permutation_statistics(
        self,
        tiles: jax.Array,
        permutations: jax.Array,
        *,
        mask: jax.Array,
        permutations_per_image: int | None = None,
    ) -> dict[str, jax.Array]:
        """How the network answers every permutation of every image.

        Args:
          tiles: float [B, m, h, w, 3] in true order.
          permutations: int [P, m]; row i is class i.
          mask: bool [B], images that count.
          permutations_per_image: K; image n answers permutations n K, ..., n K + K - 1 (mod P) only, so
            that each is answered by B K / P images. None: all of them.

        Returns:
          float32 [P] sums over the batch: "correct" (the right class won), "ratio" (probability of the
          right class over that of the largest other one, kept within exp(-20) and exp(20)) and "count".
          Sums of several batches may be added; divided by "count" they are means.
        """
        num = len(permutations)
        each = min(permutations_per_image or num, num)
        first = jnp.arange(len(tiles))[:, None] * each % num  # [B, 1]
        index = (first + jnp.arange(each)[None]) % num  # [B, K]
        features = self.tile_features(tiles, train=False)
        margins = self.head.permutation_margins(features, permutations, index)
        # Back from the answers of an image, [B, K], to a table [B, P] with gaps. A sum by scattering
        # would not be the same twice on a GPU.
        place = (jnp.arange(num)[None] - first) % num
        counts = (place < each) & mask[:, None]
        margins = jnp.take_along_axis(margins, jnp.minimum(place, each - 1), axis=1)
        values = {"correct": margins > 0, "ratio": jnp.exp(jnp.clip(margins, -20, 20)), "count": 1.0}
        return {name: jnp.where(counts, value, 0.0).sum(0) for name, value in values.items()}
