"""The end of a run: write loose masks, statistics and the catalog from the commits, then `run.json`."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from maskfleet.jobs.errors import StorageError
from maskfleet.jobs.inputs.containers import formats
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.ledger.commit import Commit, leaves, pending
from maskfleet.jobs.ledger.fence import Fence
from maskfleet.jobs.ledger.manifest import Shard
from maskfleet.jobs.network import tuning
from maskfleet.jobs.planning.findings import Finding
from maskfleet.jobs.planning.live_plan import gone_rows
from maskfleet.jobs.planning.run_findings import RunFindings
from maskfleet.jobs.run.begin import Run
from maskfleet.jobs.run.progress import Progress
from maskfleet.jobs.run.recovery.derived import compact
from maskfleet.jobs.run.recovery.unexported import Unexported, export_again, export_rest, note
from maskfleet.jobs.run.summary import RunSummary


def finish(run: Run, progress: Progress) -> RunSummary:
    """Write everything derived from the commits, then `run.json`.

    Raises:
        StorageError: A shard has no commit, or its files do not match its commit.
        Locked: Another run has taken over the output.
    """
    output = run.output
    commits = output.commits.all()
    if missing := [shard.id for shard in pending(output.manifest.shards(), commits)]:
        has = "shard {} has" if len(missing) == 1 else "shards {} have"
        raise StorageError(f"{has.format(', '.join(missing[:5]))} no commit; run the same command again")
    done = list(leaves(output.manifest.shards(), commits))
    fence = Fence(output.storage, run.generation)
    unexported = export_rest(output, done)
    findings = RunFindings(run.job, run.record["weights"])
    errors, damaged = _written(run, done, findings)
    note(output.storage, run.run_id, unexported, fence)
    unexported += export_again(output.storage, fence, but=run.run_id)
    found = findings.findings(output.storage, run.run_id, output.fingerprint)
    summary = _summary(
        run, progress, done, errors=errors, damaged=len(damaged), unexported=unexported, warnings=found
    )  # fmt: skip
    output.storage.settle("masks")
    fence.check()
    output.storage.write(f"runs/{run.run_id}/run.json", json.dumps(summary.to_json(), indent=1).encode())
    return summary


def _written(
    run: Run, done: Iterable[tuple[Shard, Commit]], findings: RunFindings
) -> tuple[Counter[str], set[str]]:  # fmt: skip
    """Write the compacted statistics and the next catalog version. `findings` receives all rows.

    Returns:
        The number of failures by error class, and the keys of the damaged containers.
    """
    storage = run.output.storage
    errors: Counter[str] = Counter()
    damaged: set[str] = set()
    rows = _noting_damage(compact(run.output, done, run.job.input, errors, findings.add), damaged)
    catalog.add(
        storage,
        run.run_id,
        catalog.with_tombstones(rows, gone_rows(storage, run.run_id), run.run_id),
        fence=Fence(storage, run.generation),
    )
    # Drain it: for a known run the catalog reads nothing, but the statistics must still be written.
    for _ in rows:
        pass
    return errors, damaged


def _noting_damage(rows: Iterator[pa.Table], damaged: set[str]) -> Iterator[pa.Table]:
    """Pass on catalog rows. Add the key of each container that nobody can list completely."""
    classes = pa.array(formats.damage())
    for table in rows:
        keys = table["key"].filter(pc.fill_null(pc.is_in(table["error_class"], value_set=classes), False))
        damaged.update(key.rpartition("/")[0] for key in keys.to_pylist())
        yield table


def _summary(
    run: Run,
    progress: Progress,
    done: list[tuple[Shard, Commit]],
    *,
    errors: Counter[str],
    damaged: int,
    unexported: Sequence[Unexported],
    warnings: Sequence[Finding],
) -> RunSummary:
    output, frozen = run.output, run.output.manifest.frozen
    failed = sum(commit.failed for _, commit in done)
    images = sum(commit.images for _, commit in done)
    complete = not damaged and not unexported and (not images or failed / images <= run.job.run.max_error_rate)
    tuned = tuning.read(output.storage, run.run_id)
    return RunSummary(
        run_id=run.run_id,
        status="complete" if complete else "incomplete",
        exit_code=0 if complete else 1,
        images=images,
        ok=images - failed,
        failed=failed,
        errors=dict(errors.most_common()),
        damaged_containers=damaged,
        exports_failed=len(unexported),
        export_failure=f"masks/{unexported[0].mask}: {unexported[0].reason}" if unexported else "",
        planned=frozen.why,
        listed=frozen.listed,
        listed_to_its_end=frozen.whole or run.job.select.limit is not None,
        gone=frozen.gone,
        left_alone=frozen.left_alone,
        shards=len(done),
        resumed=run.resumed,
        total_seconds=round(progress.total_seconds, 3),
        seconds=round(progress.seconds, 3),
        images_per_second=round(progress.rate, 3),
        start_seconds={step: round(seconds, 3) for step, seconds in progress.start.items()},
        measured_images=progress.measured,
        speed=progress.speed(loose=output.format.loose),
        attempts_lost=progress.deaths,
        tuning=None if tuned is None else asdict(tuned),
        short_of_memory=progress.short_of_memory,
        warnings=[each.to_json() for each in warnings],
        commit_mode=output.commits.mode,
        decoder_isolation=progress.isolation,
        fingerprint=output.fingerprint,
        generation=run.generation,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
