"""The bounds that uvicorn has no option for, and which of them cannot be meant."""

import dataclasses
import math
from typing import Any

import pytest

from yaat.exceptions import ArgumentError
from yaat.server.settings import ServerSettings

ABOVE_ZERO = ["write_buffer", "read_buffer", "close_timeout"]
FROM_ZERO = ["max_tiny_fragments", "compress_from"]


def test_the_defaults() -> None:
    assert dataclasses.asdict(ServerSettings()) == {
        "write_buffer": 65_536,
        "read_buffer": 65_536,
        "max_tiny_fragments": 1_024,
        "close_timeout": 10.0,
        "compress_from": 512,
    }


def test_every_setting_has_its_bound() -> None:
    names = {field.name for field in dataclasses.fields(ServerSettings)}
    assert names == {*ABOVE_ZERO, *FROM_ZERO}


@pytest.mark.parametrize("name", ABOVE_ZERO)
@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, -math.inf])
def test_what_has_to_be_above_zero(name: str, value: float) -> None:
    with pytest.raises(ArgumentError, match=f"{name} must be above 0, not {value!r}"):
        ServerSettings(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=name):
        ServerSettings().but(**{name: value})


@pytest.mark.parametrize("name", FROM_ZERO)
@pytest.mark.parametrize("value", [-1, -1000])
def test_what_must_not_be_below_zero(name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"{name} must not be below 0, but is {value}"):
        ServerSettings(**{name: value})


@pytest.mark.parametrize(
    "values",
    [
        {"write_buffer": 1, "read_buffer": 1, "close_timeout": 0.001},
        {"max_tiny_fragments": 0, "compress_from": 0},
        {"write_buffer": 1 << 30, "close_timeout": 3600, "compress_from": 1 << 30},
    ],
)
def test_the_least_and_the_most(values: dict[str, Any]) -> None:
    settings = ServerSettings(**values)
    assert {name: getattr(settings, name) for name in values} == values


def test_settings_like_others() -> None:
    class Own(ServerSettings):
        pass

    settings = Own(close_timeout=5.0)
    changed = settings.but(write_buffer=1)
    assert type(changed) is Own
    assert (changed.close_timeout, changed.write_buffer) == (5.0, 1)
    assert settings.write_buffer == 65_536
    assert settings.but() == settings
    with pytest.raises(TypeError):
        settings.but(unknown=1)


def test_settings_are_frozen_and_named() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ServerSettings().write_buffer = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        ServerSettings(1)  # type: ignore[call-arg]
