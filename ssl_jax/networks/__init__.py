"""What answers: Flax Linen modules, and weights in and out."""

from ssl_jax.networks.caffenet import CaffeNet
from ssl_jax.networks.compact import Compact
from ssl_jax.networks.q_network import NatureTrunk

__all__ = ["ENCODERS", "CaffeNet", "Compact", "NatureTrunk"]

ENCODERS = {"caffenet": CaffeNet, "compact": Compact, "nature": NatureTrunk}
