"""Outputs of runs among listed files: their masks and records are never inputs.

An output is known by a run in it, `runs/<run_id>/job.json`, so that it is found behind a link too. The job's own output
is also known by its place, before its first run.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.errors import JobError, StorageError
from maskfleet.jobs.job import places
from maskfleet.jobs.storage.contract import Storage

FOLDERS = ("batches", "catalog", "finetune", "lock", "masks", "runs", "stats")
"""Folders of an output."""

OWN = "own output"
OTHER = "other output"

_IN_FOLDER = rf"(?:^|/)(?:{'|'.join(FOLDERS)})/"
_FOLDER = re.compile(rf"(?:^|/)(?:{'|'.join(FOLDERS)})(?=/)")
_RUN_ID = r"\d{8}T\d{6}"
_RECORD = rf"(?:^|/)runs/{_RUN_ID}[^/]*/job\.json$"
_IN_FLIGHT = 16
_REMEMBERED = 4096


class Outputs:
    """The job's own output, and other outputs below its input.

    Args:
        own: Output of the job.
    """

    def __init__(self, own: str) -> None:
        self._own = own
        self._known: dict[tuple[str, str], str | None] = {}
        self._own_folders: dict[str, bool] = {}

    def refuse(self, location: str, *, is_folder: bool) -> None:
        """Check that an input is not the job's output, nor inside its masks or records.

        Args:
            location: The input; it may have wildcards.
            is_folder: Whether everything below the input is listed.

        Raises:
            JobError: It is.
        """
        path = places.below(location, self._own)
        if path is None:
            return
        if not path and is_folder:
            raise JobError(f"input and output are the same folder, {self._own}; write the masks elsewhere")
        first = path.partition("/")[0]
        if first in FOLDERS:
            raise JobError(
                f"input {location} is in {first}/ of the job's own output {self._own}; correct 'input' or 'output'"
            )

    def holds(self, url: str) -> bool:
        """Return whether a file lies in a folder of the job's own output."""
        folder = url.rpartition("/")[0]
        if folder not in self._own_folders:
            path = places.below(folder, self._own)
            if len(self._own_folders) >= _REMEMBERED:
                self._own_folders.clear()
            self._own_folders[folder] = path is not None and path.partition("/")[0] in FOLDERS
        return self._own_folders[folder]

    def reasons(self, storage: Storage, paths: pa.StringArray, *, in_order: bool) -> pa.StringArray:
        """Return `OWN` or `OTHER` for each path in an output, else null.

        Args:
            storage: Storage of the listing.
            paths: Paths of the listing's next objects.
            in_order: Whether the listing is in order of path.
        """
        others = pa.nulls(len(paths), pa.string())
        inside = pc.match_substring_regex(paths, _IN_FOLDER)
        if pc.any(inside).as_py():
            candidates = paths.filter(inside)
            folders = pc.replace_substring_regex(candidates, "[^/]*$", "").dictionary_encode()
            roots = [_roots(folder) for folder in folders.dictionary.to_pylist()]
            self._decide(storage, candidates, set().union(*roots), last=paths[-1].as_py() if in_order else "")
            known = [next(filter(None, (self._known[storage.root, root] for root in each)), None) for each in roots]
            found = pa.array(known, pa.string()).take(folders.indices)
            others = pc.replace_with_mask(others, inside, found)
        own = [pc.starts_with(paths, prefix) for prefix in self._prefixes(storage)]
        return pc.case_when(pc.make_struct(*own), *[OWN for _ in own], others) if own else others

    def _prefixes(self, storage: Storage) -> list[str]:
        """Return the beginnings of paths in the job's own output, by its place."""
        path = places.below(self._own, storage.root)
        if path is None:
            return []
        return [f"{path}/"] if path else [f"{folder}/" for folder in FOLDERS]

    def _decide(self, storage: Storage, candidates: pa.StringArray, roots: set[str], *, last: str) -> None:
        """Find out which folders are outputs.

        A run's record comes after the masks in order of path. If it is not among the candidates, the listing has either
        passed its place, or storage is asked.
        """
        new = {root for root in roots if (storage.root, root) not in self._known}
        records = candidates.filter(pc.match_substring_regex(candidates, _RECORD)).to_pylist()
        with_run = {re.sub(_RECORD, "", path) for path in records}
        asked = [root for root in new - with_run if last < f"{root}/runs0".lstrip("/")]
        if asked:
            with ThreadPoolExecutor(_IN_FLIGHT) as pool:
                has_run = pool.map(partial(_has_run, storage), asked)
                with_run |= {root for root, found in zip(asked, has_run, strict=True) if found}
        # Folders that are no outputs are forgotten with the next objects: there may be a million.
        kept = {at: name for at, name in self._known.items() if name is not None or at[1] in roots}
        self._known = kept | {
            (storage.root, root): self._named(storage, root) if root in with_run else None for root in new
        }

    def _named(self, storage: Storage, root: str) -> str:
        return OWN if places.below(storage.url(root), self._own) == "" else OTHER


def _roots(path: str) -> list[str]:
    """Return the folders that are outputs if the path lies in one of their `FOLDERS`."""
    return [path[: found.start()] for found in _FOLDER.finditer(path)]


def _has_run(storage: Storage, root: str) -> bool:
    """Return whether a folder holds a run. A folder that may not be read is no output."""
    runs = f"{root}/runs".lstrip("/")
    try:
        names = [name for name in storage.names(runs) if re.match(_RUN_ID, name)]
        return any(storage.exists(f"{runs}/{name}/job.json") for name in names)
    except StorageError:
        return False
