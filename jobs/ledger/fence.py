"""The fence: keeps a superseded driver from committing, by comparing the lock's generation again."""

from maskfleet.jobs.errors import Locked
from maskfleet.jobs.storage.contract import Storage


def newest(storage: Storage) -> int:
    """Return the highest generation of an output's lock; 0 if it was never held."""
    return max((int(name.split(".")[0]) for name in storage.names("lock") if name[:6].isdigit()), default=0)


class Fence:
    """A lock holder's right to commit, valid until another driver takes over.

    Args:
        storage: Output storage.
        generation: Generation of the lock held.
    """

    def __init__(self, storage: Storage, generation: int) -> None:
        self._storage = storage
        self.generation = generation

    def check(self) -> None:
        """Check that no other driver has taken over.

        Raises:
            Locked: Another driver has taken over.
        """
        if newest(self._storage) > self.generation:
            raise Locked(
                f"another run took over {self._storage.root} while this one did not respond; wait for that run to end"
            )
