"""The contract of an export form. A form is one module with a subclass of `Export` named `EXPORT`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from maskfleet.jobs.inputs.fetch import Inputs
from maskfleet.jobs.outputs.stored_masks import StoredMask
from maskfleet.jobs.storage.contract import Storage

_WRITES_IN_FLIGHT = 32


class Export(ABC):
    """An export in progress.

    Args:
        target: Destination storage.
        class_names: Names of the classes after the first, as far as given.
        inputs: Reader of the input images.
    """

    def __init__(self, target: Storage, *, class_names: Sequence[str], inputs: Inputs) -> None:
        self.target = target
        self.inputs = inputs
        self._class_names = class_names

    @abstractmethod
    def write(self, masks: Sequence[StoredMask]) -> None:
        """Write the masks of one shard.

        Raises:
            JobError: The masks cannot be exported in this form.
        """

    def finish(self) -> str:
        """Write what covers all masks. Called once, after the last mask.

        Returns:
            A remark for the user, or "".
        """
        return ""

    def close(self) -> None:  # noqa: B027  (most forms hold no resources)
        """Release resources. Called last, also after an error."""

    def class_name(self, number: int) -> str:
        """Return the name of a class after the first; `class_<number>` if none was given."""
        return self._class_names[number - 1] if number <= len(self._class_names) else f"class_{number}"


class FileExport(Export):
    """An export writing one file per mask, many at once."""

    def __init__(self, target: Storage, *, class_names: Sequence[str], inputs: Inputs) -> None:
        super().__init__(target, class_names=class_names, inputs=inputs)
        self._pool = ThreadPoolExecutor(_WRITES_IN_FLIGHT)

    @abstractmethod
    def file(self, mask: StoredMask) -> tuple[str, bytes]:
        """Return the path and content of a mask's file. Called from several threads.

        Raises:
            JobError: The mask cannot be exported in this form.
        """

    def write(self, masks: Sequence[StoredMask]) -> None:
        for _ in self._pool.map(lambda mask: self.target.export(*self.file(mask)), masks):
            pass

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
