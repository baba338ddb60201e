"""Settings: the seed's presets, and every fault found at once."""

import pytest

from agentpool.errors import ConfigError
from agentpool.pool import PoolConfig

PRESETS = {
    "development": (1, 3, 30, 100, 5),
    "production": (4, 10, 300, 1000, 30),
    "high_load": (8, 10, 120, 5000, 10),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_values_of_the_seed(name: str) -> None:
    made: PoolConfig = getattr(PoolConfig, name)()
    values = (made.min_size, made.max_size, made.idle_timeout, made.recycle_threshold, made.maintenance_interval)
    assert values == PRESETS[name]


def test_quotas_of_the_presets() -> None:
    def quota(it: PoolConfig) -> tuple[object, ...]:
        return it.max_memory_mb, it.max_cpu_percent, it.max_instance_age, it.max_recycles, it.requests_per_quota

    assert quota(PoolConfig.production()) == (1024, 90, 7200, 100, 5000)
    assert quota(PoolConfig.high_load()) == (2048, 95, 3600, 200, 10_000)


def test_every_value_can_be_overridden_and_ten_is_no_limit() -> None:
    assert PoolConfig.production(max_size=500, min_size=0, run_timeout=3).max_size == 500


def test_all_problems_are_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        PoolConfig(max_size=0, idle_timeout=-1, warm_wait="soon", min_size=True)  # type: ignore[arg-type]
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"min_size": 5, "max_size": 4},
        {"recycle_jitter": 0.5},
        {"recycle_jitter": 0.05},
        {"breaker_backoff": 9, "breaker_backoff_max": 1},
        {"start_timeout": 0},
        {"max_size": None},
        {"stop_timeout": float("nan")},
        {"max_waiting": 1.5},
    ],
)
def test_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        PoolConfig(**changes)  # type: ignore[arg-type]


def test_unknown_names_of_a_preset_come_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match='mean "max_size"'):
        PoolConfig.production(max_sise=3)
