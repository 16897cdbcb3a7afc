"""Training checkpoints in storage: committed atomically like a shard; the newest two are kept.

A step's files lie in `<folder>/<step>-<nonce>/`, a name no other attempt uses. Creating `<folder>/<step>.json`, if
absent, commits them. If the newest checkpoint is lost or damaged, training resumes from the one before. Without the
right to delete, all are kept.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from maskfleet.jobs.errors import Damaged, Denied, NotFound
from maskfleet.jobs.ledger.commit import Object, checked, nonce, put
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.storage.contract import Storage

_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint.

    Attributes:
        step: Number of the optimizer step.
        objects: Stored objects by file name. The best weights may belong to an earlier step.
    """

    step: int
    objects: Mapping[str, Object]


class Checkpoints:
    """The checkpoints of one training.

    Args:
        storage: Output storage, fenced.
        folder: Folder of the checkpoints within the output.
        fence: Fence of the process holding the output.
    """

    def __init__(self, storage: Storage, folder: str, fence: Fence) -> None:
        self._storage, self._folder, self._fence = storage, folder, fence
        self._may_delete = True

    @property
    def generation(self) -> int:
        """Lock generation of the process holding the output."""
        return self._fence.generation

    def reached(self, step: int) -> bool:
        """Return whether the newest intact checkpoint is of this step."""
        found = self.newest()
        return found is not None and found[0].step == step

    def newest(self) -> tuple[Checkpoint, dict[str, bytes]] | None:
        """Return the newest intact checkpoint and its files by name, or None if there is none.

        Deletes the records of damaged checkpoints.
        """
        for checkpoint in self._committed():
            try:
                return checkpoint, {name: checked(self._storage, item) for name, item in checkpoint.objects.items()}
            except Damaged:
                self._delete([self._record_path(checkpoint.step)])  # the step can then be committed again
        return None

    def save(self, step: int, files: Mapping[str, bytes], earlier: Mapping[str, Object] | None = None) -> Checkpoint:
        """Commit a checkpoint, then delete superseded ones.

        Args:
            step: Number of the optimizer step.
            files: New files by name.
            earlier: Objects of earlier checkpoints to keep, by name.

        Raises:
            Locked: Another run has taken over the output.
        """
        folder = f"{self._folder}/{step:09}-{nonce()}"
        objects = dict(earlier or {})
        for name, data in files.items():
            objects[name] = put(self._storage, f"{folder}/{name}", data)
        self._fence.check()
        record = {"step": step, "objects": {name: item._asdict() for name, item in objects.items()}}
        # An existing record of this step has equal content: a step follows from the seed and its number.
        self._storage.create(self._record_path(step), json.dumps(record, indent=1).encode())
        kept = list(islice(self._committed(), _KEPT))
        if self._may_delete:
            self._delete_except(kept)
        return next(checkpoint for checkpoint in kept if checkpoint.step == step)

    def _record_path(self, step: int) -> str:
        return f"{self._folder}/{step:09}.json"

    def _delete_except(self, kept: list[Checkpoint]) -> None:
        needed = {item.path for checkpoint in kept for item in checkpoint.objects.values()}
        needed |= {self._record_path(checkpoint.step) for checkpoint in kept}
        # Records first: no record may ever name a deleted file.
        entries = sorted(self._storage.walk(self._folder), key=lambda entry: not entry.path.endswith(".json"))
        self._delete(entry.path for entry in entries if entry.path not in needed)

    def _delete(self, paths: Iterable[str]) -> None:
        """Delete objects, as far as this process has the right to."""
        try:
            for path in paths:
                self._storage.delete(path)
        except Denied:
            self._may_delete = False  # a training of many checkpoints would try thousands of times

    def _committed(self) -> Iterator[Checkpoint]:
        """Yield committed checkpoints, newest first."""
        for name in sorted(self._storage.names(self._folder), reverse=True):
            if name.endswith(".json"):
                with suppress(NotFound):
                    record = json.loads(self._storage.read(f"{self._folder}/{name}"))
                    objects = {key: Object(**item) for key, item in record["objects"].items()}
                    yield Checkpoint(record["step"], objects)
