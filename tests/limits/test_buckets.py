"""The decisions of one process, by a clock of the test."""

import pytest

from service.limits import buckets as module
from service.limits.buckets import Buckets, RateLimit

LIMIT = RateLimit(name="organization", requests=100, window=10)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def buckets(clock: Clock) -> Buckets:
    return Buckets(LIMIT, clock)


def admitted(buckets: Buckets, key: str) -> bool:
    if buckets.quota(key).retry_after > 0:
        return False
    buckets.take(key, 1)
    return True


def test_a_tenth_may_come_at_once_then_an_even_rate(buckets: Buckets, clock: Clock) -> None:
    assert [admitted(buckets, "a") for _ in range(12)] == [True] * 10 + [False] * 2
    assert buckets.quota("a").retry_after == pytest.approx(0.1)
    clock.now += 0.05
    assert not admitted(buckets, "a")
    clock.now += 0.051
    assert [admitted(buckets, "a") for _ in range(2)] == [True, False]
    clock.now += 3600
    assert sum(admitted(buckets, "a") for _ in range(100)) == 10


def test_keys_have_quotas_of_their_own(buckets: Buckets) -> None:
    while admitted(buckets, "a"):
        pass
    assert admitted(buckets, "b")
    assert buckets.quota("a").remaining == 0
    assert buckets.quota("b").remaining == 9


@pytest.mark.parametrize(("requests", "burst"), [(1, 1), (5, 5), (10, 10), (100, 10), (1000, 100)])
def test_a_small_limit_may_be_used_at_once(requests: int, burst: int, clock: Clock) -> None:
    buckets = Buckets(RateLimit(name="x", requests=requests, window=10), clock)
    assert sum(admitted(buckets, "a") for _ in range(2 * burst)) == burst


def test_a_large_call_leaves_a_debt(buckets: Buckets, clock: Clock) -> None:
    buckets.take("a", 110)
    quota = buckets.quota("a")
    assert quota.remaining == 0
    assert quota.retry_after == pytest.approx(10.1)
    assert quota.reset == pytest.approx(11)
    clock.now += 10.2
    assert admitted(buckets, "a")


def test_little_use_is_not_reported_and_forgotten(buckets: Buckets, clock: Clock) -> None:
    limit = RateLimit(name="organization", requests=1000, window=10)
    buckets = Buckets(limit, clock)
    for _ in range(19):
        assert admitted(buckets, "a")
    assert buckets.report() == {}
    assert len(buckets) == 1
    clock.now += 1
    assert buckets.report() == {}
    assert len(buckets) == 0


def test_what_others_used_counts(buckets: Buckets, clock: Clock) -> None:
    for _ in range(6):
        admitted(buckets, "a")
    [(name, used)] = buckets.report().items()
    assert used == 6
    admitted(buckets, "a")  # while the report is under way
    buckets.apply({name: 2.0})
    assert buckets.quota("a").remaining == 1
    assert buckets.report() == {name: 1}


def test_a_report_that_fails_is_repeated(buckets: Buckets) -> None:
    for _ in range(6):
        admitted(buckets, "a")
    used = buckets.report()
    admitted(buckets, "a")
    buckets.retry(used)
    assert list(buckets.report().values()) == [7]
    assert buckets.quota("a").remaining == 3


def test_memory_is_bounded(buckets: Buckets, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 100)
    for number in range(1000):
        admitted(buckets, f"key {number}")
    assert len(buckets) == 100
    admitted(buckets, "key 950")
    clock.now += 0.15  # full again, except for the one that was used twice
    buckets.report()
    assert len(buckets) == 1


def test_the_name_of_a_bucket_does_not_tell_its_key() -> None:
    other = RateLimit(name="credential", requests=100, window=10)
    assert LIMIT.bucket_of("Salon") != other.bucket_of("Salon")
    assert b"Salon" not in LIMIT.bucket_of("Salon")
