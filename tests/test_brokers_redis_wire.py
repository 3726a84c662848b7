"""One connection: its commands and their answers, whatever the server does."""

import asyncio
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from redis_servers import RedisServer
from scripted import ScriptedLoop, idle
from scripted_redis import (
    SILENCE,
    Answer,
    Peer,
    array,
    bulk,
    error,
    in_network,
    info,
    now,
    number,
    push,
    server_at,
)
from yaat.brokers.redis.settings import Address, Settings
from yaat.brokers.redis.wire import (
    BACKLOG,
    AnswerError,
    Identity,
    OnPush,
    Wire,
    as_broker_error,
    connect,
    dial,
    identity_of,
    log_in,
)
from yaat.exceptions import BrokerError, BrokerRefused, BrokerTimeout, BrokerUnavailable

H = Address("h", 6379)
RUN = "b" * 40
IN_SCRIPT = "ERR Error running script (call to f_5e): @user_script:1: @user_script: 1:"
"""How Redis 6 begins to say what was wrong in a script."""


def echo(_: Peer, words: tuple[bytes, ...]) -> bytes:
    return bulk(words[1])


async def wire_to(on_push: OnPush | None = None, **options: Any) -> tuple[Wire, Peer]:
    """Return a connection to the scripted server, which echoes, and its other end."""
    server = server_at()
    server.answers.setdefault("ECHO", echo)
    wire = await connect(H, Settings(**options), None, on_push)
    peer = server.peers[-1]
    peer.heard.clear()
    return wire, peer


async def outcome(call: Any) -> Any:
    """Return the answer, or the error."""
    return (await asyncio.gather(call, return_exceptions=True))[0]


# Getting in


def test_who_comes_says_who_it_is() -> None:
    async def play() -> None:
        server = server_at(INFO=info(RUN, "8.2.3", "cluster"))
        wire = await connect(H, Settings())
        assert [b" ".join(words) for words in server.heard] == [
            b"HELLO 3 SETNAME yaat",
            b"PING",
            b"INFO server",
            b"ROLE",
        ]
        assert wire.identity == Identity(RUN, (8, 2), is_cluster=True)
        assert not wire.ended.done()
        wire.end()
        assert wire.ended.done()
        await idle()
        assert not server.peers

    in_network(play)


@pytest.mark.parametrize(
    ("options", "login"),
    [
        ({"password": "p"}, b"HELLO 3 AUTH default p SETNAME yaat"),
        ({"username": "u", "password": "p"}, b"HELLO 3 AUTH u p SETNAME yaat"),
        ({"username": "u"}, b"HELLO 3 AUTH u  SETNAME yaat"),
    ],
)
def test_who_has_a_password_says_it(options: dict[str, str], login: bytes) -> None:
    async def play() -> None:
        server = server_at()
        (await connect(H, Settings(**options))).end()  # type: ignore[arg-type]
        assert b" ".join(server.heard[0]) == login

    in_network(play)


def test_a_database_is_selected() -> None:
    async def play() -> None:
        server = server_at()
        (await connect(H, Settings(db=7))).end()
        assert (b"SELECT", b"7") in server.heard

    in_network(play)


def test_a_unix_socket() -> None:
    async def play() -> None:
        server_at("/run/s", 0)
        (await connect(Address("/run/s", 0), Settings())).end()

    in_network(play)


@pytest.mark.parametrize(
    ("told", "identity"),
    [
        ("redis_version:7.2.4\r\nrun_id:ab\r\nredis_mode:standalone", ("ab", (7, 2), False)),
        ("run_id:ab\r\nredis_mode:cluster\r\nredis_version:6.2.14", ("ab", (6, 2), True)),
        ("redis_version:8.0-rc1\r\nrun_id:ab", ("ab", (8, 0), False)),
        ("redis_version:255.255.255\r\nrun_id:ab", ("ab", (255, 255), False)),
        ("", ("", (6, 2), False)),
        ("# Server\r\nnonsense\r\n:\r\nexecutable:/a:b\r\nrun_id:ab", ("ab", (6, 2), False)),
    ],
)
def test_what_a_server_says_of_itself(told: str, identity: tuple[Any, ...]) -> None:
    assert identity_of(told) == identity


@pytest.mark.parametrize(
    ("answers", "greeting", "kind", "words"),
    [
        ({"HELLO": error("NOAUTH HELLO must be called")}, b"", BrokerRefused, "NOAUTH"),
        ({"HELLO": error("WRONGPASS invalid")}, b"", BrokerRefused, "WRONGPASS"),
        ({"HELLO": error("NOPROTO unsupported")}, b"", BrokerRefused, "NOPROTO"),
        ({"HELLO": error("ERR unknown command 'HELLO'")}, b"", BrokerRefused, "6.2"),
        ({"PING": error("LOADING loading")}, b"", BrokerUnavailable, "LOADING"),
        ({"PING": error("MASTERDOWN Link")}, b"", BrokerUnavailable, "MASTERDOWN"),
        ({"PING": error("NOPERM no")}, b"", BrokerRefused, "NOPERM"),
        ({"SELECT": error("ERR DB index is out of range")}, b"", BrokerRefused, "DB index"),
        ({"INFO": error("NOPERM no")}, b"", BrokerRefused, "epochs=trust"),
        ({"INFO": bulk("redis_version:7.0.0")}, b"", BrokerRefused, "epochs=trust"),
        ({"ROLE": array(bulk("slave"), bulk("h"))}, b"", BrokerUnavailable, "replica|slave"),
        ({"ROLE": array(bulk("sentinel"), array())}, b"", BrokerUnavailable, "sentinel"),
        ({}, error("DENIED Redis is running in protected mode"), BrokerError, "protected mode"),
        ({}, error("ERR max number of clients reached"), BrokerError, "max number of clients"),
        ({}, b"HTTP/1.1 400 Bad Request\r\n\r\n", BrokerUnavailable, "protocol"),
        ({"HELLO": b"SSH-2.0-OpenSSH\r\n"}, b"", BrokerUnavailable, "protocol"),
        ({"HELLO": SILENCE}, b"", BrokerUnavailable, "h:6379"),
        ({"INFO": SILENCE}, b"", BrokerUnavailable, "h:6379"),
    ],
)
def test_a_server_that_does_not_let_us_in(
    answers: dict[str, Answer], greeting: bytes, kind: type[Exception], words: str
) -> None:
    async def play() -> None:
        server = server_at(**answers)
        server.greeting = greeting
        with pytest.raises(kind, match=words) as caught:
            await connect(H, Settings(db=1))
        assert "h:6379" in str(caught.value)
        assert type(caught.value) in (BrokerRefused, BrokerUnavailable, BrokerTimeout)
        await idle()
        assert not server.peers

    in_network(play)


def test_who_trusts_need_not_be_told_who_it_is() -> None:
    async def play() -> None:
        server = server_at(INFO=error("NOPERM no"), ROLE=error("NOPERM no"))
        wire = await connect(H, Settings(epochs="trust"))
        assert wire.identity == Identity("", (6, 2), is_cluster=False)
        wire.end()
        await idle()
        assert not server.peers

    in_network(play)


def test_info_as_a_text() -> None:
    async def play() -> None:
        told = b"txt:run_id:ab\r\nredis_version:7.2.4\r\n"
        server_at(INFO=b"=%d\r\n%s\r\n" % (len(told), told))
        wire = await connect(H, Settings())
        assert wire.identity.run_id == "ab"
        wire.end()

    in_network(play)


@pytest.mark.parametrize("takes", [False, None])
def test_a_server_that_is_not_there(takes: Literal[False] | None) -> None:
    async def play() -> None:
        server_at().takes = takes
        begin = now()
        with pytest.raises(BrokerUnavailable, match="h:6379 cannot be reached") as caught:
            await connect(H, Settings(connect_timeout=3))
        assert not caught.value.maybe_published
        assert now() - begin == (3 if takes is None else 0)

    in_network(play)


def test_nobody_there() -> None:
    async def play() -> None:
        with pytest.raises(BrokerUnavailable, match="other:1 cannot be reached"):
            await dial(Address("other", 1), Settings())

    in_network(play)


def test_a_server_that_hangs_up_at_once() -> None:
    async def play() -> None:
        def hang_up(peer: Peer, _: tuple[bytes, ...]) -> bytes:
            peer.hang_up(ConnectionResetError(104, "reset"))
            return SILENCE

        server_at(HELLO=hang_up)
        with pytest.raises(BrokerUnavailable, match=r"h:6379 was lost: .*reset"):
            await connect(H, Settings())

    in_network(play)


@pytest.mark.parametrize(
    "answer",
    [
        "ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'u' 's3cret' 'SETNAME'",
        "WRONGPASS 's3cret' is wrong",
        "ERR s3cret",
    ],
)
def test_a_password_that_comes_back_is_not_told(answer: str) -> None:
    async def play() -> None:
        server_at(HELLO=error(answer))
        with pytest.raises(BrokerRefused) as caught:
            await connect(H, Settings(username="u", password="s3cret"))
        found: BaseException | None = caught.value
        while found is not None:
            assert "s3cret" not in str(found)
            found = found.__cause__ or found.__context__
        assert "s3cret" not in "".join(traceback.format_exception_only(caught.value))

    in_network(play)


def test_a_sentinel_gets_its_own_login() -> None:
    async def play() -> None:
        server = server_at()
        wire = await dial(H, Settings())
        await log_in(wire, None, None)
        await log_in(wire, "u", "p")
        wire.end()
        assert server.heard[1] == (b"HELLO", b"3", b"AUTH", b"u", b"p", b"SETNAME", b"yaat")

    in_network(play)


@pytest.mark.parametrize("turns", range(1, 12))
def test_who_is_cancelled_while_it_gets_in_leaves_nothing(turns: int) -> None:
    async def play() -> None:
        server = server_at()
        task = asyncio.create_task(connect(H, Settings()))
        await idle(turns)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await idle()
        assert not server.peers

    in_network(play)


# Asking


def test_answers_come_to_those_who_asked() -> None:
    async def play() -> None:
        wire, peer = await wire_to()
        peer.server.answers["FAIL"] = error("ERR no")
        asked = [wire.call("ECHO", b"%d" % each) for each in range(99)]
        asked.insert(50, wire.call("FAIL"))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        refused = answers.pop(50)
        assert isinstance(refused, AnswerError)
        assert refused.code == "ERR"
        assert answers == [b"%d" % each for each in range(99)]
        wire.end()

    in_network(play)


def test_commands_of_one_turn_leave_together() -> None:
    async def play() -> None:
        wire, peer = await wire_to()
        writes: list[bytes] = []
        write = peer.write

        def note(data: bytes) -> None:
            writes.append(data)
            write(data)

        peer.write = note  # type: ignore[method-assign]
        await asyncio.gather(*(wire.call("ECHO", b"x", each, "ä") for each in range(64)))
        assert len(writes) == 1
        wire.end()

    in_network(play)


def test_an_answer_in_any_pieces() -> None:
    async def play() -> None:
        wire, peer = await wire_to()
        whole = push(bulk("other")) + array(bulk("a"), number(2), b"_\r\n") + error("ERR b")
        for cut in range(len(whole) + 1):
            peer.server.answers["HALVES"] = whole[:cut]
            peer.server.answers["REST"] = whole[cut:]
            answers = await asyncio.gather(
                wire.call("HALVES"), wire.call("REST"), return_exceptions=True
            )
            assert answers[0] == [b"a", 2, None]
            assert isinstance(answers[1], AnswerError)
        wire.end()

    in_network(play)


@pytest.mark.parametrize("argument", [None, "\ud800", True, bytearray(b"x")], ids=repr)
def test_what_cannot_be_said_harms_nobody_else(argument: Any) -> None:
    async def play() -> None:
        wire, _ = await wire_to()
        with pytest.raises((TypeError, ValueError)):
            await wire.call("ECHO", argument)
        assert await wire.call("ECHO", b"mine") == b"mine"
        wire.end()

    in_network(play)


def test_who_gives_up_harms_nobody_else() -> None:
    async def play() -> None:
        wire, _ = await wire_to()
        given_up = [asyncio.ensure_future(wire.call("ECHO", b"a")) for _ in range(3)]
        waiting = asyncio.ensure_future(wire.call("ECHO", b"b"))
        await idle(1)
        given_up[0].cancel()
        given_up[2].cancel()
        assert await waiting == b"b"
        assert await given_up[1] == b"a"
        wire.end()

    in_network(play)


def test_what_is_not_answered_in_time_ends_it() -> None:
    async def play() -> None:
        wire, peer = await wire_to(timeout=2)
        begin = now()
        peer.server.answers["SLEEP"] = SILENCE
        late = asyncio.ensure_future(wire.call("SLEEP"))
        given_up = asyncio.ensure_future(wire.call("SLEEP"))
        await asyncio.sleep(1)
        given_up.cancel()
        later = asyncio.ensure_future(wire.call("SLEEP"))
        for call in (late, later):
            failure = await outcome(call)
            assert type(failure) is BrokerTimeout
            assert failure.maybe_published
            assert "h:6379" in str(failure)
            assert now() - begin == 2
        failure = await outcome(wire.call("ECHO", b"x"))
        assert type(failure) is BrokerUnavailable
        assert not failure.maybe_published
        await idle()
        assert not peer.server.peers

    in_network(play)


def test_one_timer_watches_over_all() -> None:
    async def play() -> None:
        wire, peer = await wire_to(timeout=2)
        for _ in range(5):
            await wire.call("ECHO", b"x")
            await asyncio.sleep(1.5)
        await asyncio.sleep(10)
        assert not wire.ended.done()
        peer.server.answers["SLEEP"] = SILENCE
        begin = now()
        assert isinstance(await outcome(wire.call("SLEEP")), BrokerTimeout)
        assert now() - begin == 2

    in_network(play)


def test_each_has_its_own_time() -> None:
    async def play() -> None:
        wire, peer = await wire_to(timeout=2)
        peer.server.answers["SLEEP"] = SILENCE
        await wire.call("ECHO", b"x")
        await asyncio.sleep(1.5)
        begin = now()
        assert isinstance(await outcome(wire.call("SLEEP")), BrokerTimeout)
        assert now() - begin == 2

    in_network(play)


def test_what_has_come_is_not_overdue() -> None:
    async def play() -> None:
        wire, peer = await wire_to(timeout=2)
        peer.server.answers["SLEEP"] = SILENCE
        asked = [asyncio.ensure_future(wire.call("SLEEP")) for _ in range(100)]
        await asyncio.sleep(1)
        clock = cast(ScriptedLoop, asyncio.get_running_loop()).clock
        clock.now += 5  # the loop was busy with something else meanwhile
        wire.data_received(number(1) * 100)
        wire._look()
        assert await asyncio.gather(*asked) == [1] * 100
        assert not wire.ended.done()
        wire.end()

    in_network(play)


def test_one_that_was_never_made() -> None:
    async def play() -> None:
        wire = Wire(H, Settings(), None)
        asked = wire.send(("PING",))
        await idle()
        wire.end("enough")
        assert (await outcome(asked)).maybe_published

    in_network(play)


@pytest.mark.parametrize("why", [None, ConnectionResetError(104, "reset by peer")])
def test_what_was_asked_when_it_was_lost_may_be_done(why: Exception | None) -> None:
    async def play() -> None:
        wire, peer = await wire_to()
        peer.server.answers["SLEEP"] = SILENCE
        asked = [asyncio.ensure_future(wire.call("SLEEP")) for _ in range(3)]
        await idle()
        asked[1].cancel()
        peer.hang_up(why)
        for call in (asked[0], asked[2]):
            failure = await outcome(call)
            assert type(failure) is BrokerUnavailable
            assert failure.maybe_published
            assert str(why or "closed") in str(failure)
        assert wire.ended.result() is not None
        failure = await outcome(wire.call("SLEEP"))
        assert not failure.maybe_published

    in_network(play)


def test_what_is_sent_when_it_is_over_fails() -> None:
    async def play() -> None:
        wire, _ = await wire_to()
        wire.end("enough")
        wire.end("again")
        async with asyncio.timeout(100):
            failure = await outcome(wire.send(("ECHO", b"x")))
        assert type(failure) is BrokerUnavailable
        assert "enough" in str(failure)

    in_network(play)


def test_what_is_sent_in_the_turn_of_its_end_may_be_done() -> None:
    async def play() -> None:
        wire, peer = await wire_to()
        asked = wire.send(("ECHO", b"x"))
        wire.end("enough")
        assert (await outcome(asked)).maybe_published
        await idle()
        assert not peer.heard

    in_network(play)


@pytest.mark.parametrize(
    "unasked", [number(1), error("ERR what"), b"%0\r\n", b"nonsense\r\n", b"*-7\r\n", b">0\r\n"]
)
def test_what_nobody_asked_for_ends_it(unasked: bytes) -> None:
    async def play() -> None:
        wire, peer = await wire_to()
        peer.say(unasked)
        failure = await wire.ended
        assert "h:6379" in str(failure)
        assert "deque" not in str(failure)

    in_network(play)


# Room


def test_no_more_than_so_many_wait_for_an_answer() -> None:
    async def play() -> None:
        wire, peer = await wire_to(max_pending=3)
        asked = [asyncio.ensure_future(wire.call("ECHO", b"%d" % each)) for each in range(10)]
        await idle(1)
        assert len(wire._pending) == 3
        assert await asyncio.gather(*asked) == [b"%d" % each for each in range(10)]
        assert [words[1] for words in peer.heard] == [b"%d" % each for each in range(10)]
        wire.end()

    in_network(play)


def test_no_more_than_so_many_bytes_wait_to_be_sent() -> None:
    async def play() -> None:
        wire, _ = await wire_to(write_buffer=100)
        asked = [asyncio.ensure_future(wire.call("ECHO", b"x" * 60)) for _ in range(10)]
        await idle(1)
        assert len(wire._pending) < 10
        assert await asyncio.gather(*asked) == [b"x" * 60] * 10
        wire.end()

    in_network(play)


def test_who_calls_while_the_server_takes_nothing_waits_for_its_turn() -> None:
    async def play() -> None:
        wire, peer = await wire_to()
        wire.pause_writing()
        first = [asyncio.ensure_future(wire.call("ECHO", b"%d" % each)) for each in range(5)]
        await idle()
        assert not peer.heard
        wire.resume_writing()
        later = [asyncio.ensure_future(wire.call("ECHO", b"%d" % each)) for each in range(5, 9)]
        assert await asyncio.gather(*first, *later) == [b"%d" % each for each in range(9)]
        wire.end()

    in_network(play)


async def overtake(wire: Wire, order: list[bytes]) -> None:
    """Call in the moment in which there is room again, before those who wait for it go on."""
    while wire._is_full:
        await idle(1)
    order.append(b"late")
    await wire.call("ECHO", b"late")


def test_nobody_overtakes() -> None:
    async def play() -> None:
        wire, peer = await wire_to(max_pending=2)
        order: list[bytes] = []

        async def ask(name: bytes) -> None:
            order.append(name)
            await wire.call("ECHO", name)

        asked = [asyncio.ensure_future(ask(b"%d" % each)) for each in range(6)]
        late = [asyncio.ensure_future(overtake(wire, order)) for _ in range(3)]
        await asyncio.gather(*asked, *late)
        assert [words[1] for words in peer.heard] == order
        wire.end()

    in_network(play)


def test_nobody_overtakes_who_waits_since_before_a_pause_ended() -> None:
    async def play() -> None:
        wire, peer = await wire_to()
        wire.pause_writing()
        waiting = asyncio.ensure_future(wire.call("ECHO", b"first"))
        await idle()
        wire.resume_writing()
        await wire.call("ECHO", b"second")
        await waiting
        assert [words[1] for words in peer.heard] == [b"first", b"second"]
        wire.end()

    in_network(play)


def test_who_gives_up_waiting_leaves_its_room_to_others() -> None:
    async def play() -> None:
        wire, peer = await wire_to(max_pending=1)
        asked = [asyncio.ensure_future(wire.call("ECHO", b"%d" % each)) for each in range(6)]
        await idle(1)
        asked[1].cancel()
        asked[3].cancel()
        while not asked[0].done():
            await idle(1)
        asked[2].cancel()  # maybe woken already
        assert list(await asyncio.gather(asked[4], asked[5])) == [b"4", b"5"]
        assert {words[1] for words in peer.heard} >= {b"0", b"4", b"5"}
        wire.end()

    in_network(play)


def test_who_waits_for_room_too_long_has_published_nothing() -> None:
    async def play() -> None:
        wire, peer = await wire_to(timeout=2)
        wire.pause_writing()
        begin = now()
        failure = await outcome(wire.call("ECHO", b"x"))
        assert type(failure) is BrokerTimeout
        assert not failure.maybe_published
        assert now() - begin == 2
        assert not wire.ended.done()
        wire.resume_writing()
        assert await wire.call("ECHO", b"y") == b"y"
        assert [words[1] for words in peer.heard] == [b"y"]
        wire.end()

    in_network(play)


def test_who_waits_for_room_when_it_ends_has_published_nothing() -> None:
    async def play() -> None:
        wire, peer = await wire_to()
        wire.pause_writing()
        waiting = [asyncio.ensure_future(wire.call("ECHO", b"x")) for _ in range(3)]
        await idle()
        peer.hang_up()
        for call in waiting:
            failure = await outcome(call)
            assert type(failure) is BrokerUnavailable
            assert not failure.maybe_published
        assert not peer.heard

    in_network(play)


def test_a_server_that_goes_on_answering_makes_no_room_while_it_takes_nothing() -> None:
    async def play() -> None:
        wire, peer = await wire_to()
        asked = asyncio.ensure_future(wire.call("ECHO", b"a"))
        await idle(1)
        wire.pause_writing()
        waiting = asyncio.ensure_future(wire.call("ECHO", b"b"))
        assert await asked == b"a"
        await idle()
        assert not waiting.done()
        assert len(peer.heard) == 1
        wire.resume_writing()
        assert await waiting == b"b"
        wire.end()

    in_network(play)


# What comes unasked


def test_pushes_between_the_answers() -> None:
    async def play() -> None:
        pushed: list[Any] = []
        wire, peer = await wire_to(pushed.append)
        asked = [wire.call("ECHO", b"%d" % each) for each in range(3)]
        for each in range(3):
            peer.say(push(bulk("message"), bulk("c"), number(each)))
        assert await asyncio.gather(*asked) == [b"0", b"1", b"2"]
        await idle()
        assert pushed == [[b"message", b"c", each] for each in range(3)]
        wire.end()

    in_network(play)


def test_much_at_once_is_taken_in_steps_but_not_too_much() -> None:
    async def play() -> None:
        pushed: list[Any] = []
        wire, _ = await wire_to(pushed.append)
        one = push(bulk("message"), bulk("c"), bulk("d"))
        wire.data_received(one * 1000)
        assert 0 < len(pushed) < 1000
        wire.data_received(one)
        assert len(pushed) < 1000
        wire.data_received(one * (BACKLOG // len(one)))
        assert len(pushed) == 1001 + BACKLOG // len(one)
        wire.data_received(one * 1000)
        await idle(100)
        assert len(pushed) == 2001 + BACKLOG // len(one)
        wire.end()

    in_network(play)


def test_nobody_need_listen() -> None:
    async def play() -> None:
        wire, peer = await wire_to()
        peer.say(push(bulk("message"), bulk("c"), bulk("d")))
        assert await wire.call("ECHO", b"x") == b"x"
        wire.end()

    in_network(play)


@pytest.mark.parametrize("command", ["SUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "SUNSUBSCRIBE"])
def test_a_push_answers_who_subscribes(command: str) -> None:
    async def play() -> None:
        pushed: list[Any] = []
        wire, _ = await wire_to(pushed.append)
        answers = await asyncio.gather(
            wire.call("ECHO", b"a"), wire.call(command, b"c"), wire.call("ECHO", b"b")
        )
        assert (answers[0], answers[2]) == (b"a", b"b")
        assert answers[1][:2] == [command.lower().encode(), b"c"]
        assert not pushed
        wire.end()

    in_network(play)


def test_a_push_for_another_channel_is_no_answer() -> None:
    async def play() -> None:
        pushed: list[Any] = []
        wire, peer = await wire_to(pushed.append)

        def given_up(peer: Peer, words: tuple[bytes, ...]) -> bytes:
            peer.say(push(bulk("sunsubscribe"), bulk("other"), number(0)))
            peer.say(push(bulk("message"), bulk(words[1]), bulk("data")))
            return push(bulk("ssubscribe"), bulk("c"), number(1))

        peer.server.answers["SSUBSCRIBE"] = given_up
        assert (await wire.call("SSUBSCRIBE", b"c"))[0] == b"ssubscribe"
        await idle()
        assert sorted(pushed) == [[b"message", b"c", b"data"], [b"sunsubscribe", b"other", 0]]
        wire.end()

    in_network(play)


def test_to_lose_a_channel_is_no_answer_to_who_subscribes_to_it() -> None:
    async def play() -> None:
        pushed: list[Any] = []
        wire, peer = await wire_to(pushed.append)
        lost = push(bulk("sunsubscribe"), bulk("c"), number(0))
        peer.server.answers["SSUBSCRIBE"] = lost + error("MOVED 1 h:1")
        with pytest.raises(AnswerError, match="MOVED"):
            await wire.call("SSUBSCRIBE", b"c")
        assert pushed == [[b"sunsubscribe", b"c", 0]]
        assert await wire.call("ECHO", b"x") == b"x"
        wire.end()

    in_network(play)


def test_an_error_answers_who_subscribes() -> None:
    async def play() -> None:
        wire, peer = await wire_to()
        peer.server.answers["SUBSCRIBE"] = error("NOPERM no")
        with pytest.raises(AnswerError, match="NOPERM"):
            await wire.call("SUBSCRIBE", b"c")
        assert await wire.call("ECHO", b"x") == b"x"
        wire.end()

    in_network(play)


def test_what_comes_is_counted() -> None:
    async def play() -> None:
        wire, peer = await wire_to()
        before = wire.received
        peer.say(push(bulk("message"), bulk("c"), bulk("d")))
        await idle()
        assert wire.received == before + 1
        wire.end()

    in_network(play)


# What the errors mean


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("LOADING Redis is loading the dataset in memory", BrokerUnavailable, "LOADING"),
        ("MASTERDOWN Link with MASTER is down", BrokerUnavailable, "MASTERDOWN"),
        ("CLUSTERDOWN The cluster is down", BrokerUnavailable, "CLUSTERDOWN"),
        ("READONLY You can't write against a read only replica.", BrokerUnavailable, "READONLY"),
        ("MOVED 1 h:1", BrokerUnavailable, "MOVED"),
        ("ASK 1 h:1", BrokerUnavailable, "ASK"),
        ("TRYAGAIN Multiple keys", BrokerUnavailable, "TRYAGAIN"),
        ("BUSY Redis is busy running a script", BrokerUnavailable, "BUSY"),
        ("NOREPLICAS Not enough good replicas to write.", BrokerUnavailable, "NOREPLICAS"),
        ("MISCONF Errors writing to the AOF file", BrokerUnavailable, "MISCONF"),
        ("OOM command not allowed", BrokerRefused, "memory"),
        ("NOPERM this user has no permissions", BrokerRefused, "does not let this user"),
        ("NOAUTH Authentication required.", BrokerRefused, "does not let this user"),
        ("WRONGPASS invalid", BrokerRefused, "does not let this user"),
        ("ERR syntax error", BrokerRefused, "syntax error"),
        (f"{IN_SCRIPT} -OOM command not allowed", BrokerRefused, "memory"),
        (f"{IN_SCRIPT} -READONLY You can't write", BrokerUnavailable, "READONLY"),
        (f"{IN_SCRIPT} WRONGTYPE Operation", BrokerRefused, "WRONGTYPE"),
        ("", BrokerRefused, "the server says"),
    ],
)
def test_what_an_error_means(text: str, kind: type[Exception], words: str) -> None:
    meant = as_broker_error(AnswerError(text))
    assert type(meant) is kind
    assert words in str(meant)
    assert not getattr(meant, "maybe_published", False)


# A real server


@pytest.fixture
async def real() -> AsyncIterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_real_server(real: RedisServer, kind: str) -> None:
    address = Address("127.0.0.1", real.port) if kind == "tcp" else Address(real.path, 0)
    pushed: asyncio.Queue[list[Any]] = asyncio.Queue()
    wire = await connect(address, Settings(), None, pushed.put_nowait)
    assert wire.identity.run_id == real.info("server")["run_id"]
    assert not wire.identity.is_cluster
    big = b"x" * 3_000_000
    answers = await asyncio.gather(
        *(wire.call("ECHO", b"%d" % each) for each in range(2000)),
        wire.call("SUBSCRIBE", b"c"),
        wire.call("ECHO", big),
    )
    assert answers[:2000] == [b"%d" % each for each in range(2000)]
    assert answers[2001] == big
    real.call("PUBLISH", b"c", b"data")
    assert await asyncio.wait_for(pushed.get(), 10) == [b"message", b"c", b"data"]
    wire.end()
    await wire.ended


async def test_a_real_server_that_is_slower_than_we_are(real: RedisServer) -> None:
    address = Address("127.0.0.1", real.port)
    wire = await connect(address, Settings(write_buffer=100_000, timeout=30))
    paused = asyncio.Event()
    pause = wire.pause_writing

    def note() -> None:
        pause()
        paused.set()

    wire.pause_writing = note  # type: ignore[method-assign]
    data = [b"%04d" % each * 10_000 for each in range(1000)]
    real.freeze()
    asked = [asyncio.ensure_future(wire.call("ECHO", each)) for each in data]
    await asyncio.wait_for(paused.wait(), 10)
    assert len(wire._pending) < 1000  # the system takes some megabytes
    real.thaw()
    assert await asyncio.gather(*asked) == data
    wire.end()


def test_all_that_waits_to_be_sent_is_bounded_when_there_is_room_again() -> None:
    async def play() -> None:
        wire, peer = await wire_to(write_buffer=100)
        wire.pause_writing()
        asked = [asyncio.ensure_future(wire.call("ECHO", b"x" * 60)) for _ in range(50)]
        await idle()
        wire.resume_writing()
        most = 0
        while not all(call.done() for call in asked):
            await idle(1)
            most = max(most, wire._unsent_bytes)
        assert most < 300
        assert len(peer.heard) == 50
        wire.end()

    in_network(play)


def test_what_has_been_sent_makes_room_before_it_is_answered() -> None:
    async def play() -> None:
        wire, peer = await wire_to(write_buffer=100)
        peer.server.answers["SLEEP"] = SILENCE
        asked = [asyncio.ensure_future(wire.call("SLEEP", b"x" * 60)) for _ in range(50)]
        await idle(200)
        assert len(peer.heard) == 50
        wire.end()
        for call in asked:
            assert (await outcome(call)).maybe_published

    in_network(play)


def test_who_is_let_in_and_gives_up_lets_in_the_next() -> None:
    async def play() -> None:
        wire, _ = await wire_to()
        wire.pause_writing()
        first = asyncio.ensure_future(wire.call("ECHO", b"first"))
        await idle()
        wire.resume_writing()
        second = asyncio.ensure_future(outcome(wire.call("ECHO", b"second")))
        await idle(1)
        first.cancel()
        third = asyncio.ensure_future(outcome(wire.call("ECHO", b"third")))
        begin = now()
        assert list(await asyncio.gather(second, third)) == [b"second", b"third"]
        assert now() == begin
        wire.end()

    in_network(play)


def test_who_comes_after_the_end_is_told_at_once() -> None:
    async def play() -> None:
        for is_waiting in (False, True):
            wire, _ = await wire_to()
            wire.pause_writing()
            begin = now()
            waiting = [outcome(wire.call("ECHO", b"x")) for _ in range(3 * is_waiting)]
            tasks = [asyncio.ensure_future(each) for each in waiting]
            await idle()
            wire.end("enough")
            tasks.append(asyncio.ensure_future(outcome(wire.call("ECHO", b"x"))))
            for failure in await asyncio.gather(*tasks):
                assert type(failure) is BrokerUnavailable
                assert "enough" in str(failure)
                assert not failure.maybe_published
            assert now() == begin

    in_network(play)


async def test_a_real_server_that_dies(real: RedisServer) -> None:
    wire = await connect(Address("127.0.0.1", real.port), Settings())
    real.freeze()
    asked = asyncio.ensure_future(wire.call("PING"))
    await asyncio.sleep(0)
    real.kill()
    failure = await outcome(asked)
    assert failure.maybe_published
    with pytest.raises(BrokerUnavailable, match="cannot be reached"):
        await connect(Address("127.0.0.1", real.port), Settings())


async def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match="cannot be reached"):
        await connect(Address(str(tmp_path / "none"), 0), Settings())
