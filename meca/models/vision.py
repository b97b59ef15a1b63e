"""torchvision's ResNet18, ResNet34 and MobileNetV2 with an explicit first layer."""

import torchvision
from torch import nn

__all__ = ["vision"]


def vision(name: str, classes: int, channels: int, stem: str) -> nn.Module:
    """Return an untrained network of torchvision.

    Args:
        name: resnet18, resnet34 or mobilenet_v2.
        classes: Outputs.
        channels: Input channels.
        stem: `imagenet`: torchvision's own first layer (stride 2, and a pool in the ResNets); `cifar`: a 3x3 convolution
            of stride 1 and no pool, for images of 32 or 64 pixels. At 32 px the two differ by 15 times the work.
    """
    # Dropout would draw from the global state: two runs of one seed, or a resumed one, would end in other bits.
    settings = {"dropout": 0.0} if name == "mobilenet_v2" else {}
    model: nn.Module = getattr(torchvision.models, name)(weights=None, num_classes=classes, **settings)
    if isinstance(model, torchvision.models.ResNet):
        if stem == "cifar":
            model.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
            model.maxpool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        elif channels != 3:
            model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    elif isinstance(model, torchvision.models.MobileNetV2):
        first = model.features[0][0]  # pyright: ignore[reportIndexIssue]
        if stem == "cifar" or channels != 3:
            model.features[0][0] = nn.Conv2d(channels, first.out_channels, 3, stride=1 if stem == "cifar" else 2, padding=1, bias=False)  # pyright: ignore[reportIndexIssue]
    return model
