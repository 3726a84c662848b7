"""The names that are used on the servers: each its own, and in the slot that is meant."""

from binascii import crc_hqx
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from yaat.brokers.redis.keys import Keys, slot_of, tags
from yaat.brokers.redis.settings import SLOTS

names = st.binary(min_size=1, max_size=255)
KINDS = ("s:", "m:", "i:", "ph:", "pz:", "pu:", "uh:", "c0:", "n:", "c1:", "1:x:")
odd_names = names | st.builds(
    lambda kind, name: (kind + name).encode(),
    st.sampled_from(KINDS),
    st.text(":{}0123smi", max_size=9),
)


def hash_tag(key: bytes) -> bytes:
    """Return what of a key a cluster looks at.

    Spec: Redis cluster specification, "Hash tags".
    """
    begin = key.find(b"{")
    end = key.find(b"}", begin + 1)
    return key[begin + 1 : end] if begin >= 0 and end > begin + 1 else key


def crc16(data: bytes) -> int:
    """CRC16 bit by bit, as the specification of the cluster has it in its appendix."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1
        crc &= 0xFFFF
    return crc


@pytest.mark.parametrize(
    ("tag", "slot"),
    [
        (b"123456789", 0x31C3),  # the specification's own
        (b"foo", 12182),
        (b"bar", 5061),
        (b"hello", 866),
        (b"somekey", 11058),
        (b"", 0),
    ],
)
def test_slots_are_those_of_a_cluster(tag: bytes, slot: int) -> None:
    assert slot_of(tag) == slot


@given(st.binary())
def test_any_slot(tag: bytes) -> None:
    assert slot_of(tag) == crc16(tag) % SLOTS


@pytest.mark.parametrize("partitions", [1, 2, 3, 7, 64, 100, 1000, 1024, 2000])
def test_tags_are_spread_evenly(partitions: int) -> None:
    found = tags(partitions)
    assert len(set(found)) == partitions
    assert sorted(found, key=slot_of) == list(found)
    for servers in (2, 3, 5, 6):  # each with a part of the slots
        counts = Counter(slot_of(tag) * servers // SLOTS for tag in found)
        assert max(counts.values()) <= partitions / servers + 2


def test_as_many_tags_as_slots() -> None:
    assert sorted(map(slot_of, tags(SLOTS))) == list(range(SLOTS))


def test_tags_are_the_same_in_every_process_and_version() -> None:
    assert tags(1) == (b"0",)
    assert tags(4) == (b"3", b"2", b"1", b"0")
    assert crc_hqx(b",".join(tags(64)), 0) == 34790


@given(names)
@example(b"}{")
@example(b"{x}")
@example(b"{}")
@example("ä☃".encode() * 51)
@example(b"\r\n\0*>")
def test_all_keys_of_a_channel_are_in_the_slot_of_its_partition(name: bytes) -> None:
    keys = Keys("yaat", 3, 64)
    partition = keys.partition(name)
    assert 0 <= partition < 64
    used = [
        *keys.history(partition, name),
        *keys.presence(partition, name),
        keys.once(partition, name, b"{key}"),
        keys.live(partition, name),
        keys.pulse(partition, b"node"),
    ]
    assert {slot_of(hash_tag(key)) for key in used} == {keys.slot(partition)}
    assert len(set(used)) == len(used)
    assert all(key.startswith(b"yaat:{") for key in used)


@given(st.lists(st.tuples(odd_names, st.binary(max_size=9)), min_size=2, max_size=6, unique=True))
@example([(b"a:b", b"c"), (b"b", b"c:a")])
@example([(b"1:b:c", b"a"), (b"c", b"a:1:b")])
@example([(b"b", b""), (b":b", b"")])
def test_no_two_share_a_name(pairs: list[tuple[bytes, bytes]]) -> None:
    keys = Keys("p", 0, 1)
    used: Counter[bytes] = Counter(keys.once(0, name, key) for name, key in pairs)
    for name in {name for name, _ in pairs}:
        used.update((*keys.history(0, name), *keys.presence(0, name), keys.live(0, name)))
        used.update([keys.pulse(0, name)])
    assert set(used.values()) == {1}


def test_databases_have_their_own_channels() -> None:
    assert Keys("p", 0, 1).live(0, b"a") != Keys("p", 1, 1).live(0, b"a")
    assert Keys("p", 1, 1).live(0, b"1:a") != Keys("p", 11, 1).live(0, b"a")


def test_prefixes_have_their_own_names() -> None:
    assert Keys("a", 0, 1).live(0, b"b") != Keys("b", 0, 1).live(0, b"b")
    assert Keys("ä", 0, 1).history(0, b"x")[0] == "ä:{0}:s:x".encode()


def test_a_server_alone_has_one_partition() -> None:
    keys = Keys("p", 0, 1)
    assert {keys.partition(b"%d" % each) for each in range(100)} == {0}


def test_channels_are_spread_over_the_partitions() -> None:
    keys = Keys("p", 0, 64)
    counts = Counter(keys.partition(b"room:%d" % each) for each in range(6400))
    assert len(counts) == 64
    assert max(counts.values()) < 200
