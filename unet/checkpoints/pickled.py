"""Reads a pickle without importing or calling anything in it. Knows nothing about PyTorch.

A pickle is a program for a stack machine (Python's `pickletools` describes its instructions). This machine builds
numbers, text and containers. An import becomes a `Global`, a call or an object a `Record` of what was asked for.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from maskfleet.unet.network import WeightsError

_INSTRUCTIONS = 2_000_000
"""Largest number of instructions in a pickle. A checkpoint has some ten for a tensor."""

_SIMPLE = (str, bytes, int, float, bool, type(None))
_MARK = object()

_PUSH = frozenset({
    "INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
})  # fmt: skip
"""Instructions that push their own argument."""

_MAKE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
}
"""Instructions that push a new value. A set becomes a list, which needs no hash of its members."""


@dataclass(frozen=True)
class Global:
    """A name that the pickle would import.

    Attributes:
        name: Module and name, such as `torch._utils._rebuild_tensor_v2`.
    """

    name: str


@dataclass(frozen=True)
class Persistent:
    """A reference to something stored beside the pickle, such as a tensor's data.

    Attributes:
        id: What the pickle says of it.
    """

    id: Any


@dataclass(eq=False)
class Record:
    """A call, or an object, that the pickle asks for. It is never made.

    Attributes:
        of: Module and name of the function or class; "" if that is itself the result of a call.
        arguments: Its arguments.
        state: State to be given to the object.
        items: Members or key-value pairs to be added to the object.
    """

    of: str
    arguments: tuple[Any, ...]
    state: Any = None
    items: list[Any] = field(default_factory=list)


def read(file: BytesIO) -> tuple[Any, list[Persistent]]:
    """Read the pickle that begins at the file's position, and leave the file behind it.

    Returns:
        Its value, and the references in it.

    Raises:
        WeightsError: The bytes are no pickle, or one of more than 2,000,000 instructions.
    """
    machine = _Machine()
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(file)):
            if count >= _INSTRUCTIONS:
                raise WeightsError(
                    f"its pickle has more than {_INSTRUCTIONS:,} instructions; save the state dict alone"
                )
            machine.step(instruction.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError("its pickle is damaged; copy the file again") from error
    return machine.stack.pop() if machine.stack else None, machine.references


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.references: list[Persistent] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSH:
            self.stack.append(argument)
        elif name in _MAKE:
            self.stack.append(_MAKE[name]())
        elif name not in ("PROTO", "FRAME", "STOP"):
            act = getattr(self, f"_{name.lower()}", None)
            if act is None:
                raise WeightsError(f"its pickle uses {name}, which no checkpoint needs; save the state dict again")
            act(argument)

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._marked()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _put(self, index: int) -> None:
        self._memo[index] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    def _get(self, index: int) -> None:
        self.stack.append(self._memo[index])

    _binget = _long_binget = _get

    def _tuple1(self, _: Any) -> None:
        self._tuple_of(1)

    def _tuple2(self, _: Any) -> None:
        self._tuple_of(2)

    def _tuple3(self, _: Any) -> None:
        self._tuple_of(3)

    def _tuple_of(self, length: int) -> None:
        if len(self.stack) < length:
            raise IndexError
        self.stack[-length:] = [tuple(self.stack[-length:])]

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._marked()))

    def _list(self, _: Any) -> None:
        self.stack.append(self._marked())

    _frozenset = _list

    def _dict(self, _: Any) -> None:
        made: dict[Any, Any] = {}
        _add_pairs(made, self._marked())
        self.stack.append(made)

    def _append(self, _: Any) -> None:
        item = self.stack.pop()
        _add(self.stack[-1], [item])

    def _appends(self, _: Any) -> None:
        items = self._marked()
        _add(self.stack[-1], items)

    _additems = _appends

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _add_pairs(self.stack[-1], [key, value])

    def _setitems(self, _: Any) -> None:
        items = self._marked()
        _add_pairs(self.stack[-1], items)

    def _global(self, names: str) -> None:
        self.stack.append(Global(names.replace(" ", ".")))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Global(f"{_text(module)}.{_text(name)}"))

    def _reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(_asked(function, arguments))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        self.stack.pop()  # arguments by keyword
        self._reduce(None)

    def _inst(self, names: str) -> None:
        self.stack.append(_asked(Global(names.replace(" ", ".")), tuple(self._marked())))

    def _obj(self, _: Any) -> None:
        function, *arguments = self._marked()
        self.stack.append(_asked(function, tuple(arguments)))

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Record):
            self.stack[-1].state = state

    def _binpersid(self, _: Any) -> None:
        self.references.append(Persistent(self.stack.pop()))
        self.stack.append(self.references[-1])

    def _marked(self) -> list[Any]:
        """Take everything above the topmost mark, and the mark."""
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]


def _asked(function: Any, arguments: Any) -> Any:
    """Return an empty dict for `OrderedDict()`, and the record of any other call."""
    name = function.name if isinstance(function, Global) else ""
    given = arguments if isinstance(arguments, tuple) else (arguments,)
    if name != "collections.OrderedDict":
        return Record(name, given)
    made: dict[Any, Any] = {}
    if given and isinstance(given[0], list):
        for pair in given[0]:
            _add_pairs(made, list(pair))
    return made


def _add(target: Any, items: list[Any]) -> None:
    (target.items if isinstance(target, Record) else target).extend(items)


def _add_pairs(target: Any, items: list[Any]) -> None:
    """Set keys and values in turn. Keys that are neither text nor numbers are left out: hashing them may recurse."""
    if isinstance(target, Record):
        target.items.extend(zip(items[::2], items[1::2], strict=True))
        return
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(key, _SIMPLE):
            target[key] = value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
