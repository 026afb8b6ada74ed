"""What the doctor finds out about the compiled ops: what was built, whether it loads, and whether it computes."""

from __future__ import annotations

from hires_gan.doctor_devices import Finding, importable_torch, runs_on

DEVICES = {"cpu": "CPU", "cuda": "CUDA"}


def compiled(device: str) -> Finding:
    """One of the two libraries of compiled ops.

    Args:
        device: cpu or cuda.
    """
    if importable_torch() is None:
        return Finding("missing", "torch cannot be imported")
    from hires_gan.ops import native

    record = native.record()
    if record is None:
        return Finding("missing", "not built", native.REMEDY)
    library = record.libraries.get(device)
    if library is None or not library.built:
        return _not_built(device)
    if not native.available(device):
        return Finding("wrong", native.why_not(device))  # the remedy is in the sentence
    found = native.describe(device)
    if native.sources_changed():
        return Finding("wrong", f"{found}; the sources in csrc changed since", "run `make ops`")
    return _tested(device, found, record.architectures)


def _not_built(device: str) -> Finding:
    from hires_gan.ops import build_record, native

    record = native.record()
    library = (record.libraries.get(device) if record else None) or build_record.Library(why="not built")
    if library.error:
        where = f"the rest of what it said is in {native.record_path()}"
        return Finding("wrong", f"{library.why}: {library.error}", f"{where}; when it is mended, {native.REMEDY}")
    if device == "cuda" and record and record.torch_cuda and not record.toolkit and record.asked != "cpu":
        return Finding("missing", library.why, f"install the CUDA toolkit {record.torch_cuda}, then {native.REMEDY}")
    return Finding("missing", f"not built: {library.why}", native.REMEDY)


def _tested(device: str, found: str, architectures: tuple[str, ...]) -> Finding:
    import torch

    from hires_gan.ops.self_test import self_test

    if device == "cuda":
        if not torch.cuda.is_available():
            return Finding("ok", f"{found}; no GPU to test it on")
        unfit = _without_kernels(architectures)
        if unfit:
            remedy = f"add it to TORCH_CUDA_ARCH_LIST, then run `make ops`: {unfit[1]}"
            return Finding("wrong", f"{found}; {unfit[0]} runs none of these", remedy)
    problem = self_test(device)
    if problem:
        return Finding("wrong", f"{found}; the self-test failed: {problem}", "use ops.backend=reference, and report it")
    return Finding("ok", f"{found}; self-test passed")


def _without_kernels(architectures: tuple[str, ...]) -> tuple[str, str] | None:
    """Name and compute capability of the first GPU that the library has no code for."""
    import torch

    numbers = {name: name.removesuffix("+PTX").replace(".", "") for name in architectures}
    kernels = [f"sm_{number}" for number in numbers.values()]
    kernels += [f"compute_{number}" for name, number in numbers.items() if name.endswith("+PTX")]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        if not runs_on((device.major, device.minor), kernels):
            return str(device.name), f"{device.major}.{device.minor}"
    return None
