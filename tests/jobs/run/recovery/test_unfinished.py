"""Runs that cannot be finished are set aside: what is intact counts, the rest is done again, every later night goes on."""

import json

import pytest
from conftest import draw_images, once_committed, statistics, tree

from maskfleet.jobs.errors import Stopped
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.outputs.explain import explain
from maskfleet.jobs.outputs.output import open_output
from maskfleet.jobs.outputs.runs import runs
from maskfleet.jobs.outputs.status import status
from maskfleet.jobs.outputs.verify import verify
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.run.progress import Progress


def job_of(images, output, weights_file, *sets):
    table = {"input": str(images), "output": str(output), "weights": weights_file}
    return Job.of(table, ["run.shard_size=3", "cluster.threads=1", "inference.precision=fp32", *sets])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, weights_file):
    """An output with a run that was stopped after two of its four shards, and its input."""
    folder = tmp_path_factory.mktemp("stopped")
    images, out = draw_images(folder / "images", 12), folder / "out"
    with pytest.raises(Stopped):
        run(job_of(images, out, weights_file), stopped=once_committed(out, 2))
    assert len(list(out.glob("runs/*/commits/*"))) < 4
    return images, tree(out)


def restored(stopped, out):
    images, files = stopped
    for name, data in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    (folder,) = out.glob("runs/*")
    return images, folder


def garbage(path):
    path.write_bytes(b"\x00garbage\xff" * 9)


def folder_instead(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "a missing part of the plan": lambda run: (run / "manifest/part-00000.parquet").unlink(),
    "an unreadable part of the plan": lambda run: garbage(run / "manifest/part-00000.parquet"),
    "a folder in place of a part": lambda run: folder_instead(run / "manifest/part-00000.parquet"),
    "an unreadable end of the plan": lambda run: garbage(run / "manifest/frozen.json"),
    "an unreadable commit": lambda run: garbage(min(run.glob("commits/*"))),
    "a commit that is JSON and no commit": lambda run: min(run.glob("commits/*")).write_text("[1, 2]"),
    "a folder in place of a commit": lambda run: folder_instead(min(run.glob("commits/*"))),
    "missing statistics": lambda run: min(run.glob("shards/*/*/stats.parquet")).unlink(),
    "damaged statistics": lambda run: garbage(min(run.glob("shards/*/*/stats.parquet"))),
    "unreadable job.json": lambda run: garbage(run / "job.json"),
    "a job.json that is JSON and no job": lambda run: (run / "job.json").write_text("{}"),
    "missing job.json": lambda run: (run / "job.json").unlink(),
    "an unreadable tuning": lambda run: garbage(run / "tuning.json"),
    "an unreadable list of deleted images": lambda run: garbage(run / "manifest/gone-00000.parquet"),
}


QUICK = ("an unreadable part of the plan", "an unreadable commit", "missing statistics")


@pytest.mark.parametrize(
    ("damage", "same_job"),
    [
        pytest.param(damage, same_job, marks=() if same_job and damage in QUICK else pytest.mark.slow)
        for damage in DAMAGES
        for same_job in (True, False)
        if same_job or damage.startswith("an unreadable")
    ],
)
def test_a_damaged_run_is_set_aside_and_the_same_command_does_the_rest(
    damage, same_job, stopped, tmp_path, weights_file
):
    out = tmp_path / "out"
    images, folder = restored(stopped, out)
    DAMAGES[damage](folder)
    job = job_of(images, out, weights_file, *([] if same_job else ["name=other"]))
    notices = []
    summary = run(job, on_progress=lambda _, progress: notices.extend(progress.notices[len(notices) :]))
    assert (summary.exit_code, summary.resumed) == (0, False)
    rows = {row["key"]: row["status"] for row in open_output(str(out)).rows(["key", "status"]).to_pylist()}
    assert list(rows.values()) == ["ok"] * 12
    assert len(tree(out / "masks")) == 12
    assert verify(str(out)).problems == []
    assert run(job).images == 0, "every later night goes on"
    aside = folder / "set_aside.json"
    if not same_job and not aside.exists():  # nothing that was needed to keep its work is damaged
        return
    record = json.loads(aside.read_text())
    assert record["reason"]
    assert (record["kept"] + summary.images) == 12
    assert len(notices) == 1
    assert "is set aside" in notices[0]
    entry = runs(str(out))[-1]
    assert (entry.state, entry.problem) == ("set_aside", record["reason"])
    assert status(str(out)).state == "complete"
    assert explain(str(out), "part-0/image-000.jpg").state.startswith("ok")


def test_what_is_intact_of_a_damaged_run_is_not_done_again(stopped, tmp_path, weights_file):
    out = tmp_path / "out"
    images, folder = restored(stopped, out)
    committed = len(list(folder.glob("commits/*")))
    garbage(folder / "manifest/part-00000.parquet")
    summary = run(job_of(images, out, weights_file))
    assert summary.images == 12 - 3 * committed
    assert len(statistics(out)) == 12
    record = json.loads((folder / "set_aside.json").read_text())
    assert (record["kept"], record["lost_shards"]) == (3 * committed, [])


def test_damage_is_shown_before_the_next_run(stopped, tmp_path, weights_file):
    out = tmp_path / "out"
    _, folder = restored(stopped, out)
    garbage(folder / "manifest/frozen.json")
    found = status(str(out))
    assert found.state == runs(str(out))[0].state == "unfinished"
    assert "frozen.json is damaged" in found.problem
    assert verify(str(out)).problems


def test_damaged_statistics_of_an_old_run_do_not_stop_a_night_with_a_lost_catalog(images, tmp_path, weights_file):
    out = tmp_path / "out"
    run(job_of(images, out, weights_file))
    for path in (*out.glob("catalog/*.json"), *out.glob("catalog/rows/*")):
        path.unlink()
    garbage(next(out.glob("stats/*/*")))
    garbage(next(out.glob("runs/*/shards/*/*/stats.parquet")))
    seen = []
    summary = run(job_of(images, out, weights_file), on_progress=lambda _, progress: seen.append(progress))
    assert (summary.images, summary.exit_code) == (24, 0)
    assert isinstance(seen[0], Progress)
    assert "are done again" in seen[0].notices[0]
