"""Faults of drivers on one machine: F5, F7, F19, and a clock that is set back."""

import os
import random
import signal
import time
from pathlib import Path

from faults.children import Child
from faults.figures.figure import Figure, figure
from faults.nights import Kind, Nights, series


def driver_kills(kills: int = 20, seed: int = 5) -> Figure:
    """F5: the driver is killed at random moments; the same command goes on. No finished shard is done again."""
    draw = random.Random(seed)
    with (
        figure("F5", "driver killed (SIGKILL), same command again") as result,
        series(Kind(images=6 * kills)) as nights,
    ):
        nights.images_of(0)
        _, expected = nights.again("reference", fresh=True)
        resumed: list[float] = []
        commits: dict[str, bytes] = {}
        for _ in range(kills):
            child, began = nights.start("out", pause=0.05), time.monotonic()
            first = _next_commit(nights, commits, child)
            if first is None:
                result.notes.append("the run ended before all kills")
                break
            resumed.append(first - began)
            time.sleep(draw.uniform(0, 0.3))
            child.send(signal.SIGKILL)
            child.ended()
            result.times += 1
            now = _commits(nights)
            result.problems += (f"{name} changed" for name, data in commits.items() if now.get(name) != data)
            commits = now
        ended, verdict = nights.again("out")
        result.judge(verdict.faults(expected) if verdict else [f"the next command ended with {ended.error}"])
        attempts = len(list((nights.root / "out").glob("runs/*/shards/*/*")))
        result.repeated = f"{attempts - len(_commits(nights))} attempts unfinished, 0 finished shards"
        result.recover = max(resumed, default=None)
        result.notes.append(f"first new commit after {max(resumed):.1f} s at most, a shard itself takes 0.1 s")
    return result


def _commits(nights: Nights) -> dict[str, bytes]:
    paths = (nights.root / "out").glob("runs/*/commits/*.json")
    return {str(path): path.read_bytes() for path in paths if not path.name.startswith(".")}


def _next_commit(nights: Nights, known: dict[str, bytes], child: Child) -> float | None:
    """Wait until there is a new commit, and return the time. None if the run ended before."""
    while len(_commits(nights)) <= len(known):
        if Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            child.ended()
            return None
        time.sleep(0.01)
    return time.monotonic()


def two_names(rounds: int = 10) -> Figure:
    """F7: two jobs that differ in name start at once and wait for each other: each image is done once."""
    with figure("F7", "two drivers with two names, on_overlap = wait") as result, series(Kind(images=8)) as nights:
        nights.images_of(0)
        _, expected = nights.again("reference", fresh=True)
        for number in range(rounds):
            output = f"out-{number}"
            both = [
                nights.start(output, f"name={name}", "run.on_overlap=wait", pause=0.01 * number)
                for name in ("one", "two")
            ]
            for child in both:
                ended = child.ended()
                if not ended.ok:
                    result.problems.append(f"a driver ended with {ended.error}")
            result.times += 1
            result.judge(nights.verdict(output).faults(expected))
    return result


def changed_inputs(changed: int = 5, deleted: int = 5) -> Figure:
    """F19: images change, or vanish, between the listing and the reading; the next night does what is there then."""
    with figure("F19", "images changed or deleted after the listing") as result, series(Kind(images=20)) as nights:
        nights.images_of(0)
        names = [f"part-{number % 2}/{number:02}.png" for number in range(changed + deleted)]
        data = {name: (nights.root / "in" / name).read_bytes() for name in names}

        def spoil():
            for number, name in enumerate(names):
                path = nights.root / "in" / name
                if number < changed:
                    path.write_bytes(data[names[(number + 1) % changed]])
                    os.utime(path, (1_600_000_000, 1_600_000_000))
                else:
                    path.unlink()

        first = nights.run("out", planned=spoil).value()
        result.times = changed + deleted
        result.notes.append(f"first night: {first['errors']}")
        errors = {name: count for name, count in first["errors"].items() if name != "corrupt"}
        if errors != {"changed": changed, "missing": deleted}:
            result.problems.append(f"the rows say {errors}")
        ended, verdict = nights.again("out")
        _, expected = nights.again("reference", fresh=True)
        result.judge(
            verdict.faults(expected, strays=False) if verdict else [f"the next night ended with {ended.error}"]
        )
    return result


def wrong_clocks() -> Figure:
    """The clock is set back by a day between two nights, and forward again: nothing is done twice."""
    with figure("clock", "clock set back by a day, and forward again") as result, series(Kind(nights=3)) as nights:
        for number, clock in enumerate((0.0, -86400.0, 3600.0)):
            nights.images_of(number)
            nights.copy(f"reference-{number - 1}", f"reference-{number}")
            _, expected = nights.again(f"reference-{number}", fresh=True)
            nights.run("out", clock=clock).value()
            ended, verdict = nights.again("out", clock=clock)
            result.times += bool(clock)
            result.judge(verdict.faults(expected) if verdict else [f"the night after ended with {ended.error}"])
    return result
