"""Which floating-point numbers a network is kept in, computes with and answers in."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssl_jax.runtime.config import check_known
from ssl_jax.runtime.errors import InputError

DTYPES = ("float32", "bfloat16")
SHORT = {
    "float32": "params=float32,compute=float32,output=float32",
    "bfloat16": "params=float32,compute=bfloat16,output=float32",
}


class Precision(NamedTuple):
    """Mixed precision (Micikevicius et al., "Mixed Precision Training", ICLR 2018). Losses are float32.

    Attributes:
      params: of the parameters, and so of their gradients and of what the optimizer keeps of them. In
        bfloat16 they take half the memory and lose every update of less than about 1 / 256 of a parameter:
        for trying what fits, rarely for training. Running statistics stay float32.
      compute: of the layers.
      output: of the network's logits, from which the loss is computed.
    """

    params: jnp.dtype
    compute: jnp.dtype
    output: jnp.dtype

    def cast_params(self, params: Any) -> Any:
        """A tree of parameters, those that are floats in `self.params`."""
        is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.tree.map(lambda leaf: leaf.astype(self.params) if is_float(leaf) else leaf, params)


def parse(text: str) -> Precision:
    """Reads the key `precision` of a config.

    Args:
      text: "float32"; "bfloat16", which is short for "params=float32,compute=bfloat16,output=float32"; or all
        three parts in that form, in any order.

    Raises:
      InputError: another text.
    """
    if "=" not in text:
        check_known("config.precision", text, SHORT)
    parts = dict(part.partition("=")[::2] for part in SHORT.get(text, text).split(","))
    if sorted(parts) != sorted(Precision._fields) or text.count("=") > len(parts):
        raise InputError(
            f"config.precision={text!r} must be float32, bfloat16, or of the form {SHORT['bfloat16']!r}"
        )
    for name, dtype in parts.items():
        check_known(f"config.precision: {name}", dtype, DTYPES)
    return Precision(**{name: jnp.dtype(dtype) for name, dtype in parts.items()})
