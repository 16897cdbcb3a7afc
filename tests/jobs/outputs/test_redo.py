"""Damaged masks and rows are made again, by the command that `verify` and the errors print."""

import shlex
import shutil

import pytest
from conftest import draw_images, once_committed, statistics, tree
from typer.testing import CliRunner

from maskfleet.cluster.cli.main import app
from maskfleet.jobs.errors import Damaged, JobError, Locked, Stopped, StorageError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.ledger import catalog
from maskfleet.jobs.ledger.lock import Lock
from maskfleet.jobs.outputs import redo as redoing
from maskfleet.jobs.outputs.exports.export import export
from maskfleet.jobs.outputs.output import open_output
from maskfleet.jobs.outputs.redo import redo
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.local import LocalStorage


@pytest.fixture(scope="module")
def made(tmp_path_factory, weights_file):
    """An output of one run: 12 images in 3 shards."""
    folder = tmp_path_factory.mktemp("made")
    images = draw_images(folder / "in", 12)
    job = {"input": str(images), "output": str(folder / "out"), "weights": weights_file}
    run(Job.of(job, ["run.shard_size=4", "cluster.threads=1", "inference.precision=fp32"]))
    return folder / "out"


@pytest.fixture
def output(made, tmp_path):
    """A copy of it, with its own name in its records."""
    out = tmp_path / "out"
    shutil.copytree(made, out)
    for path in (*out.glob("runs/*/job.json"),):
        path.write_text(path.read_text().replace(str(made), str(out)))
    return out


def one(output, pattern):
    (path,) = output.glob(pattern)
    return path


def run_id_of(output):
    return sorted(path.name for path in (output / "runs").iterdir())[0]


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def follow(command):
    """Do what a remedy says."""
    words = shlex.split(command)
    assert words[0] == "maskfleet"
    done = CliRunner().invoke(app, [*words[1:], "--no-ray"])
    assert done.exit_code == 0, done.output
    return done


DAMAGES = {
    "a tar that was cut": lambda out: cut(one(out, "runs/*/shards/00001/*/masks.tar")),
    "statistics of a shard that were lost": lambda out: one(out, "runs/*/shards/00001/*/stats.parquet").unlink(),
    "a commit that was cut": lambda out: cut(one(out, "runs/*/commits/00001.json")),
    "a commit that was lost": lambda out: one(out, "runs/*/commits/00001.json").unlink(),
    "a part of the plan that was lost": lambda out: one(out, "runs/*/manifest/part-00000.parquet").unlink(),
    "a plan's end that was cut": lambda out: cut(one(out, "runs/*/manifest/frozen.json")),
    "statistics that were cut": lambda out: cut(one(out, "stats/*/part-00000.parquet")),
    "a loose mask that was lost": lambda out: next(iter(sorted(out.rglob("masks/*/*.png")))).unlink(),
    "a loose mask that was overwritten": lambda out: cut(next(iter(sorted(out.rglob("masks/*/*.png"))))),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_remedies_that_verify_prints_bring_every_mask_back(made, output, damage):
    damage(output)
    audit = verify(str(output))
    assert audit.problems
    assert audit.remedies
    for command in audit.remedies:
        follow(command)
    assert tree(output / "masks") == tree(made / "masks")
    assert export(str(output), "png", str(output.parent / "png")).images == 12
    newest = open_output(str(output)).rows(["key", "status"])
    assert newest["key"].to_pylist() == sorted(row["key"] for row in statistics(made))
    # Later nights have nothing to do.
    job = Job.model_validate(redoing.stored_runs(LocalStorage(str(output)), newest_first=True).__next__().job)
    assert run(job.model_copy(update={"select": type(job.select)()})).images == 0


@pytest.mark.parametrize("object_", ["masks.tar", "stats.parquet"])
def test_a_damaged_shard_is_no_problem_once_its_images_are_done_again(output, object_):
    cut(one(output, f"runs/*/shards/00001/*/{object_}"))
    (remedy,) = verify(str(output)).remedies
    assert remedy == f"maskfleet redo {output} --shard {run_id_of(output)}/00001"
    assert "4 images to do again" in follow(remedy).output
    audit = verify(str(output))
    assert audit.problems == []
    assert audit.superseded == [f"run {run_id_of(output)}: shard 00001 is damaged; later runs did its images again"]
    assert follow(remedy).output.startswith("0 images to do again")
    assert len(list((output / "runs").iterdir())) == 2


def test_the_remedy_of_the_error_itself_is_true(made, output):
    """Finding 11 of the attacks: deleting the run's folder, as the error advised, lost every mask of the run."""
    cut(one(output, "runs/*/shards/00002/*/masks.tar"))
    with pytest.raises(Damaged) as error:
        export(str(output), "png", str(output.parent / "png"))
    follow("maskfleet redo " + str(error.value).partition("maskfleet redo ")[2])
    assert export(str(output), "png", str(output.parent / "png")).images == 12
    assert tree(output.parent / "png") == tree(made / "masks")


def test_who_followed_the_old_advice_gets_every_mask_back(made, output):
    """Finding 11: the run's folder is deleted; the night has nothing to do, and verify said "no problems"."""
    job = Job.model_validate(redoing.stored_runs(LocalStorage(str(output))).__next__().job)
    lost = run_id_of(output)
    shutil.rmtree(output / "runs" / lost)
    assert verify(str(output)).problems == [
        f"run {lost}: its folder is missing; 12 images count with it, and the masks are lost; delete stats/{lost}/"
    ]
    assert run(job).images == 0
    audit = verify(str(output))
    assert audit.remedies == [f"maskfleet redo {output} --run {lost}"]
    follow(audit.remedies[0])
    assert export(str(output), "png", str(output.parent / "png")).images == 12
    assert verify(str(output)).problems == [
        f"run {lost}: its folder is missing; no image counts with it any more; delete stats/{lost}/"
    ]
    shutil.rmtree(output / "stats" / lost)
    assert verify(str(output)).problems == []


def test_images_are_named_by_key_or_ending(output):
    done = CliRunner().invoke(app, ["redo", str(output), "image-003.PNG", "part-0/image-004.jpg", "--no-ray"])
    assert done.exit_code == 0
    assert "2 images to do again" in done.output
    (_, second) = sorted((output / "runs").iterdir())
    assert '"redo": 2' in (second / "run.json").read_text()
    with pytest.raises(JobError, match="nothing"):
        redo(str(output), keys=["nothing"])
    for name in ("x", "x/00001", f"{second.name}/", f"{second.name}/x"):
        with pytest.raises(JobError, match="there is no shard"):
            redo(str(output), shards=[name])
    assert CliRunner().invoke(app, ["redo", str(output)]).exit_code == 1


def test_an_unfinished_run_is_finished_by_its_job(output):
    job = Job.model_validate(redoing.stored_runs(LocalStorage(str(output))).__next__().job)
    inputs = output.parent / "more"
    draw_images(inputs, 4)
    asked = once_committed(output, 0)
    with pytest.raises(Stopped):
        run(job.model_copy(update={"input": str(inputs)}), stopped=asked)
    unfinished = sorted(path.name for path in (output / "runs").iterdir())[-1]
    with pytest.raises(JobError, match=f"run {unfinished} is unfinished; run its job"):
        redo(str(output), runs=[unfinished])
    shutil.rmtree(output / "catalog")
    with pytest.raises(JobError, match="has no catalog; run its job first"):
        redo(str(output), runs=[unfinished])


def test_a_run_in_progress_is_not_disturbed(output):
    with Lock(LocalStorage(str(output))), pytest.raises(Locked):
        redo(str(output), runs=[run_id_of(output)])


class Crash(StorageError):
    """Storage goes away."""


class Crashing(LocalStorage):
    """A storage failing at one of its changes, either before the change or after it."""

    changes, after = 0, False

    def _change(self, call, *arguments):
        Crashing.changes -= 1
        if Crashing.changes < 0 and not self.after:
            raise Crash("gone")
        result = call(*arguments)
        if Crashing.changes < 0:
            raise Crash("gone")
        return result

    def write(self, path, data):
        return self._change(super().write, path, data)

    def create(self, path, data):
        return self._change(super().create, path, data)

    def delete(self, path):
        return self._change(super().delete, path)


@pytest.mark.parametrize("after", [False, True])
def test_a_request_that_was_interrupted_is_made_in_full_by_the_same_command(output, after, monkeypatch):
    state = tree(output)
    for changes in range(8):
        shutil.rmtree(output)
        for path, data in state.items():
            (output / path).parent.mkdir(parents=True, exist_ok=True)
            (output / path).write_bytes(data)
        monkeypatch.setattr(redoing, "open_storage", lambda url, profile: Crashing(url))
        Crashing.changes, Crashing.after = changes, after
        try:
            redo(str(output), shards=[f"{run_id_of(output)}/00001"])
        except Crash:
            pass
        else:
            assert changes > 4
        storage = LocalStorage(str(output))
        for name in storage.names("lock"):  # its process is dead
            storage.delete(f"lock/{name}")
        rows = [row for table in catalog.rows(storage, catalog.current(storage)) for row in table.to_pylist()]
        assert sum(row["status"] == "redo" for row in rows) in (0, 4)
        assert len(rows) == 12
        monkeypatch.setattr(redoing, "open_storage", lambda url, profile: LocalStorage(url))
        found = redo(str(output), shards=[f"{run_id_of(output)}/00001"])
        assert (found.images, len(found.jobs)) == (4, 1)
    report = run(Job.of(found.jobs[0]))
    assert (report.images, report.planned) == (4, {"redo": 4})


def test_the_next_night_does_what_an_interrupted_command_left(output):
    redo(str(output), shards=[f"{run_id_of(output)}/00000"])
    job = Job.model_validate(redoing.stored_runs(LocalStorage(str(output))).__next__().job)
    assert verify(str(output)).problems == []
    report = run(job)
    assert (report.images, report.planned) == (4, {"redo": 4})
    assert run(job).images == 0
