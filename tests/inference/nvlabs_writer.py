"""Writes `.pkl` files of the layout that stylegan2-ada-pytorch's checkpoints have; run as a process of its own.

    python nvlabs_writer.py FOLDER '{"plain": {}, "labels": {"classes": 3}}'

The modules `torch_utils.persistence` and `dnnlib.util` are made here, with nothing in them but what decides how their
objects are pickled, so that the process that reads the file has no such modules. The networks have parameters, buffers
and attributes, and compute nothing. NAME.safetensors beside NAME.pkl has the same tensors, by network and their names.
"""

from __future__ import annotations

import collections
import json
import pickle
import sys
import types

import numpy as np
import torch
from safetensors.torch import save_file

SOURCE = "raise SystemExit('the text of a module was run')\n"


def fake_module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules.get(parent) or fake_module(parent), child, module)
    return module


class EasyDict(dict):
    """Only its name matters to a pickle."""


def _reconstruct_persistent_obj(meta):
    raise AssertionError("only written, never called")


EasyDict.__module__ = "dnnlib.util"
fake_module("dnnlib.util").EasyDict = EasyDict
_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
fake_module("torch_utils.persistence")._reconstruct_persistent_obj = _reconstruct_persistent_obj


class Persistent(torch.nn.Module):
    """A module that is pickled as the text of its file, the name of its class, and its attributes."""

    def __init__(self, **attributes):
        super().__init__()
        self.__dict__.update(attributes)
        self._init_args, self._init_kwargs = (), EasyDict(attributes)

    def __reduce__(self):
        meta = EasyDict(
            type="class", version=6, module_src=SOURCE, class_name=type(self).__name__, state=dict(self.__dict__)
        )
        return _reconstruct_persistent_obj, (meta,)

    def parameter(self, name, *shape, scale=1.0):
        setattr(self, name, torch.nn.Parameter(torch.randn(shape) * scale, requires_grad=False))


def taps() -> torch.Tensor:
    f = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(f, f) / f.sum() ** 2


class FullyConnectedLayer(Persistent):
    def __init__(self, inputs, outputs, activation="linear", multiplier=1.0):
        super().__init__(activation=activation, weight_gain=multiplier / np.sqrt(inputs), bias_gain=multiplier)
        self.parameter("weight", outputs, inputs, scale=1 / multiplier)
        self.parameter("bias", outputs, scale=0.3 / multiplier)


class MappingNetwork(Persistent):
    def __init__(self, z_dim, c_dim, w_dim, num_ws, num_layers, w_avg_beta):
        super().__init__(z_dim=z_dim, c_dim=c_dim, w_dim=w_dim, num_ws=num_ws, num_layers=num_layers)
        if c_dim:
            self.embed = FullyConnectedLayer(c_dim, w_dim)
        sizes = [z_dim + (w_dim if c_dim else 0)] + [w_dim] * num_layers
        for number in range(num_layers):
            setattr(self, f"fc{number}", FullyConnectedLayer(sizes[number], sizes[number + 1], "lrelu", 0.01))
        if w_avg_beta is not None:
            self.register_buffer("w_avg", torch.randn(w_dim))


class SynthesisLayer(Persistent):
    def __init__(self, inputs, outputs, w_dim, resolution, up=1, use_noise=True, conv_clamp=None):
        super().__init__(resolution=resolution, up=up, use_noise=use_noise, activation="lrelu", conv_clamp=conv_clamp)
        self.act_gain = np.sqrt(2)
        self.register_buffer("resample_filter", taps())
        self.affine = FullyConnectedLayer(w_dim, inputs)
        self.parameter("weight", outputs, inputs, 3, 3)
        if use_noise:
            self.register_buffer("noise_const", torch.randn(resolution, resolution))
            self.parameter("noise_strength", scale=0.2)
        self.parameter("bias", outputs, scale=0.3)


class ToRGBLayer(Persistent):
    def __init__(self, inputs, outputs, w_dim, conv_clamp=None):
        super().__init__(conv_clamp=conv_clamp, weight_gain=1 / np.sqrt(inputs))
        self.affine = FullyConnectedLayer(w_dim, inputs)
        self.parameter("weight", outputs, inputs, 1, 1)
        self.parameter("bias", outputs, scale=0.3)


class SynthesisBlock(Persistent):
    def __init__(self, inputs, outputs, w_dim, resolution, o):
        half = resolution > o["resolution"] >> o["half"]
        super().__init__(
            in_channels=inputs,
            w_dim=w_dim,
            resolution=resolution,
            img_channels=o["img_channels"],
            architecture=o["generator_architecture"],
            use_fp16=half,
            num_conv=2 if inputs else 1,
        )
        self.register_buffer("resample_filter", taps())
        layer = {"use_noise": o["noise"], "conv_clamp": 256 if o["half"] else None}
        if inputs:
            self.conv0 = SynthesisLayer(inputs, outputs, w_dim, resolution, 2, **layer)
        else:
            self.parameter("const", outputs, resolution, resolution)
        self.conv1 = SynthesisLayer(outputs, outputs, w_dim, resolution, **layer)
        self.torgb = ToRGBLayer(outputs, o["img_channels"], w_dim)


class SynthesisNetwork(Persistent):
    def __init__(self, o):
        sides = [2**level for level in range(2, o["resolution"].bit_length())]
        super().__init__(w_dim=o["w_dim"], img_resolution=o["resolution"], num_ws=2 * len(sides))
        maps = {r: min(o["base"] // r, o["most"]) for r in sides}
        for r in sides:
            setattr(self, f"b{r}", SynthesisBlock(maps[r // 2] if r > 4 else 0, maps[r], o["w_dim"], r, o))


class Generator(Persistent):
    def __init__(self, o):
        super().__init__(z_dim=o["z_dim"], c_dim=o["classes"], w_dim=o["w_dim"], img_channels=o["img_channels"])
        self.synthesis = SynthesisNetwork(o)
        layers = self.synthesis.num_ws
        self.mapping = MappingNetwork(o["z_dim"], o["classes"], o["w_dim"], layers, o["mapping_layers"], 0.995)


class Conv2dLayer(Persistent):
    def __init__(self, inputs, outputs, kernel, bias=True, activation="linear", down=1):
        super().__init__(activation=activation, up=1, down=down, conv_clamp=None)
        self.weight_gain = 1 / np.sqrt(inputs * kernel**2)
        self.register_buffer("resample_filter", taps())
        self.parameter("weight", outputs, inputs, kernel, kernel)
        if bias:
            self.parameter("bias", outputs, scale=0.3)
        else:
            self.bias = None


class DiscriminatorBlock(Persistent):
    def __init__(self, first, inputs, outputs, resolution, o):
        super().__init__(resolution=resolution, architecture=o["architecture"], img_channels=o["img_channels"])
        self.register_buffer("resample_filter", taps())
        if first or o["architecture"] == "skip":
            self.fromrgb = Conv2dLayer(o["img_channels"], inputs, 1, activation="lrelu")
        self.conv0 = Conv2dLayer(inputs, inputs, 3, activation="lrelu")
        self.conv1 = Conv2dLayer(inputs, outputs, 3, activation="lrelu", down=2)
        if o["architecture"] == "resnet":
            self.skip = Conv2dLayer(inputs, outputs, 1, bias=False, down=2)


class MinibatchStdLayer(Persistent):
    pass


class DiscriminatorEpilogue(Persistent):
    def __init__(self, maps, o):
        super().__init__(in_channels=maps, resolution=4, architecture=o["architecture"])
        self.mbstd = MinibatchStdLayer(group_size=o["group"], num_channels=1)
        self.conv = Conv2dLayer(maps + 1, maps, 3, activation="lrelu")
        self.fc = FullyConnectedLayer(maps * 16, maps, "lrelu")
        self.out = FullyConnectedLayer(maps, maps if o["classes"] else 1)


class Discriminator(Persistent):
    def __init__(self, o):
        super().__init__(c_dim=o["classes"], img_resolution=o["resolution"], img_channels=o["img_channels"])
        sides = [2**level for level in range(2, o["resolution"].bit_length())][::-1]
        maps = {r: min(o["base"] // r, o["most"]) for r in sides}
        for r in sides[:-1]:
            setattr(self, f"b{r}", DiscriminatorBlock(r == sides[0], maps[r], maps[r // 2], r, o))
        if o["classes"]:
            self.mapping = MappingNetwork(0, o["classes"], maps[4], None, 8, None)
        self.b4 = DiscriminatorEpilogue(maps[4], o)


class AugmentPipe(Persistent):
    def __init__(self):
        super().__init__(xflip=1.0, bands=[1, 1, 1, 1])
        self.register_buffer("p", torch.zeros([]))


DEFAULTS = {
    "resolution": 16,
    "z_dim": 6,
    "w_dim": 8,
    "classes": 0,
    "mapping_layers": 2,
    "base": 128,
    "most": 16,
    "architecture": "resnet",
    "generator_architecture": "skip",
    "img_channels": 3,
    "group": 4,
    "noise": True,
    "half": 0,
    "protocol": 4,
    "stylegan3": False,
    "without": [],
    "set": {},
    "add": {},
}


def built(options: dict) -> dict:
    o = DEFAULTS | options
    torch.manual_seed(o.get("seed", 0))
    content = {
        "training_set_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset", path="/data/ffhq.zip"),
        "G": Generator(o),
        "D": Discriminator(o),
        "G_ema": Generator(o),
        "augment_pipe": AugmentPipe(),
    }
    for path, value in o["set"].items():  # "G_ema.synthesis.b8.conv0:activation": what a module says of itself
        place, _, name = path.partition(":")
        target = content[place.split(".")[0]].get_submodule(".".join(place.split(".")[1:]))
        target.__dict__[name] = value
    for path, shape in o["add"].items():
        place, _, name = path.rpartition(".")
        target = content[place.split(".")[0]].get_submodule(".".join(place.split(".")[1:]))
        if shape is None:
            delattr(target, name)
        elif isinstance(shape, str):
            setattr(target, name, torch.nn.Parameter(torch.full_like(getattr(target, name), float(shape))))
        else:
            target.register_buffer(name, torch.randn(shape))
    if o["stylegan3"]:
        content["G_ema"].synthesis.L0_36_512 = SynthesisLayer(4, 4, 8, 36)
    return {name: value for name, value in content.items() if name not in o["without"]}


def write(out: str, options: dict) -> None:
    content = built(options)
    with open(out, "wb") as file:
        pickle.dump(content, file, protocol=(DEFAULTS | options)["protocol"])
    tensors = collections.OrderedDict(
        (f"{name}.{key}", tensor.contiguous())
        for name in ("G", "D", "G_ema")
        if name in content
        for key, tensor in content[name].state_dict().items()
    )
    save_file(tensors, out.replace(".pkl", ".safetensors"))


if __name__ == "__main__":
    for name, chosen in json.loads(sys.argv[2]).items():
        write(f"{sys.argv[1]}/{name}.pkl", chosen)
