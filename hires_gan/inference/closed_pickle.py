"""Pickles of others, read without running anything of them.

A pickle is a small program: it names classes and functions, and says what they are called with. Here it runs on a
machine of our own, which builds lists, dictionaries, texts and numbers, and has no way to import, to look up an
attribute, or to call anything. A name that a pickle gives is looked up in a closed list, where it stands for a function
of ours, or for nothing but itself; any other name ends the reading before the next instruction.

Only the binary instructions are understood that Python writes from protocol 2 on.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Protocol, cast, runtime_checkable

from hires_gan.errors import Failure

MOST_STEPS = 500_000
"""More instructions than this are refused: the largest of these networks takes a tenth of them."""

_MOST_BITS = 512
_LARGE = 65536
_NEWEST_PROTOCOL = 5


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names: its name, and nothing behind it."""

    path: str


@runtime_checkable
class Restorable(Protocol):
    """What takes a state after it was made."""

    def restore(self, state: Any) -> None:
        """Take the state.

        Raises:
            ValueError: If it is not as it must be.
        """


Maker = Callable[..., Any]
"""Takes what a pickle calls a name with, and gives a value. Raises ValueError if that is not as it must be."""


class Source:
    """Bytes that are read from the start to the end, and no further.

    Args:
        data: All of them.
        what: Whose they are, for messages.
    """

    def __init__(self, data: memoryview, what: str) -> None:
        self.data, self.what, self.position = data, what, 0

    def read(self, size: int) -> bytes | memoryview:
        """The next bytes; many of them are not copied."""
        if not 0 <= size <= len(self.data) - self.position:
            raise Failure(
                f"{self.what} ends in the middle, at byte {len(self.data)}: it was not copied or downloaded whole; "
                "fetch it again, and compare its size and checksum with those of its source"
            )
        part = self.data[self.position : self.position + size]
        self.position += size
        return part if size > _LARGE else bytes(part)

    def readline(self) -> bytes:
        """The next line, as the names of protocols 2 and 3 are."""
        window = bytes(self.data[self.position : self.position + 512])
        length = window.find(b"\n") + 1
        if not length:
            raise Failure(f"{self.what} has a name of more than 512 bytes at byte {self.position}; it is damaged")
        return bytes(self.read(length))


def load(source: Source, makers: Mapping[str, Maker | None], storage: Maker | None = None) -> Any:
    """Read one pickle; the source then stands behind it.

    Args:
        source: Where it stands.
        makers: By `module.name`: what makes a value where the pickle calls it; None for what it may only name.
        storage: What makes a value of a persistent id; None where there are none.

    Returns:
        Plain values, `Name`s, and what the makers made; bytes may be memory views. Every part may occur more than
        once, also inside itself.

    Raises:
        Failure: Naming what stands there that is not on the list, or is damaged; nothing was run.
    """
    return _Machine(source, makers, storage).run()


class _Machine:
    """One method for each instruction; its stack and its memory hold nothing but what they made."""

    def __init__(self, source: Source, makers: Mapping[str, Maker | None], storage: Maker | None) -> None:
        self.source, self.makers, self.storage = source, makers, storage
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.start = source.position

    def run(self) -> Any:
        for _ in range(MOST_STEPS):
            self.start = self.source.position
            code = bytes(self.source.read(1))
            info = _INSTRUCTIONS.get(code)
            if info is None:
                named = _ALL.get(code)
                raise self._refusal(f"the instruction {named}" if named else f"byte {code!r}, no instruction at all")
            if info.name == "STOP":
                return self._pop()
            try:
                argument = info.arg.reader(cast(IO[bytes], self.source)) if info.arg else None
                _STEPS[info.name](self, argument)
            except (ValueError, TypeError, OverflowError, IndexError, KeyError) as error:
                raise Failure(
                    f"{self.source.what} is damaged, or no such file: {info.name} at byte {self.start} cannot be done "
                    f"({str(error)[:200] or type(error).__name__})"
                ) from error
        raise self._refusal(f"more than {MOST_STEPS} instructions")

    def _refusal(self, found: str) -> Failure:
        return Failure(
            f"{self.source.what} is refused: it has {found}, at byte {self.start}, which is not on the closed list of "
            "what such a file may hold. Nothing of it was run. A pickle can be made to run anything, so do not open "
            "this one with other programs unless you trust where it comes from"
        )

    def _pop(self) -> Any:
        if not self.stack:
            raise Failure(f"{self.source.what} is damaged: nothing is left to take at byte {self.start}")
        return self.stack.pop()

    def _top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise ValueError(f"a {kind.__name__} is wanted")
        return self.stack[-1]

    def _to_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("there is no mark")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _call(self, target: Any, arguments: Any, names: Any = None) -> None:
        """A name of the list makes a value of its arguments; nothing else can be called."""
        if type(target) is not Name or type(arguments) is not tuple or names:
            raise ValueError(f"a {type(target).__name__} cannot be called")
        maker = self.makers[target.path]
        if maker is None:
            raise self._refusal(f"a call of {target.path}")
        self.stack.append(maker(*arguments))

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def constant(self, value: Any) -> None:
        if type(value) is int and value.bit_length() > _MOST_BITS:
            raise ValueError("a whole number is too long")
        self.stack.append(value)

    def name(self, text: str) -> None:
        module, _, name = text.partition(" ")
        self._named(module, name)

    def name_of_two(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("a name is no text")
        self._named(module, name)

    def _named(self, module: str, name: str) -> None:
        path = f"{module}.{name}"
        if path not in self.makers:
            raise self._refusal(f"the name {path[:200]!r}")
        self.stack.append(Name(path))

    def reduce(self, _: Any) -> None:
        arguments, target = self._pop(), self._pop()
        self._call(target, arguments)

    def new(self, _: Any) -> None:
        self.reduce(None)

    def new_with_names(self, _: Any) -> None:
        names, arguments, target = self._pop(), self._pop(), self._pop()
        self._call(target, arguments, names)

    def build(self, _: Any) -> None:
        state = self._pop()
        if not self.stack or not isinstance(self.stack[-1], Restorable):
            raise ValueError("this takes no state")
        self.stack[-1].restore(state)

    def persistent(self, _: Any) -> None:
        if self.storage is None:
            raise self._refusal("a persistent id")
        self.stack.append(self.storage(self._pop()))

    def put(self, number: int | None) -> None:
        self.memo[len(self.memo) if number is None else number] = self.stack[-1]

    def get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._to_mark()

    def pop_to_mark(self, _: Any) -> None:
        self._to_mark()

    def tuple_to_mark(self, _: Any) -> None:
        items = self._to_mark()
        self.stack.append(tuple(items))

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("too little is there")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def append(self, _: Any) -> None:
        item = self._pop()
        self._top(list).append(item)

    def appends(self, _: Any) -> None:
        items = self._to_mark()
        self._top(list).extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._top(dict)[_key(key)] = value

    def set_items(self, _: Any) -> None:
        items = self._to_mark()
        self._top(dict).update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def add_items(self, _: Any) -> None:
        items = self._to_mark()
        self._top(set).update(map(_key, items))

    def frozen_set(self, _: Any) -> None:
        items = self._to_mark()
        self.stack.append(frozenset(map(_key, items)))


def _key(value: Any) -> Hashable:
    """A key of a dictionary: of a kind whose hash takes no longer than reading it."""
    if value is not None and type(value) not in (str, int, float, bool, bytes):
        raise ValueError(f"a {type(value).__name__} cannot be a key")
    return value  # type: ignore[no-any-return]


def empty_dict() -> dict[Any, Any]:
    """An empty dictionary, whose entries the pickle adds."""
    return {}


def _set(items: Any) -> set[Hashable]:
    return set(map(_key, _list(items)))


def _frozen_set(items: Any) -> frozenset[Hashable]:
    return frozenset(map(_key, _list(items)))


def _list(items: Any) -> list[Any]:
    if type(items) is not list:
        raise ValueError("a set is made of a list")
    return items


def _encoded(text: Any, encoding: Any) -> bytes:
    """A string of bytes, as protocol 2 writes it."""
    if type(text) is not str or encoding != "latin1":
        raise ValueError("a string of bytes is made of a text in latin1")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    return b""


PLAIN: Mapping[str, Maker | None] = {
    "collections.OrderedDict": empty_dict,
    "builtins.set": _set,
    "builtins.frozenset": _frozen_set,
    "__builtin__.set": _set,
    "__builtin__.frozenset": _frozen_set,
    "__builtin__.bytes": _no_bytes,
    "_codecs.encode": _encoded,
}
"""What the names mean with which Python writes its own types; protocol 2 calls `builtins` by its older name."""


def _protocol(machine: _Machine, number: int) -> None:
    if not 2 <= number <= _NEWEST_PROTOCOL:
        raise ValueError(f"its protocol is {number}; 2 to {_NEWEST_PROTOCOL} are read")


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _protocol,
    "FRAME": lambda machine, _: None,
    "NONE": lambda machine, _: machine.constant(None),
    "NEWTRUE": lambda machine, _: machine.constant(True),
    "NEWFALSE": lambda machine, _: machine.constant(False),
    "EMPTY_LIST": lambda machine, _: machine.constant([]),
    "EMPTY_TUPLE": lambda machine, _: machine.constant(()),
    "EMPTY_DICT": lambda machine, _: machine.constant({}),
    "EMPTY_SET": lambda machine, _: machine.constant(set()),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": _Machine.tuple_to_mark,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_to_mark,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_of_two,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new,
    "NEWOBJ_EX": _Machine.new_with_names,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
    "MEMOIZE": _Machine.put,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": _Machine.frozen_set,
    "STOP": lambda machine, _: None,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(
        (
            *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
            *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
        ),
        _Machine.constant,
    ),
}

_ALL = {info.code.encode("latin-1"): info.name for info in pickletools.opcodes}
_INSTRUCTIONS = {info.code.encode("latin-1"): info for info in pickletools.opcodes if info.name in _STEPS}
