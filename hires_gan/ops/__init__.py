"""The ops of high-resolution GANs: `upfirdn2d`, `bias_act` and what is built of them, compiled or in plain torch.

The compiled ones are built when the package is installed, never at run time. `with backend("native"):` chooses.
"""

from hires_gan.ops import native
from hires_gan.ops.activation import bias_act
from hires_gan.ops.conv2d import conv2d, conv_transpose2d, inputs_only
from hires_gan.ops.convolution import conv2d_resample
from hires_gan.ops.filters import downsample2d, filter2d, setup_filter, upsample2d
from hires_gan.ops.fir import upfirdn2d
from hires_gan.ops.modulation import epilogue
from hires_gan.ops.selection import backend

__all__ = [
    "backend",
    "bias_act",
    "conv2d",
    "conv2d_resample",
    "conv_transpose2d",
    "downsample2d",
    "epilogue",
    "filter2d",
    "inputs_only",
    "setup_filter",
    "upfirdn2d",
    "upsample2d",
]

native.load()
