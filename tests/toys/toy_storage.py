"""A storage scheme of the tests: `toy:///path` is a local folder, whose files nobody else may open by their path."""

from maskfleet.jobs.storage.local import LocalStorage


class ToyStorage(LocalStorage):
    is_local = False

    @classmethod
    def open(cls, url, options):
        return cls(url.removeprefix("toy://"))

    @classmethod
    def split(cls, url):
        return "toy:///", url.removeprefix("toy:///")

    def url(self, path):
        return f"toy://{super().url(path)}"
