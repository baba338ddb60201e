"""The agents of the demo refuse what they would otherwise pass over."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from agentpool import InvalidInput
from agentpool.client.kinds import kind_of

DEMO = Path(__file__).resolve().parents[2] / "scripts" / "demo" / "demo_agents.py"


@pytest.fixture
def demo() -> ModuleType:
    spec = spec_from_file_location("demo_agents_of_test", DEMO)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "field"), [("Reviewer", "txt"), ("Tester", "sleeep")])
def test_a_wrong_field_name_is_refused_with_its_path(demo: ModuleType, name: str, field: str) -> None:
    kind = kind_of(getattr(demo, name))
    assert bytes(kind.encode({})) == b"{}"
    with pytest.raises(InvalidInput, match=f"unknown field `{field}` at [$]") as caught:
        kind.encode({field: "x"})
    assert caught.value.path == "$"
