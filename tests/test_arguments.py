"""Arguments of another type than they should have are refused at once, before anything is started."""

from __future__ import annotations

from typing import Any

import pytest

import farwire


@pytest.mark.parametrize("spec", [3, b"popen", ["popen"]])
def test_what_is_no_spec(group: farwire.Group, spec: Any) -> None:
    with pytest.raises(TypeError, match="a spec is a text such as 'popen'"):
        group.makegateway(spec)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"timeout": "3"}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"output": "worker.log"}, TypeError),
        ({"output": 3}, TypeError),
    ],
)
def test_options(group: farwire.Group, arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        group.makegateway("popen", **arguments)
    with pytest.raises(error, match=next(iter(arguments))):
        group.makegateways(["popen"], **arguments)
    assert not list(group)


def test_a_group_of_one_text() -> None:
    with farwire.Group("2*popen") as group:
        assert len(group) == 2
