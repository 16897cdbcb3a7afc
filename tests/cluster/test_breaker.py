from hypothesis import given
from hypothesis import strategies as st

from maskfleet.cluster.breaker import JobBreaker, NetworkBreaker, NodeBreaker


def test_a_node_that_costs_three_different_shards_is_avoided_for_ten_minutes():
    breaker = NodeBreaker()
    for now, shard in enumerate(["1", "1", "1", "2"]):
        breaker.failed("a", shard, now)
    assert breaker.avoided({"a", "b"}, 10) == set()
    breaker.failed("a", "3", 100)
    assert breaker.avoided({"a", "b"}, 100) == {"a"}
    assert breaker.avoided({"a", "b"}, 599) == {"a"}
    assert breaker.avoided({"a", "b"}, 605) == set()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), max_size=40), st.sets(st.sampled_from("abc")))
def test_there_is_always_a_node_left(failures, alive):
    breaker = NodeBreaker()
    for node, shard in failures:
        breaker.failed(node, str(shard), 0.0)
    assert not alive or breaker.avoided(alive, 1.0) < alive


def test_a_job_is_given_up_when_most_shards_fail_and_not_before():
    breaker = JobBreaker()
    for group in range(7):
        breaker.failed(group)
        breaker.failed(group)
    assert not breaker.open
    breaker.failed(7)
    assert breaker.open
    for group in range(4):
        breaker.done(group)
    assert not breaker.open, "shards that were done in the end do not count"


def test_workers_lost_to_the_network_end_a_run_only_if_no_shard_is_done_in_between():
    breaker = NetworkBreaker(workers=3)
    for _ in range(10):
        breaker.failed()
        breaker.failed()
        assert not breaker.open
        breaker.done()
    for _ in range(3):
        breaker.failed()
    assert breaker.open
