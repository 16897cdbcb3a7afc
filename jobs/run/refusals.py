"""The breaker of a run: it ends one whose input refuses most images, which points to the input as a whole."""

from maskfleet.jobs.errors import Denied
from maskfleet.jobs.run.attempt import ShardReport

_REFUSALS = {
    "denied": "grant the credentials s3:GetObject on the input, or correct the owner and mode of its files",
    "refused": "restore archived objects and enable their KMS keys",
    "storage": "mend the storage of the input",
}
"""Error classes of images that storage refuses, each with the remedy."""

_REFUSED_SHARDS = 8


class Refusals:
    """Ends a run once storage refuses most of its images, which points to the input as a whole.

    Args:
        shards: Smallest number of shards with mostly refused images to end the run.
    """

    def __init__(self, *, shards: int = _REFUSED_SHARDS) -> None:
        self._shards = shards
        self._refused = self._others = 0

    def add(self, report: ShardReport) -> None:
        """Count a committed shard.

        Raises:
            Denied: Most images of most shards are refused.
        """
        images = {name: report.errors.get(name, 0) for name in _REFUSALS}
        if 2 * sum(images.values()) <= report.commit.images:
            self._others += 1
            return
        self._refused += 1
        if self._refused >= self._shards and self._refused > self._others:
            most = max(images, key=images.__getitem__)
            raise Denied(
                f"storage refuses most images of {self._refused} of {self._refused + self._others} shards ({most}); "
                f"{_REFUSALS[most]}, then run the same command again"
            )
