"""The `.pkl` checkpoints of stylegan2-ada-pytorch and stylegan3, as far as they are data.

Such a file is one pickle of a dictionary: `G`, `D` and `G_ema` are networks, beside them lie `training_set_kwargs` and
the augmentation. Every module is written as a call of `torch_utils.persistence._reconstruct_persistent_obj` with one
dictionary: the text of the Python file that its class was defined in, the name of the class, and the object's
attributes, among them torch's own `_parameters`, `_buffers` and `_modules`. The text, which the authors' loader
executes, is passed over here; the attributes are all that is taken.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from hires_gan.errors import Failure, UsageError
from hires_gan.inference.closed_pickle import PLAIN, Maker, Source, empty_dict, load
from hires_gan.inference.stored_tensors import TENSORS, StoredTensor

_MOST_MODULES = 5000
_DEEPEST = 8
_LONGEST_NAME = 64

_OTHER_KINDS = {
    b"PK": "a zip archive, as torch.save writes .pt and .pth files since torch 1.6; NVlabs' checkpoints are .pkl files",
    b"<": "text that begins like a web page: the download gave a page in place of the file",
    b"\x1f\x8b": "compressed with gzip; decompress it first",
    b"version https://git-lfs": "a pointer of git-lfs in place of the file; fetch the file itself with `git lfs pull`",
}


@dataclass(frozen=True)
class ForeignModule:
    """A module of the file.

    Attributes:
        class_name: What its class was called.
        state: Its attributes.
    """

    class_name: str
    state: Mapping[str, Any]


@dataclass(frozen=True)
class ForeignNetwork:
    """A network of the file, laid flat.

    Attributes:
        what: Which one it is, for messages.
        class_name: What its class was called.
        tensors: Parameters and buffers by name, such as synthesis.b4.conv1.weight.
        attributes: The plain attributes of each module by its name; that of the network itself is empty.
    """

    what: str
    class_name: str
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    attributes: dict[str, Mapping[str, Any]] = field(default_factory=dict)


def read_file(path: Path) -> dict[str, Any]:
    """Read a checkpoint through the closed list; tensors stay in the file until they are asked for.

    Returns:
        What the file holds by name; its modules are `ForeignModule`s.

    Raises:
        UsageError: If there is no such file.
        Failure: If it is something else, damaged, or holds what is not on the list; nothing was run.
    """
    source = Source(_mapped(path), str(path))
    start = bytes(source.data[:24])
    for beginning, kind in _OTHER_KINDS.items():
        if start.startswith(beginning):
            raise Failure(f"{path} is {kind}")
    if start[:1] != b"\x80":
        raise Failure(f"{path} is no pickle; give a .pkl checkpoint of stylegan2-ada-pytorch or stylegan3")
    found = load(source, _MAKERS)
    if type(found) is not dict or not all(type(key) is str for key in found):
        kind = "a file of torch.save" if type(found) is int else f"a pickled {type(found).__name__}"
        raise Failure(f"{path} is {kind}, not a dictionary with G_ema, as checkpoints of StyleGAN2 in PyTorch are")
    return found


def _mapped(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}; give a .pkl checkpoint") from None
    except (OSError, ValueError) as error:  # ValueError: it is empty
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is empty"
        raise Failure(f"cannot read {path}: {reason}") from error


def _persistent(described: Any) -> ForeignModule:
    """A module's attributes; the text of its class's file is not looked at."""
    if type(described) is not dict or described.get("type") != "class":
        raise ValueError("a persistent object is described otherwise")
    name, state = described.get("class_name"), described.get("state")
    if type(name) is not str or type(state) is not dict or not all(type(key) is str for key in state):
        raise ValueError("a persistent object has no class name or no attributes")
    return ForeignModule(name, state)


def _of_tensorflow(*_: Any) -> NoReturn:
    raise Failure(
        "the file was written by StyleGAN in TensorFlow, whose networks are another format; convert it with legacy.py "
        "of stylegan2-ada-pytorch first, and import what that writes"
    )


_MAKERS: Mapping[str, Maker | None] = {
    **PLAIN,
    **TENSORS,
    "dnnlib.util.EasyDict": empty_dict,
    "dnnlib.EasyDict": empty_dict,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "dnnlib.tflib.network.Network": _of_tensorflow,
}


def flatten(module: ForeignModule, what: str) -> ForeignNetwork:
    """Lay a tree of modules flat.

    Raises:
        Failure: If it is no tree of modules, or too large or too deep to be one of these networks.
    """
    network = ForeignNetwork(what, module.class_name)
    pending = [("", module)]
    while pending:
        name, module = pending.pop()
        if len(network.attributes) > _MOST_MODULES or name.count(".") > _DEEPEST:
            raise Failure(f"{what} has more or deeper modules than any network that this can import; it is damaged")
        network.attributes[name] = module.state
        for kind in ("_parameters", "_buffers"):
            for own, tensor in _members(module, kind, what).items():
                if not isinstance(tensor, StoredTensor):
                    raise Failure(f"{what} has {name}.{own}, which is no tensor; the file is damaged")
                network.tensors[f"{name}{own}"] = tensor
        for own, child in _members(module, "_modules", what).items():
            if not isinstance(child, ForeignModule):
                raise Failure(f"{what} has {name}{own}, which is no module of these networks; it cannot be imported")
            pending.append((f"{name}{own}.", child))
    return network


def _members(module: ForeignModule, kind: str, what: str) -> dict[str, Any]:
    """What is registered of a kind; names that stand for nothing are left out."""
    members = module.state.get(kind, {})
    if type(members) is not dict or not all(_is_name(name) for name in members):
        raise Failure(f"{what} is no torch module: its {kind} are something else; the file is damaged")
    return {name: value for name, value in members.items() if value is not None}


def _is_name(name: Any) -> bool:
    return type(name) is str and len(name) <= _LONGEST_NAME and name.isidentifier()
