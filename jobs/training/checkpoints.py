"""Training states in storage: each whole or not there, committed like a shard, the newest two kept.

`<folder>/<step>-<nonce>/…` holds what a step left behind, under a name that nobody else has; then one create-if-absent
of `<folder>/<step>.json` makes it true. A state that is lost or damaged all the same costs the way from the one before.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from maskfleet.jobs.errors import Damaged, NotFound
from maskfleet.jobs.ledger.commit import Object, checked, nonce, put
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.storage.contract import Storage

_KEPT = 2


class Checkpoint(NamedTuple):
    """What a step left behind.

    Attributes:
        step: Which.
        objects: By name. One may belong to an earlier step that was better.
    """

    step: int
    objects: Mapping[str, Object]


class Checkpoints:
    """The checkpoints of one training.

    Args:
        storage: The output.
        folder: In it.
        fence: Of the holder of the output.
    """

    def __init__(self, storage: Storage, folder: str, fence: Fence) -> None:
        self._storage, self._folder, self._fence = storage, folder, fence

    @property
    def generation(self) -> int:
        """Of the holder of the output."""
        return self._fence.generation

    def reached(self, step: int) -> bool:
        """Whether there is a checkpoint of that step, whole."""
        found = self.newest()
        return found is not None and found[0].step == step

    def newest(self) -> tuple[Checkpoint, dict[str, bytes]] | None:
        """The newest checkpoint whose files are all there and whole, with them; None where there is none."""
        for checkpoint in self._committed():
            try:
                return checkpoint, {name: checked(self._storage, item) for name, item in checkpoint.objects.items()}
            except (Damaged, NotFound):
                self._storage.delete(self._record(checkpoint.step))  # so that the step can be committed again
        return None

    def save(self, step: int, files: Mapping[str, bytes], earlier: Mapping[str, Object] | None = None) -> Checkpoint:
        """Make a checkpoint true, and let go of what nothing names any more.

        Args:
            step: Of it.
            files: By name.
            earlier: Objects of earlier checkpoints that this one keeps.

        Raises:
            Locked: Another run has taken over.
        """
        folder = f"{self._folder}/{step:09}-{nonce()}"
        objects = dict(earlier or {})
        for name, data in files.items():
            objects[name] = put(self._storage, f"{folder}/{name}", data)
        self._fence.check()
        record = {"step": step, "objects": {name: item._asdict() for name, item in objects.items()}}
        # Where there is one of this step already its content is the same: a step follows from the seed and its number.
        self._storage.create(self._record(step), json.dumps(record, indent=1).encode())
        kept = list(self._committed())[:_KEPT]
        self._let_go(kept)
        return next(checkpoint for checkpoint in kept if checkpoint.step == step)

    def _record(self, step: int) -> str:
        return f"{self._folder}/{step:09}.json"

    def _let_go(self, kept: list[Checkpoint]) -> None:
        named = {item.path for checkpoint in kept for item in checkpoint.objects.values()}
        named |= {self._record(checkpoint.step) for checkpoint in kept}
        # Records first: a file must not go before what names it.
        for entry in sorted(self._storage.walk(self._folder), key=lambda entry: not entry.path.endswith(".json")):
            if entry.path not in named:
                self._storage.delete(entry.path)

    def _committed(self) -> list[Checkpoint]:
        """The newest first."""
        found = []
        for name in sorted(self._storage.names(self._folder), reverse=True):
            if name.endswith(".json"):
                with suppress(NotFound):
                    record = json.loads(self._storage.read(f"{self._folder}/{name}"))
                    objects = {key: Object(**item) for key, item in record["objects"].items()}
                    found.append(Checkpoint(record["step"], objects))
        return found
