"""Train Progressive GAN, StyleGAN, StyleGAN2 and MUNIT at up to 1024x1024 on your own images."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hires_gan.inference.loading import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    """Import `load` on first use, so that `import hires_gan` alone stays cheap."""
    if name == "load":
        from hires_gan.inference.loading import load

        return load
    raise AttributeError(f"module 'hires_gan' has no attribute {name!r}")
