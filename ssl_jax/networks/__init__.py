"""What answers: Flax Linen modules, and weights in and out."""

from ssl_jax.networks.caffenet import CaffeNet
from ssl_jax.networks.compact import Compact

__all__ = ["ENCODERS", "CaffeNet", "Compact"]

ENCODERS = {"caffenet": CaffeNet, "compact": Compact}
