"""A small residual classifier of grey images; its penultimate layer gives features, as Inception's does for FID."""

from torch import nn

CLASSES = 10
WIDTH = 128  # values of the penultimate layer


class Residual(nn.Module):
    """x + f(x), f two 3×3 convolutions with batch norm."""

    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(*_layer(channels, channels), *_layer(channels, channels)[:-1])

    def forward(self, x):
        return (x + self.body(x)).relu()


class Classifier(nn.Module):
    """Images (n, 1, H, W) with values in [−1, 1] → logits (n, 10); `features` → (n, 128), means over the image."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            *_layer(1, 32), *_layer(32, 64, 2), Residual(64), *_layer(64, WIDTH, 2), Residual(WIDTH)
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def features(self, images):
        return self.body(images).mean((2, 3))

    def forward(self, images):
        return self.head(self.features(images))


def _layer(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
