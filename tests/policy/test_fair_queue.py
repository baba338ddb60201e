"""Start-time fair queueing: shares by weight, nothing gained by coming and going."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agentpool.policy.fair_queue import SLACK, FairQueue, blend


def serve(queue: FairQueue, costs: dict[str, float], weights: dict[str, float]) -> str:
    tenant = min(costs, key=queue.tag)
    queue.serve(tenant, costs[tenant], weights.get(tenant, 1))
    return tenant


@given(
    st.dictionaries(
        st.sampled_from("abcde"), st.tuples(st.floats(1, 50), st.sampled_from([0.5, 1, 2, 4])), min_size=2, max_size=5
    )
)
def test_slot_time_is_shared_by_weight(tenants: dict[str, tuple[float, float]]) -> None:
    queue, took = FairQueue(), Counter[str]()
    costs = {name: cost for name, (cost, _) in tenants.items()}
    weights = {name: weight for name, (_, weight) in tenants.items()}
    for name in tenants:
        queue.join(name)
    for _ in range(500):
        name = serve(queue, costs, weights)
        took[name] += costs[name]
    shares = {name: took[name] / weights[name] for name in tenants}
    assert (
        max(shares.values()) - min(shares.values()) <= 2 * max(costs[name] / weights[name] for name in tenants) + 1e-6
    )


def test_leaving_and_coming_back_gains_nothing() -> None:
    queue, costs = FairQueue(), {"stays": 10.0, "leaves": 10.0}
    for name in costs:
        queue.join(name)
    order = []
    for _ in range(10):
        order.append(serve(queue, costs, {}))
        queue.leave("leaves")
        queue.join("leaves")
    assert Counter(order) == {"stays": 5, "leaves": 5}


def test_who_was_away_for_long_begins_with_the_others() -> None:
    queue, costs = FairQueue(), {"old": 10.0}
    queue.join("old")
    for _ in range(100):
        serve(queue, costs, {})
    queue.join("new")
    costs["new"] = 10.0
    assert Counter(serve(queue, costs, {}) for _ in range(10)) == {"old": 5, "new": 5}


def test_what_took_longer_is_charged_and_what_is_past_is_forgotten() -> None:
    queue = FairQueue()
    queue.join("a")
    queue.join("b")
    queue.serve("a", 10, 1)
    queue.correct("a", 90, 2)
    assert queue.tag("a") == 55
    for number in range(3 * SLACK):
        queue.join(f"t{number}")
        queue.serve(f"t{number}", 1, 1)
        queue.leave(f"t{number}")
        queue.serve("b", 1, 1)
    assert len(queue._finish) <= 2 * 2 + SLACK + 1
    assert blend(None, 5) == 5
    assert blend(10, 20) == 11
