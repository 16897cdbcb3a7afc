"""Files that try to run code, to fill memory or to hang: nothing runs, and each ends with a message."""

import io
import os
import pickle
import random
import resource
import struct
import time
import zipfile

import pytest
import torch
from conftest import seeded

from maskfleet.unet.checkpoints.pytorch_unet import convert
from maskfleet.unet.network import WeightsError

COMMAND = "mkdir exploded"


def saved(value, **how) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink, **how)
    return sink.getvalue()


def archive(pickled: bytes, **entries: bytes) -> bytes:
    """Return an archive as torch.save writes it, around any pickle."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        for name, data in {"data.pkl": pickled, "version": b"3\n", **entries}.items():
            file.writestr(f"archive/{name}", data)
    return sink.getvalue()


class Reduced:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments, state=None):
        self._call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self._call


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


SYSTEM = b"\x80\x04" + text("os") + text("system") + b"\x93"
RUNS = {
    "reduce": archive(pickle.dumps(Reduced(os.system, COMMAND), 2)),
    "reduce of eval": archive(pickle.dumps(Reduced(eval, f"__import__('os').system({COMMAND!r})"), 2)),
    "reduce in a state dict": archive(pickle.dumps({"a": Reduced(os.system, COMMAND)}, 2)),
    "protocol 0": archive(b"cos\nsystem\n(S'mkdir exploded'\ntR."),
    "inst": archive(b"(S'mkdir exploded'\nios\nsystem\n."),
    "obj": archive(b"(cos\nsystem\nS'mkdir exploded'\no."),
    "newobj": archive(SYSTEM + text(COMMAND) + b"\x85\x81."),
    "newobj_ex": archive(SYSTEM + text(COMMAND) + b"\x85}\x92."),
    "stack global": archive(SYSTEM + text(COMMAND) + b"\x85R."),
    "dotted name": archive(b"\x80\x04" + text("os") + text("path.os.system") + b"\x93" + text(COMMAND) + b"\x85R."),
    "getattr": archive(
        b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\nX\x08\x00\x00\x00__call__\x86R" + text(COMMAND) + b"\x85R."
    ),
    "extension code": archive(b"\x80\x02\x82\x01" + text(COMMAND) + b"\x85R."),
    "state of an object": archive(
        pickle.dumps(Reduced(Reduced, os.system, COMMAND, state={"a": Reduced(os.system, COMMAND)}), 2)
    ),
    "rebuilt tensor's hook": archive(
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n"
        + pickle.dumps(Reduced(os.system, COMMAND), 2)[2:-1]
        + b"\x88}\x87R."
    ),
    "persistent id": archive(b"\x80\x02" + pickle.dumps(Reduced(os.system, COMMAND), 2)[2:-1] + b"Q."),
    "whole module of a hostile class": saved(Reduced(os.system, COMMAND)),
    "before PyTorch 1.6": saved(Reduced(os.system, COMMAND), _use_new_zipfile_serialization=False),
    "plain pickle": pickle.dumps(Reduced(os.system, COMMAND)),
    "TorchScript's code": archive(
        b"\x80\x02}.", **{"code/__torch__.py": f"import os; os.system({COMMAND!r})".encode()}
    ),
}


@pytest.mark.parametrize("way", RUNS)
def test_nothing_in_a_file_runs(way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError):
        convert(RUNS[way])
    assert not list(tmp_path.iterdir())


def tensor(size: bytes) -> bytes:
    """Return a pickle of `{"inc.double_conv.0.weight": tensor}` over storage 0, with this shape and these strides."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + size + b"\x89}tR"
    return b"\x80\x02}" + text("inc.double_conv.0.weight") + rebuilt + b"s."


HUGE = b"\x8a\x06" + (2**40).to_bytes(6, "little")
FILLS = {
    "a memo of 2**32 entries": archive(b"\x80\x02Nr\xff\xff\xff\xff."),
    "a text of 2**60 bytes": archive(b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"a."),
    "a number of 2**31 bytes": archive(b"\x80\x02\x8b" + struct.pack("<I", 2**31 - 1) + b"a."),
    "a bytearray": archive(b"\x80\x05\x96" + struct.pack("<Q", 2**50) + b"."),
    "a tensor with strides 0": archive(tensor(HUGE + b"\x85K\x00\x85"), **{"data/0": bytes(16)}),
    "a tensor beyond its storage": archive(tensor(b"K\x09\x85K\x01\x85"), **{"data/0": bytes(16)}),
    "a tensor whose strides overflow": archive(tensor(b"K\x02\x85" + HUGE + b"\x85"), **{"data/0": bytes(16)}),
    "a negative stride": archive(tensor(b"K\x02\x85J\xff\xff\xff\xff\x85"), **{"data/0": bytes(16)}),
    "lists in lists": archive(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
    "tuples in tuples, as a key": archive(b"\x80\x02})" + b"\x85" * 100_000 + b"Ns."),
    "a list of lists of one list": archive(b"\x80\x02]" + b"q\x00h\x00h\x00\x86" * 5000 + b"."),
    "a list in itself": archive(b"\x80\x02]q\x00h\x00a."),
    "many instructions": archive(b"\x80\x02]" + b"N0" * 1_100_000 + b"."),
    "a compressed archive": None,
    "one entry many times": None,
}


def compressed() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + bytes(50_000_000))
    return sink.getvalue()


def overlapping() -> bytes:
    """Return an archive whose directory names one megabyte a thousand times."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02}.")
        file.writestr("archive/data/0", bytes(2**20))
        for number in range(1000):
            again = zipfile.ZipInfo(f"archive/data/x{number}")
            first = file.infolist()[1]
            again.file_size = again.compress_size = first.file_size
            again.CRC, again.header_offset = first.CRC, first.header_offset
            file.filelist.append(again)
    return sink.getvalue()


@pytest.mark.parametrize("way", FILLS)
def test_no_file_fills_memory_or_hangs(way):
    data = FILLS[way] or {"a compressed archive": compressed, "one entry many times": overlapping}[way]()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(WeightsError):
        convert(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20 / 2  # 512 MiB
    assert time.monotonic() - began < 60


def damaged(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8, 100))):
        if not changed:
            break
        position = draw.randrange(len(changed))
        match draw.randrange(4):
            case 0:
                changed[position] = draw.randrange(256)
            case 1:
                changed[position : position + draw.randrange(1, 9)] = b""
            case 2:
                changed[position:position] = draw.randbytes(draw.randrange(1, 9))
            case 3:
                del changed[max(1, position) :]
    return bytes(changed)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_checkpoints_are_read_or_refused(seed):
    """2,000 files in all: archives, their pickles alone, older files, safetensors."""
    draw = random.Random(seed)
    state = seeded(2, width=2).state_dict()
    archived = saved({"model": state, "epoch": 3, "args": Reduced(dict, [("lr", 1)])})
    with zipfile.ZipFile(io.BytesIO(archived)) as file:
        pickled = file.read("archive/data.pkl")
        rest = {name.removeprefix("archive/"): file.read(name) for name in file.namelist() if "/data/" in name}
    old = saved(state, _use_new_zipfile_serialization=False)
    kinds = [
        lambda: damaged(archived, draw),
        lambda: archive(damaged(pickled, draw), **rest),
        lambda: damaged(old[:20_000], draw),
        lambda: damaged(old, draw),
    ]
    read = 0
    for number in range(500):
        try:
            convert(kinds[number % 4]())
            read += 1
        except WeightsError as error:
            assert "\n" not in str(error)
    assert read < 500
