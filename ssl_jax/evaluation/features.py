"""Reads a split once and keeps what frozen encoders make of it; the pictures themselves are not kept."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from ssl_jax.runtime import watching
from ssl_jax.runtime.errors import InputError

Batches = Iterable[Mapping[str, np.ndarray]]
FeatureFunction = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rows:
    """The N examples of a split that could be read, in its order.

    Attributes:
      features: encoder -> float32 [N, D].
      fields: name -> [N, ...]: the fields that the batches have besides the picture; those of the
        pipeline have "index", int [N], the place in the split.
    """

    features: dict[str, np.ndarray]
    fields: dict[str, np.ndarray]

    def where(self, rows: np.ndarray) -> "Rows":
        """The examples at which the mask [N] is true, or those at the positions int [K]."""
        pick = lambda arrays: {name: values[rows] for name, values in arrays.items()}
        return Rows(pick(self.features), pick(self.fields))

    def columns(self, start: int, stop: int | None) -> "Rows":
        """The same examples with a part of each encoder's features."""
        return Rows({name: values[:, start:stop] for name, values in self.features.items()}, self.fields)


def collect(
    batches: Batches,
    encoders: Mapping[str, FeatureFunction],
    *,
    layer: str | None = None,
    may_be_empty: bool = False,
) -> Rows:
    """Reads a split once.

    Args:
      batches: {"image": uint8 [B, H, W, 3], "mask": bool [B], field: [B, ...]}; rows without mask are
        padding, and are left out.
      encoders: name -> function of images to features float32 [B, D].
      layer: of the encoders, for the sentence of an error; None: the last.
      may_be_empty: whether there may be padding alone.

    Raises:
      InputError: there is not one example, or a feature is NaN or infinite.
    """
    parts, count = [], 0
    for number, batch in enumerate(batches):
        watching.at_step(number)
        features = {name: np.asarray(encode(batch["image"])) for name, encode in encoders.items()}
        fields = {name: values for name, values in batch.items() if name not in ("image", "mask")}
        parts.append(Rows(features, fields).where(batch["mask"]))
        count += np.count_nonzero(batch["mask"])
    if not parts or not (count or may_be_empty):
        raise InputError("there is no example to evaluate on; give the split a larger part of the data set.")
    join = lambda get: {name: np.concatenate([get(part)[name] for part in parts]) for name in get(parts[0])}
    rows = Rows(join(lambda part: part.features), join(lambda part: part.fields))
    for name, values in rows.features.items():
        _check_finite(values, name, layer)
    return rows


def _check_finite(values: np.ndarray, network: str, layer: str | None) -> None:
    """Raises InputError where a number of float [N, D] is NaN or infinite: no score would mean anything."""
    finite = np.isfinite(values)
    if not finite.all():
        at = f" at the layer {layer!r}" if layer else ""
        raise InputError(
            f"{(~finite).mean():.1%} of the numbers that the network {network!r} gives{at}, in "
            f"{(~finite.all(1)).mean():.1%} of the examples, are NaN or infinite: its training has diverged, "
            "or they overflow; take an earlier checkpoint, or compute in float32."
        )
