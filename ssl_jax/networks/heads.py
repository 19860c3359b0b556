"""Heads that name the permutation, on top of an encoder that never sees the order.

    tiles [B, m, h, w, 3] -> encoder, fc6 (per tile) -> features [B, m, d] -> fc7, classifier -> logits

The siamese, context-free arrangement of Noroozi and Favaro 2016 (Sec. 3.2): tiles meet only in fc7. So
the answers to *every* permutation of an image cost little more than the answer to one: its tiles are
encoded once, and fc7, which is linear in the stacked features, is a sum of m of m x m products,

    fc7(p) = b + sum_i features[p[i]] @ W[i] = b + sum_i partial[p[i], i].
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

ANSWERS_PER_CHUNK = 4096  # (image, permutation) pairs whose fc7 and logits are in memory at once


class JigsawHead(nn.Module):
    """fc6 per tile, the stacked fc7, and a classifier over the permutation set.

    Attributes:
      num_classes: size of the permutation set.
      fc6: features per tile.
      fc7: features of the puzzle.
      dropout: rate after fc6 and fc7, in training.
      dtype: of the computation; parameters and logits are float32.
    """

    num_classes: int
    fc6: int = 1024
    fc7: int = 4096
    dropout: float = 0.5
    dtype: Any = jnp.float32

    def setup(self):  # noqa: D102
        self.fc6_layer = nn.Dense(self.fc6, dtype=self.dtype, name="fc6")
        self.fc7_layer = nn.Dense(self.fc7, dtype=self.dtype, name="fc7")
        self.classifier = nn.Dense(self.num_classes, dtype=self.dtype, name="classifier")
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

    def partial_products(self, features: jax.Array) -> jax.Array:
        """Features [B, m, fc6] in true order -> [B, m, m, fc7]: tile j at position i is [:, j, i]."""
        tiles = features.shape[1]
        kernel = self.fc7_layer.variables["params"]["kernel"].reshape(tiles, self.fc6, self.fc7)
        return jnp.einsum("bjd,ide->bjie", features, kernel.astype(self.dtype))

    def answers(self, partial: jax.Array, permutations: jax.Array) -> jax.Array:
        """Logits [K, num_classes] of one image, partial [m, m, fc7], for permutations [K, m]."""
        positions = jnp.arange(permutations.shape[1])
        bias = self.fc7_layer.variables["params"]["bias"].astype(self.dtype)
        hidden = partial[permutations, positions[None, :]].sum(1) + bias[None, :]
        return self.classifier(nn.relu(hidden)).astype(jnp.float32)


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
          permutations: int32 [P, m]; row i is class i.
          mask: bool [B], rows that count.
          permutations_per_image: K; image n answers permutations n K, ..., n K + K - 1 (mod P) only, so
            that each is answered by B K / P images. None: all of them.

        Returns:
          float32 [P] sums over images: "correct" (the right class won), "ratio" (probability of the
          right class over that of the largest other one) and "count".
        """
        num = permutations.shape[0]
        each = min(permutations_per_image or num, num)
        partial = self.head.partial_products(self.tile_features(tiles, train=False))

        def image_statistics(head, number, partial):
            index = (number * each + jnp.arange(each)) % num
            logits = head.answers(partial, permutations[index])  # [K, P]
            right = jnp.take_along_axis(logits, index[:, None], axis=1)[:, 0]
            others = jnp.where(index[:, None] == jnp.arange(num)[None, :], -jnp.inf, logits).max(1)
            return index, right > others, jnp.exp(jnp.clip(right - others, -20, 20))

        def chunk_statistics(head, sums, chunk):
            numbers, partial, mask = chunk
            index, correct, ratio = jax.vmap(lambda n, p: image_statistics(head, n, p))(numbers, partial)
            weight = jnp.broadcast_to(mask[:, None], index.shape).astype(jnp.float32)
            values = jnp.stack([correct * weight, ratio * weight, weight])  # [3, b, K]
            return sums.at[:, index].add(values), None

        sums = jnp.zeros((3, num))
        size = max(1, min(len(mask), ANSWERS_PER_CHUNK // each))
        while len(mask) % size:
            size -= 1
        chunks = jax.tree.map(
            lambda rows: rows.reshape(-1, size, *rows.shape[1:]),
            (jnp.arange(len(mask)), partial, mask),
        )
        scan = nn.scan(chunk_statistics, variable_broadcast="params", split_rngs={})
        sums, _ = scan(self.head, sums, chunks)
        return dict(zip(("correct", "ratio", "count"), sums, strict=True))
