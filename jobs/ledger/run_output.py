"""The output of a run: everything that attempts need in order to write and commit."""

from collections.abc import Iterable
from dataclasses import dataclass

from maskfleet.jobs.ledger.commit import Commit, Commits
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.manifest import Manifest
from maskfleet.jobs.ledger.runs import StoredRun
from maskfleet.jobs.ledger.shard_files import masks_of
from maskfleet.jobs.masks.formats import MaskFormat, mask_format
from maskfleet.jobs.storage.contract import Storage


@dataclass(frozen=True, kw_only=True)
class RunOutput:
    """The output of a run.

    Attributes:
        storage: Output storage; fenced in a process that writes.
        run_id: Name of the run.
        fingerprint: Fingerprint of the run.
        manifest: Plan of the run.
        commits: Commits of the run.
        format: Mask format.
    """

    storage: Storage
    run_id: str
    fingerprint: str
    manifest: Manifest
    commits: Commits
    format: MaskFormat

    def export(self, commit: Commit, masks: Iterable[tuple[str, bytes]] | None = None) -> dict[str, str]:
        """Write the masks of a committed shard as loose files, and then note that the shard is exported.

        The note is written once the masks are durable, so that after a power cut no torn mask is taken for done.

        Args:
            commit: Commit of the shard.
            masks: Files by name; None to read them from the shard's archive.

        Returns:
            The reason for each mask that could not be written, by name. The shard then counts as not exported.
        """
        if masks is None:
            masks = masks_of(self.storage, commit, self.format)
        errors = self.storage.export_all((f"masks/{name}", data) for name, data in masks)
        if not errors:
            # Waiting for the disk here would cost more than the masks. After a power cut the mark is not believed.
            self.storage.write(f"runs/{self.run_id}/exports/{commit.shard}", self.storage.lifetime().encode())
        return {path.removeprefix("masks/"): str(error) for path, error in errors.items()}


def stored_output(storage: Storage, run: StoredRun, fence: Fence | None = None) -> RunOutput:
    """Return the output of a stored run, to continue it or to read it.

    Args:
        storage: Output storage.
        run: The run.
        fence: Fence of the driver on whose behalf it is written; None for readers.

    Raises:
        NotFound: Nothing of its plan is stored.
        Damaged: Its plan is unreadable.
    """
    return RunOutput(
        storage=storage if fence is None else fence.storage,
        run_id=run.run_id,
        fingerprint=run.fingerprint,
        manifest=Manifest.stored(storage, run.run_id),
        commits=Commits(storage, run.run_id, run.commit_mode, fence),
        format=mask_format(run.mask_format),
    )


def refused_name(storage: Storage, format_: MaskFormat, name: str) -> str | None:
    """Return why an output cannot hold a mask of this name, with the remedy; None if it can.

    Args:
        storage: Output storage.
        format_: Mask format. Only loose masks need names that storage can hold.
        name: Name of the mask; "" if every name belongs to another image.
    """
    if not name:
        return "every name for its mask belongs to another image; rename this image"
    if format_.loose and (reason := storage.refused(f"masks/{name}")):
        return f"the name of its mask is too long ({reason}); rename this image, or set masks.format to tar"
    return None
