"""Circuit breakers: when to avoid a node, and when to end the run. Pure: no Ray and no clock."""

from collections import defaultdict

_NODE_FAILURES = 3
_NODE_WINDOW = 600.0
_JOB_SHARDS = 8
_LOST_IN_A_ROW = 12


class NodeBreaker:
    """Avoids a node for a while after it has failed several shards.

    Failures of the same shard count once, or one bad shard would condemn every node it runs on.

    Args:
        failures: Number of failed shards and worker starts within the window from which a node is avoided.
        window: Seconds for which a failure counts.
    """

    def __init__(self, *, failures: int = _NODE_FAILURES, window: float = _NODE_WINDOW) -> None:
        self._failures, self._window = failures, window
        self._seen: dict[str, dict[str, float]] = defaultdict(dict)

    def failed(self, node: str, what: str, now: float) -> None:
        """Count a failure.

        Args:
            node: Id of the node.
            what: Name of the failure, such as the shard id. Equal names count once.
            now: Monotonic time in seconds.
        """
        self._seen[node][what] = now

    def avoided(self, alive: set[str], now: float) -> set[str]:
        """Return the ids of nodes excluded from new workers for now.

        Args:
            alive: Ids of the usable nodes. If all of them fail, the cause lies elsewhere and none is avoided.
            now: Monotonic time in seconds.
        """
        bad = {node for node in alive & self._seen.keys() if self._recent(node, now) >= self._failures}
        return bad if bad < alive else set()

    def _recent(self, node: str, now: float) -> int:
        return sum(now - when < self._window for when in self._seen[node].values())


class JobBreaker:
    """Opens once most shards fail, which points to the job or the machines, not the images.

    Args:
        shards: Smallest number of failing shards for it to open.
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


class NetworkBreaker:
    """Opens once workers are lost to the network one after the other, and no shard is done in between.

    Args:
        workers: Number of such workers for it to open.
    """

    def __init__(self, *, workers: int = _LOST_IN_A_ROW) -> None:
        self._workers = workers
        self._lost = 0

    def failed(self) -> None:
        """Count a worker that stayed unreachable."""
        self._lost += 1

    def done(self) -> None:
        """Count a committed shard."""
        self._lost = 0

    @property
    def open(self) -> bool:
        """Whether no worker can be reached for long."""
        return self._lost >= self._workers
