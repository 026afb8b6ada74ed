"""The closed reader of pickles: what it reads, and that nothing a pickle asks for is ever done."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hires_gan.errors import Failure
from hires_gan.inference.closed_pickle import MOST_STEPS, PLAIN, Name, Source, load
from hires_gan.inference.nvlabs_file import ForeignModule, ForeignNetwork, flatten, read_file
from hires_gan.inference.stored_tensors import TENSORS, StoredTensor

MAKERS = {**PLAIN, **TENSORS}


def read(data: bytes, makers=MAKERS):
    return load(Source(memoryview(data), "the file"), makers)


PLAIN_VALUES = {
    "numbers": [0, 1, 255, 256, 65536, -1, 2**31, -(2**63), 2**200, 0.5, float("inf")],
    "texts": ["", "a", "ü", "x" * 300, "y" * 70000],
    "bytes": [b"", b"ab", b"z" * 300],
    "nested": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[]], {"k": {2: None}}),
    "sets": [{1, "two"}, set(), frozenset({3})],
    "flags": (True, False, None),
    "ordered": collections.OrderedDict(b=1, a=2),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_come_back(protocol):
    assert read(pickle.dumps(PLAIN_VALUES, protocol)) == PLAIN_VALUES
    shared = [1]
    found = read(pickle.dumps([shared, shared], protocol))
    assert found[0] is found[1]
    shared.append(shared)
    looped = read(pickle.dumps(shared, protocol))
    assert looped[1] is looped


def test_large_strings_of_bytes_are_not_copied():
    data = pickle.dumps(b"q" * 1_000_000, 4)
    found = read(data)
    assert isinstance(found, memoryview)
    assert found.obj is data


TENSOR_VALUES = {
    "float": torch.randn(3, 4),
    "turned": torch.randn(3, 4).t(),
    "part": torch.randn(10)[2:7],
    "sparse": torch.randn(4, 6)[::2, 1::3],
    "number": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "half": torch.randn(5).half(),
    "double": torch.randn(2, 2, dtype=torch.float64),
    "long": torch.arange(4),
    "bool": torch.tensor([True, False]),
    "parameter": torch.nn.Parameter(torch.randn(2, 3)),
    "large": torch.randn(300, 300),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_come_back(protocol):
    found = read(pickle.dumps(TENSOR_VALUES, protocol))
    for name, expected in TENSOR_VALUES.items():
        assert isinstance(found[name], StoredTensor)
        tensor = found[name].tensor()
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected.detach()), name


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_numbers_of_numpy_come_back(protocol):
    numbers = [np.float64(0.1), np.float32(0.5), np.int64(-7), np.uint8(200), np.bool_(True)]
    found = read(pickle.dumps(numbers, protocol))
    assert found == [0.1, 0.5, -7, 200, True]
    assert [type(number) for number in found] == [float, float, int, int, bool]
    older = pickle.dumps(np.float64(0.1), protocol).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    if protocol < 4:  # from 4 on the name's length stands before it
        assert read(older) == 0.1


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def touching(path):
    """Pickles that would make a file, in every way that a pickle can call something."""
    text = f"open({str(path)!r}, 'w').close()"
    named = f"{path}".encode()
    system = b"cos\nsystem\n"
    return {
        "os.system": pickle.dumps(Calls(os.system, f"touch {path}"), 4),
        "builtins.exec": pickle.dumps(Calls(exec, text), 4),
        "builtins.eval": pickle.dumps(Calls(eval, text), 2),
        "builtins.getattr": pickle.dumps(Calls(getattr, "x", "__class__"), 4),
        "inside": pickle.dumps({"G_ema": [torch.zeros(2), {"x": (Calls(os.system, f"touch {path}"),)}]}, 4),
        "in a tensor's arguments": pickle.dumps(
            Calls(torch._utils._rebuild_tensor_v2, Calls(os.system, f"touch {path}"), 0, (1,), (1,), False, None), 4
        ),
        "torch.load's way in": pickle.dumps(
            Calls(torch.storage._load_from_bytes, pickle.dumps(Calls(os.system, f"touch {path}"), 2)), 4
        ),
        "torch.load": pickle.dumps(Calls(torch.load, str(path)), 4),
        "REDUCE": b"\x80\x02" + system + b"(X" + struct.pack("<I", len(named)) + named + b"tR.",
        "INST": b"(S'touch " + named + b"'\nios\nsystem\n.",
        "OBJ": b"\x80\x02(" + system + b"U\x05touch" + b"o.",
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(U\x05touchl\x85\x81.",
        "BUILD": b"\x80\x02ccollections\nOrderedDict\n)R}U\x08__class__" + system + b"sb.",
        "EXT": b"\x80\x02\x82\x01)R.",
        "a dotted name": b"\x80\x04\x8c\x0dtorch.storage\x8c\x1d_load_from_bytes.__globals__\x93.",
        "a module of the list": b"\x80\x04\x8c\x06torch.\x8c\x04load\x93.",
        "apply": b"\x80\x02c__builtin__\napply\n.",
        "persistent": b"\x80\x02U\x01xQ.",
        "numpy object": pickle.dumps(np.array([Calls(os.system, f"touch {path}")], dtype=object), 4),
        "a buffer outside": b"\x80\x05\x97.",
    }


@pytest.mark.parametrize("way", list(touching("/x")))
def test_nothing_is_ever_called(way, tmp_path):
    path = tmp_path / "touched"
    data = touching(path)[way]
    with pytest.raises(Failure, match=r"is refused: it has |is damaged"):
        read(data)
    file = tmp_path / "file.pkl"
    file.write_bytes(data)
    with pytest.raises(Failure):
        read_file(file)
    assert not path.exists()


def test_a_class_that_is_not_on_the_list_is_named():
    with pytest.raises(
        Failure, match=r"refused: it has the name '(posix|os)\.system', at byte \d+, .* Nothing of it was"
    ):
        read(pickle.dumps(Calls(os.system, "true"), 4))
    with pytest.raises(Failure, match="refused: it has the instruction INST"):
        read(b"(ios\nsystem\n.")
    with pytest.raises(Failure, match="refused: it has a persistent id"):
        read(b"\x80\x04NQ.")
    with pytest.raises(Failure, match=r"refused: it has a call of torch\.FloatStorage"):
        read(b"\x80\x02ctorch\nFloatStorage\n)R.", {"torch.FloatStorage": None})


def test_a_name_of_the_list_is_a_name_and_nothing_else():
    found = read(b"\x80\x02ccollections\nOrderedDict\n.")
    assert found == Name("collections.OrderedDict")
    assert not callable(found)


def stored(count: int = 4, claimed: int | None = None, kind: str = "FloatStorage", tail: bytes = b"") -> bytes:
    """A storage in torch's older file format, with the number of values that it claims."""
    file = io.BytesIO()
    claimed = count if claimed is None else claimed
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001, "type_sizes": {}}):
        pickle.dump(value, file, 2)
    texts = [b"X" + struct.pack("<I", len(text)) + text for text in (b"storage", b"0", b"cpu")]
    number = b"\x8a\x08" + struct.pack("<q", claimed)
    identity = [b"(", texts[0], b"ctorch\n" + kind.encode() + b"\n", texts[1], texts[2], number, b"NtQ."]
    file.write(b"\x80\x02" + b"".join(identity))
    pickle.dump(["0"], file, 2)
    file.write(struct.pack("<q", claimed) + np.arange(count, dtype="<f4").tobytes() + tail)
    return file.getvalue()


def tensor_of(storage: bytes, offset=0, size=(4,), stride=(1,)) -> bytes:
    call = Calls(torch.storage._load_from_bytes, storage)
    return pickle.dumps(Calls(torch._utils._rebuild_tensor_v2, call, offset, size, stride, False, {}), 4)


def test_a_storage_made_by_hand_is_read():
    assert read(tensor_of(stored())).tensor().tolist() == [0, 1, 2, 3]
    assert read(tensor_of(stored(), 1, (3,), (1,))).tensor().tolist() == [1, 2, 3]
    assert read(tensor_of(stored(), 3, (2, 2), (0, 0))).tensor().tolist() == [[3, 3], [3, 3]]


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (1, (4,), (1,)),
        (0, (5,), (1,)),
        (0, (2,), (4,)),
        (0, (3, 3), (1, 1)),
        (0, (2**40,), (0,)),
        (0, (2**60,), (1,)),
        (-1, (2,), (1,)),
        (5, (0,), (1,)),
        (0, (-1,), (1,)),
        (0, (2,), (-1,)),
        (3, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (0, (1,) * 9, (1,) * 9),
        (0, (True,), (1,)),
        (0, (1.0,), (1,)),
        (0, ((),), (1,)),
        (0, [4], [1]),
        (0, 4, 1),
        (0.0, (4,), (1,)),
        (2**70, (1,), (1,)),
    ],
)
def test_a_tensor_never_reaches_beyond_its_storage(offset, size, stride):
    with pytest.raises(Failure, match="is damaged, or no such file: REDUCE at byte"):
        read(tensor_of(stored(), offset, size, stride))


@pytest.mark.parametrize(
    ("storage", "sentence"),
    [
        (stored(4, 5), "ends in the middle"),
        (stored(4, 2**40), "ends in the middle"),
        (stored(4, 3), "has bytes behind its values"),
        (stored(4, -1), "is no storage"),
        (stored(4, tail=b"x"), "has bytes behind its values"),
        (stored(kind="UntypedStorage"), r"the name 'torch\.UntypedStorage'"),
        (stored(kind="load"), r"the name 'torch\.load'"),
        (stored()[:20], "ends in the middle"),
        (b"PK\x03\x04", "newer file format"),
        (b"", "ends in the middle"),
        (pickle.dumps(1, 2) * 5, "is not in torch's older file format"),
    ],
)
def test_storages_that_are_not_what_they_say(storage, sentence):
    with pytest.raises(Failure, match=sentence):
        read(tensor_of(storage))


def bombs() -> dict[str, bytes]:
    nested = b"\x80\x02)q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(100))
    return {
        "a text of 2^60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**60),
        "bytes of 2^60 bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**60),
        "bytes of 4 GiB": b"\x80\x04B\xff\xff\xff\xff",
        "a number of 2 GiB": b"\x80\x02\x8b\xff\xff\xff\x7f",
        "a number of 60000 bytes": b"\x80\x02\x8b" + struct.pack("<i", 60000) + b"\x01" * 60000 + b".",
        "a bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**60),
        "lists without end": b"\x80\x02" + b"]" * (MOST_STEPS + 1),
        "a key that is hashed for ever": nested + b"}h\x00Ns.",
        "an element that is hashed for ever": b"\x80\x04\x8f(" + nested[2:] + b"\x90.",
        "a set that is hashed for ever": b"\x80\x02c__builtin__\nset\n]" + nested[2:] + b"a\x85R.",
        "a type that is shown for ever": b"\x80\x02cnumpy\ndtype\n" + nested[2:] + b"\x85R.",
        "a name that does not end": b"\x80\x02c" + b"a" * 1_000_000,
    }


@pytest.mark.parametrize("bomb", list(bombs()))
def test_memory_and_time_are_bounded(bomb):
    data = bombs()[bomb]
    tracemalloc.start()
    with pytest.raises(Failure):
        read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000_000


def test_a_tower_of_tuples_is_read_and_freed():
    found = read(b"\x80\x02)" + b"\x85" * 400_000 + b".")
    assert len(found) == 1


@pytest.mark.parametrize(
    "data",
    [b"\x80\x04.", b"\x80\x06N.", b"\x80\x01N.", b"\x80\x02t.", b"\x80\x02NNs.", b"\x80\x02]NNu.", b"\x80\x02h\x05.",
     b"\x80\x02NR.", b"\x80\x02}(Nu.", b"\x80\x02\x86.", b"\x80\x02Nb.", b"\x80\x02q\x00.", b"\x80\x04NN\x93.",
     b"\x80\x04X\x01\0\0\0\xff.", b"\xff", b"\x80\x02N(0" + b"00."],
)  # fmt: skip
def test_nonsense_is_said_to_be_damaged(data):
    with pytest.raises(Failure, match="is damaged|is refused"):
        read(data)


WHOLE = pickle.dumps({"a": TENSOR_VALUES["float"], "b": [np.float64(1.5), collections.OrderedDict(x=(1, "y"))]}, 4)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_whatever_the_bytes_are_it_reads_or_refuses(data):
    changed = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(changed)))
    try:
        read(bytes(changed) if end % 3 else bytes(changed[:end]))
    except Failure as failure:
        assert "the file" in str(failure) or "a storage" in str(failure)


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(data):
    with contextlib.suppress(Failure):
        read(b"\x80\x04" + data)


def module(**members) -> ForeignModule:
    return ForeignModule("Module", members)


def test_modules_that_are_no_tree_are_refused():
    looped: dict = {}
    looped["x"] = module(_modules=looped)
    with pytest.raises(Failure, match="more or deeper modules"):
        flatten(module(_modules=looped), "G_ema")
    wide = module()
    for _ in range(7):
        wide = module(_modules={f"m{number}": wide for number in range(100)})
    with pytest.raises(Failure, match="more or deeper modules"):
        flatten(wide, "G_ema")
    for members in ({"_modules": []}, {"_modules": {"a": 1}}, {"_parameters": {"a": 1}}, {"_buffers": {"a.b": None}}):
        with pytest.raises(Failure, match="G_ema"):
            flatten(module(**members), "G_ema")
    assert flatten(module(), "G_ema") == ForeignNetwork("G_ema", "Module", {}, {"": {}})
