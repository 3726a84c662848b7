"""The targets of the fuzzer, run without it on what it begins with."""

import random
from collections.abc import Iterator

import pytest

from fuzz.__main__ import NAMES
from fuzz.targets import TARGETS, seeds
from yaat.server.codec import Decoder
from yaat.server.deflate import Inflater


def altered(seed: bytes) -> Iterator[bytes]:
    """Yield inputs near to `seed`, the same ones in every run."""
    chosen = random.Random(len(seed))
    yield seed
    for _ in range(20):
        change = bytearray(seed)
        for _ in range(chosen.randrange(4)):
            change[chosen.randrange(len(change))] = chosen.randrange(256)
        yield bytes(change[: chosen.randrange(len(change))] if chosen.random() < 0.3 else change)


def test_every_target_is_run() -> None:
    assert set(NAMES) == set(TARGETS)


@pytest.mark.parametrize("name", NAMES)
def test_what_has_to_hold_does(name: str) -> None:
    TARGETS[name](b"")
    for seed in seeds(name):
        for data in altered(seed):
            TARGETS[name](data)


def all_seeds(name: str) -> None:
    for seed in seeds(name):
        TARGETS[name](seed)


def test_another_error_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(Decoder, "_frame", broken)
    monkeypatch.setattr(Inflater, "feed", broken)
    monkeypatch.setattr("fuzz.targets.negotiated", broken)
    for name in NAMES:
        with pytest.raises(ValueError, match="broken"):
            all_seeds(name)


def test_that_cutting_matters_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Decoder._keep
    monkeypatch.setattr(Decoder, "_keep", lambda self, data, at: keep(self, data + b"\0", at))
    with pytest.raises(AssertionError):
        all_seeds("decoding")
