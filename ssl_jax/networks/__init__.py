"""What answers: Flax Linen modules, and weights in and out."""

from ssl_jax.networks.compact import Compact

__all__ = ["ENCODERS", "Compact"]

ENCODERS = {"compact": Compact}
