"""Classifiers: one architecture a file, and the plain loop that trains them."""

from ldd.networks.alexnet import AlexNet
from ldd.networks.base import Network, NetworkFactory
from ldd.networks.convnet import ConvNet
from ldd.networks.resnet import ResNet18
from ldd.networks.resnet_ap import ResNetAP10
from ldd.networks.training import accuracy, train_classifier
from ldd.networks.vgg import VGG11
from ldd.networks.vit import ViT

__all__ = [
    "VGG11",
    "AlexNet",
    "ConvNet",
    "Network",
    "NetworkFactory",
    "ResNet18",
    "ResNetAP10",
    "ViT",
    "accuracy",
    "train_classifier",
]
