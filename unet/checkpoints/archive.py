"""Zip archives as PyTorch writes them: entries stored as they are, none read twice as large as the file."""

import zipfile
from io import BytesIO

from maskfleet.unet.network import WeightsError

DAMAGED = "the file is damaged or cut off; copy it again"


class Archive:
    """An archive in memory.

    Args:
        data: Bytes of the file.

    Attributes:
        sizes: Bytes of each entry by name.

    Raises:
        WeightsError: The file is damaged, or its entries are larger than itself.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._file = zipfile.ZipFile(BytesIO(data))
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise WeightsError(DAMAGED) from error
        self._entries = {entry.filename: entry for entry in self._file.infolist()}
        self.sizes = {name: entry.file_size for name, entry in self._entries.items()}
        stored = (entry.file_size for entry in self._entries.values() if entry.compress_type == zipfile.ZIP_STORED)
        if sum(stored) > len(data):
            raise WeightsError(DAMAGED)

    def read(self, name: str) -> bytes | None:
        """Return an entry's bytes, or None if there is no such entry.

        Raises:
            WeightsError: The entry is damaged or compressed. PyTorch compresses nothing that holds data.
        """
        if name not in self._entries:
            return None
        if self._entries[name].compress_type != zipfile.ZIP_STORED:
            raise WeightsError("the archive is compressed, which PyTorch does not do; save the network again")
        try:
            return self._file.read(name)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            raise WeightsError(DAMAGED) from error

    def folder_of(self, name: str) -> str | None:
        """Return the folder that holds an entry of this name, with its slash; None if no entry has it."""
        for entry in self._entries:
            if entry == name or entry.endswith(f"/{name}"):
                return entry.removesuffix(name)
        return None
