"""The public names of nearfar.eval."""

from __future__ import annotations

import pytest

import nearfar.eval


@pytest.mark.parametrize("name", nearfar.eval.__all__)
def test_every_public_name_loads(name: str) -> None:
    value = getattr(nearfar.eval, name)
    assert name == "DEFAULT_METRICS" or value.__name__ == name


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = nearfar.eval.nothing
