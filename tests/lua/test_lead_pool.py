"""lead_pool, take_lock, release_lock: who may act, and who no longer may."""

import asyncio
import time

from support.seeds import at_once, read_events, read_hash, seed_leader, seed_pool
from support.wait import wait_until

from agentpool.store import Store
from agentpool.store.locks import Lead


async def lead(store: Store, master: str, *, lease_ms: int = 60_000, gap_ms: int = 60_000, hold_ms: int = 0) -> Lead:
    return await store.locks.lead("p", master, lease_ms=lease_ms, gap_ms=gap_ms, hold_ms=hold_ms)


async def test_first_master_leads_and_is_noted(store: Store) -> None:
    first = await lead(store, "m1")
    assert (first.leader, first.newly) == ("m1", True)
    fields = await read_hash(store, store.keys.pool("p"))
    assert first.token == f"{fields['fence']} m1"
    assert fields["leader"] == "m1"
    assert await store.locks.leader("p") == "m1"
    assert await read_events(store) == ["leader.elected"]


async def test_leader_keeps_its_token_and_gets_a_new_lease(store: Store) -> None:
    first = await lead(store, "m1", lease_ms=1000)
    again = await lead(store, "m1", lease_ms=60_000)
    assert (again.token, again.newly) == (first.token, False)
    assert await store.connection.redis.pttl(store.keys.leader_lock("p")) > 50_000
    assert await read_events(store) == ["leader.elected"]


async def test_another_follows(store: Store) -> None:
    await lead(store, "m1")
    turn = await lead(store, "m2", lease_ms=60_000)
    assert (turn.token, turn.leader) == ("", "m1")
    assert 0 < turn.lease_ms <= 60_000, "when to try again"
    assert turn.run == (await store.connection.redis.info("server"))["run_id"]


async def test_lapsed_lead_goes_to_the_next_with_a_higher_fence(store: Store) -> None:
    first = await lead(store, "m1", lease_ms=20)
    second = await wait_until(lambda: taken(store, "m2"))
    assert int(second.token.split()[0]) > int(first.token.split()[0])
    assert second.newly
    assert (await lead(store, "m1")).leader == "m2"


async def taken(store: Store, master: str) -> Lead | None:
    turn = await lead(store, master)
    return turn if turn.token else None


async def test_holder_names_are_compared_whole(store: Store) -> None:
    await lead(store, "m1 b")
    assert (await lead(store, "b")).token == ""
    assert (await lead(store, "m1")).token == ""
    assert (await lead(store, "m1 b")).token


async def test_fence_is_at_least_the_time_and_grows_within_one_millisecond(store: Store) -> None:
    fences = []
    for _ in range(20):
        turn = await lead(store, "m1")
        fences.append(int(turn.token.split()[0]))
        await store.locks.release("p", "leader", turn.token)
    assert fences == sorted(set(fences))
    assert abs(fences[0] - time.time() * 1000) < 60_000


async def test_fence_survives_a_server_that_lost_its_latest_writes(store: Store) -> None:
    first = await lead(store, "m1")
    await store.connection.redis.delete(store.keys.leader_lock("p"), store.keys.pool("p"))
    await asyncio.sleep(0.002)
    second = await lead(store, "m2")
    assert int(second.token.split()[0]) > int(first.token.split()[0])


async def test_a_gap_without_turns_sets_a_hold_also_when_a_follower_notices(store: Store) -> None:
    await seed_pool(store)

    async def hold() -> int:
        return int((await read_hash(store, store.keys.pool("p")))["hold_until"])

    before = await hold()
    await lead(store, "m1", gap_ms=60_000, hold_ms=9999)
    assert await hold() == before, "no gap, no hold"
    await asyncio.sleep(0.03)
    await lead(store, "m2", gap_ms=20, hold_ms=5000)
    assert await hold() >= before + 5000


async def test_one_of_fifty_masters_leads(store: Store) -> None:
    turns = await at_once(50, lambda i: lead(store, f"m{i}"))
    leaders = [turn for turn in turns if turn.token]
    assert len(leaders) == 1
    assert {turn.leader for turn in turns} == {leaders[0].leader}


# -- take_lock, release_lock ------------------------------------------------------------------------------------


async def test_lock_is_taken_extended_refused_and_given_back(store: Store) -> None:
    token = await store.locks.take("p", "placement", "m1", lease_ms=1000)
    assert token
    assert await store.locks.take("p", "placement", "m1", lease_ms=60_000) == token
    assert await store.connection.redis.pttl(store.keys.placement_lock("p")) > 50_000
    assert await store.locks.take("p", "placement", "m2", lease_ms=1000) is None
    assert await store.locks.release("p", "placement", token)
    assert not await store.locks.release("p", "placement", token), "a repeat changes nothing"
    assert await store.locks.take("p", "placement", "m2", lease_ms=1000)


async def test_a_late_release_leaves_the_next_holder_alone(store: Store) -> None:
    old = await store.locks.take("p", "placement", "m1", lease_ms=10)
    assert old
    new = await wait_until(lambda: store.locks.take("p", "placement", "m2", lease_ms=60_000))
    assert not await store.locks.release("p", "placement", old)
    assert await store.connection.redis.get(store.keys.placement_lock("p")) == new


async def test_locks_have_fences_of_their_own(store: Store) -> None:
    leader = await seed_leader(store)
    placement = await store.locks.take("p", "placement", "m2", lease_ms=1000)
    assert placement
    assert not await store.locks.release("p", "leader", placement)
    assert await store.connection.redis.get(store.keys.leader_lock("p")) == leader
    fields = await read_hash(store, store.keys.pool("p"))
    assert fields["placement_fence"] == placement.split()[0]


async def test_resigning_clears_the_leaders_name(store: Store) -> None:
    token = await seed_leader(store)
    assert await store.locks.release("p", "leader", token)
    assert (await read_hash(store, store.keys.pool("p")))["leader"] == ""
    assert await store.locks.leader("p") == ""


async def test_one_of_fifty_takes_a_lock(store: Store) -> None:
    tokens = await at_once(50, lambda i: store.locks.take("p", "placement", f"m{i}", lease_ms=60_000))
    assert len([token for token in tokens if token]) == 1


async def test_block_gives_the_lock_back_also_after_an_error(store: Store) -> None:
    try:
        async with store.locks.placement("p", "m1") as token:
            assert token
            async with store.locks.placement("p", "m2") as other:
                assert other is None
            raise ValueError
    except ValueError:
        pass
    assert await store.connection.redis.get(store.keys.placement_lock("p")) is None
