"""When to stop trusting a node, and when to stop trusting the job. Pure: no Ray, and the clock is given."""

from collections import defaultdict

_NODE_FAILURES = 3
_NODE_WINDOW = 600.0
_JOB_SHARDS = 8


class NodeBreaker:
    """A node that costs several shards their workers is left alone for a while.

    A shard that kills every worker it meets would condemn the node it happens to be on, so what
    counts is different shards.

    Args:
        failures: Different shards, or starts, that a node may cost within the window.
        window: Seconds that a failure counts for.
    """

    def __init__(self, *, failures: int = _NODE_FAILURES, window: float = _NODE_WINDOW) -> None:
        self._failures, self._window = failures, window
        self._seen: dict[str, dict[str, float]] = defaultdict(dict)

    def failed(self, node: str, what: str, now: float) -> None:
        """A worker on a node was lost.

        Args:
            node: Where.
            what: Shard that it had, or whatever tells this failure from others.
            now: Seconds of a monotonic clock.
        """
        self._seen[node][what] = now

    def avoided(self, alive: set[str], now: float) -> set[str]:
        """Nodes that get no new workers for now.

        Args:
            alive: The cluster's nodes. Where all of them fail it is not the nodes, and none is avoided.
            now: Seconds of a monotonic clock.
        """
        bad = {node for node in alive & self._seen.keys() if self._recent(node, now) >= self._failures}
        return bad if bad < alive else set()

    def _recent(self, node: str, now: float) -> int:
        return sum(now - when < self._window for when in self._seen[node].values())


class JobBreaker:
    """When most shards cost their workers, it is the job or the machines, not the images.

    Args:
        shards: Different shards that must have failed before that is said.
    """

    def __init__(self, *, shards: int = _JOB_SHARDS) -> None:
        self._shards = shards
        self._failing: set[int] = set()
        self._done = 0

    def failed(self, group: int) -> None:
        """A shard, or a part of it, cost a worker."""
        self._failing.add(group)

    def done(self, group: int) -> None:
        """A shard, or a part of it, is on record."""
        self._failing.discard(group)
        self._done += 1

    @property
    def open(self) -> bool:
        """Whether most shards fail."""
        return len(self._failing) >= self._shards and len(self._failing) > self._done
