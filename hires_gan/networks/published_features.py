"""What the networks share that torchvision trained on ImageNet and publishes, and whose features compare images."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from hires_gan.errors import Failure

_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


class PublishedFeatures(nn.Module):
    """The convolutional part of a network, with torchvision's names and weights.

    It computes in the dtype of its weights, float32 as they are stored, whatever that of the images is and whether
    autocast is on or not. Its weights have no gradients.

    Args:
        name: Of the network, for errors.
        features: Its layers.
        taken: Behind which of them features are taken.
        weights: What `features.*` of torchvision's model holds; others are left alone.

    Raises:
        Failure: If one is missing or has another shape.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, name: str, features: nn.Sequential, taken: Collection[int], weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.features, self.taken = features, taken
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION)[:, None, None], persistent=False)
        own = {key: weights[key] for key in self.state_dict() if key in weights}
        try:
            self.load_state_dict(own)
        except RuntimeError as error:
            raise Failure(f"the {name} weights are of another network: {' '.join(str(error).split())}") from error
        self.eval().requires_grad_(False)

    def maps(self, images: Tensor) -> Iterator[Tensor]:
        """The features of images `[n, 3, h, w]` in [-1, 1], each computed when it is asked for."""
        x = (images.to(self.mean.dtype) * 0.5 + 0.5 - self.mean) / self.deviation
        for number, layer in enumerate(self.features):
            with torch.autocast(x.device.type, enabled=False):  # it would convolve in half precision
                x = layer(x)
            if number in self.taken:
                yield x
