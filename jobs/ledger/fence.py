"""The fence that keeps a driver which was succeeded from committing: the lock's generation, looked at again."""

from maskfleet.jobs.errors import Locked
from maskfleet.jobs.storage.contract import Storage


def newest(storage: Storage) -> int:
    """The highest generation of an output's lock; 0 where nobody ever held it."""
    return max((int(name.split(".")[0]) for name in storage.names("lock") if name[:6].isdigit()), default=0)


class Fence:
    """Keeps a holder that was succeeded from committing.

    Args:
        storage: The output.
        generation: Of the holder.
    """

    def __init__(self, storage: Storage, generation: int) -> None:
        self._storage = storage
        self.generation = generation

    def check(self) -> None:
        """Pass only while nobody has succeeded the holder.

        Raises:
            Locked: Somebody has.
        """
        if newest(self._storage) > self.generation:
            raise Locked(
                f"another run took {self._storage.root} over while this one was not heard of; wait for that one"
            )
