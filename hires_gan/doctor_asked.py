"""What the doctor is asked to find on a machine: GPUs by their number, environment variables by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from hires_gan.doctor_devices import Finding, cuda, gpu_count
from hires_gan.doctor_pod import in_pod
from hires_gan.errors import UsageError

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|KEY|CREDENTIAL")
_OBJECT = "hires-gan"
"""What k8s/ calls the Secret and the ConfigMap from which a pod has its variables."""


def asked_gpus(count: int) -> Finding:
    """Whether torch sees as many GPUs as this machine is to have, neither fewer nor more.

    Args:
        count: How many that are, at least one.
    """
    there = gpu_count()
    found = cuda()
    if there == count:
        return found
    names = f" ({found.found})" if there else ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names += f"; CUDA_VISIBLE_DEVICES is {visible!r}"
    return Finding(
        "wrong", f"{there or 'no'} GPU{'s' * (there != 1)}, but --gpus asks for {count}{names}", _more(count)
    )


def _more(count: int) -> str:
    unset = "unset CUDA_VISIBLE_DEVICES, or " if "CUDA_VISIBLE_DEVICES" in os.environ else ""
    if in_pod():
        return (
            f"{unset}set the limit nvidia.com/gpu of the pod to {count}, and --gpus and the processes to the same; "
            "`kubectl describe node` says how many the device plugin of a node has to give"
        )
    return f"{unset}compare with what `nvidia-smi -L` lists and with docker's `--gpus`, or correct that of the doctor"


def split_names(needs: Iterable[str]) -> tuple[str, ...]:
    """The names of environment variables that `--needs` gives.

    Args:
        needs: One or several names each, with commas between them; an empty one names nothing.

    Raises:
        UsageError: One of them is no name that the variables of this program or of a library have.
    """
    names = tuple(dict.fromkeys(name.strip() for part in needs if part for name in part.split(",")))
    for name in names:
        if not _VARIABLE.fullmatch(name):
            raise UsageError(
                f"--needs names {name!r}, which is no environment variable: capital letters, digits and underscores "
                "are allowed, such as MLFLOW_TRACKING_URI"
            )
    return names


def environment(needs: Sequence[str]) -> Finding:
    """Whether variables are there, and clean; what they hold is never said."""
    values = {name: os.environ.get(name, "") for name in needs}
    absent = [name for name, value in values.items() if not value.strip()]
    if absent:
        states = [f"{name} is {'empty' if name in os.environ else 'not set'}" for name in absent]
        return Finding("wrong", ", ".join(states), _how_to_set(absent))
    blank = [name for name, value in values.items() if value != value.strip()]
    if blank:
        return Finding(
            "wrong",
            f"a line break or a blank stands around the value of {', '.join(blank)}",
            "set it without: `--from-literal` adds none, a Secret made of `echo ... | base64` has one (`echo -n`)",
        )
    return Finding("ok", f"{', '.join(needs)} {'are' if len(needs) > 1 else 'is'} set")


def _how_to_set(names: Sequence[str]) -> str:
    if not in_pod():
        return "export " + " ".join(f"{name}=..." for name in names)
    secret = [name for name in names if _SECRET.search(name)]
    plain = [name for name in names if name not in secret]
    literals = " ".join(f"--from-literal={name}=..." for name in secret)
    ways = [
        (plain, "ConfigMap", f"`kubectl edit configmap {_OBJECT}`"),
        (secret, "Secret", f"`kubectl create secret generic {_OBJECT} {literals}`, or `kubectl edit secret {_OBJECT}`"),
    ]
    return "; ".join(
        f"the {kind} {_OBJECT} needs the key{'s' * (len(keys) > 1)} {', '.join(keys)}: {command}"
        for keys, kind, command in ways
        if keys
    )
