"""What answers: Flax Linen modules, and weights in and out."""

from ssl_jax.networks.alexnet import AlexNet
from ssl_jax.networks.caffenet import CaffeNet
from ssl_jax.networks.compact import Compact
from ssl_jax.networks.q_network import NatureTrunk
from ssl_jax.networks.resnet import ResNet18, ResNet50

__all__ = ["ENCODERS", "AlexNet", "CaffeNet", "Compact", "NatureTrunk", "ResNet18", "ResNet50"]

ENCODERS = {
    "alexnet": AlexNet,
    "caffenet": CaffeNet,
    "compact": Compact,
    "nature": NatureTrunk,
    "resnet18": ResNet18,
    "resnet50": ResNet50,
}
