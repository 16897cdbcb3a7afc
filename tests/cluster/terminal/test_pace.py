"""The rate and the time left are blank until they mean something."""

from maskfleet.cluster.terminal.pace import Pace


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def seen(*moments):
    clock = Clock()
    pace = Pace(clock)
    for clock.now, done in moments:
        pace.saw(done)
    return pace


def test_one_shard_gives_no_rate():
    assert seen((0, 0), (20, 16), (25, 16)).rate is None
    assert seen((0, 0), (20, 16), (25, 16)).seconds_left(32) is None


def test_shards_that_end_together_give_no_rate():
    assert seen((0, 0), (20, 16), (20.1, 32)).rate is None


def test_the_start_does_not_count():
    pace = seen((0, 0), (40, 10), (45, 20), (50, 30))
    assert pace.rate == 2.0
    assert pace.seconds_left(50) == 10.0


def test_images_of_earlier_commands_do_not_count():
    assert seen((0, 500), (5, 510), (10, 520)).rate == 2.0


def test_a_stall_slows_the_rate_down():
    assert seen((0, 0), (5, 10), (10, 20), (15, 20)).rate == 1.0


def test_only_the_last_minute_counts():
    slow = [(second, second) for second in range(0, 100, 10)]
    fast = [(100 + second, 90 + 10 * second) for second in range(0, 100, 10)]
    assert 9 < seen(*slow, *fast).rate < 11
