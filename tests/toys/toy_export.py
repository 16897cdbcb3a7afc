"""An export form of the tests: a text file per mask with a digit per pixel."""

from maskfleet.jobs.outputs.exports.contract import FileExport


class TextExport(FileExport):
    def file(self, mask):
        lines = ("".join(str(number) for number in row) for row in mask.classes().tolist())
        return f"{mask.name}.txt", "\n".join(lines).encode()


EXPORT = TextExport
