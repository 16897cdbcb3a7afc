"""An image format of the tests: `TOY!`, height and width as two big-endian bytes each, and RGB pixels."""

import numpy as np

from maskfleet.jobs.images.formats import ImageFile


class Toy(ImageFile):
    def __init__(self, file):
        head = file.read(8)
        self.height, self.width = (int.from_bytes(head[start : start + 2], "big") for start in (4, 6))
        self._file = file

    def pixels(self):
        return np.frombuffer(self._file.read(), np.uint8).reshape(self.height, self.width, 3)


def read_header(file):
    return Toy(file)
