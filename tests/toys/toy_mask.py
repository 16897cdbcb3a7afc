"""A mask format of the tests: the PNG files of a shard in a JSON object, as hexadecimal text."""

import json

from maskfleet.jobs.masks.png_files import PngFiles


class HexFiles(PngFiles):
    archive = "masks.json"
    archive_label = "json"

    def pack(self, table, files):
        return json.dumps({name: data.hex() for name, data in files.items()}).encode()

    def unpack(self, archive):
        return ((name, bytes.fromhex(data)) for name, data in json.loads(archive).items())


FORMAT = HexFiles()
