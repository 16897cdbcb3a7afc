"""Circuit breakers: when to avoid a node, and when to end the run. Pure: no Ray, and the caller passes the time."""

from collections import defaultdict

_NODE_FAILURES = 3
_NODE_WINDOW = 600.0
_JOB_SHARDS = 8


class NodeBreaker:
    """Avoids a node for a while after it has failed several shards.

    Only different shards count. Otherwise a shard that kills every worker would condemn the node it happens to be on.

    Args:
        failures: Different shards, or starts of workers, that may fail on a node within the window.
        window: Duration for which a failure counts, in seconds.
    """

    def __init__(self, *, failures: int = _NODE_FAILURES, window: float = _NODE_WINDOW) -> None:
        self._failures, self._window = failures, window
        self._seen: dict[str, dict[str, float]] = defaultdict(dict)

    def failed(self, node: str, what: str, now: float) -> None:
        """Count a failure.

        Args:
            node: Id of the node.
            what: Name of the failure, such as the shard. Equal names count once.
            now: Monotonic time in seconds.
        """
        self._seen[node][what] = now

    def avoided(self, alive: set[str], now: float) -> set[str]:
        """Ids of the nodes that get no new workers for now.

        Args:
            alive: Ids of the cluster's nodes. If all of them fail, the nodes are not at fault, and none is avoided.
            now: Monotonic time in seconds.
        """
        bad = {node for node in alive & self._seen.keys() if self._recent(node, now) >= self._failures}
        return bad if bad < alive else set()

    def _recent(self, node: str, now: float) -> int:
        return sum(now - when < self._window for when in self._seen[node].values())


class JobBreaker:
    """Opens once most shards fail: then the job or the machines are at fault, not the images.

    Args:
        shards: Number of different shards that must have failed before it opens.
    """

    def __init__(self, *, shards: int = _JOB_SHARDS) -> None:
        self._shards = shards
        self._failing: set[int] = set()
        self._done = 0

    def failed(self, group: int) -> None:
        """Count a failed attempt at a shard, or at a part of it."""
        self._failing.add(group)

    def done(self, group: int) -> None:
        """Count a committed shard, or a committed part of it."""
        self._failing.discard(group)
        self._done += 1

    @property
    def open(self) -> bool:
        """Whether most shards fail."""
        return len(self._failing) >= self._shards and len(self._failing) > self._done
