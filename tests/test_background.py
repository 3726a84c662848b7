"""Work after the response."""

import threading

import httpx2
import pytest
from starlette.background import BackgroundTask as StarletteTask

from yaat import responses
from yaat.background import BackgroundTask, BackgroundTasks, RunAfterResponse
from yaat.responses import TextResponse
from yaat.types import ASGIApp, Message


async def sent_by(app: ASGIApp, log: list[str]) -> None:
    """Run ``app`` over a request; note in ``log`` what it sends."""

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        log.append(message["type"])

    await app({"type": "http", "method": "GET", "path": "/"}, receive, send)


async def test_a_task_takes_a_coroutine_function_and_a_plain_one() -> None:
    seen: list[tuple[str, bool]] = []

    async def in_the_loop(name: str) -> None:
        seen.append((name, threading.current_thread() is threading.main_thread()))

    def in_a_thread(*, name: str) -> None:
        seen.append((name, threading.current_thread() is threading.main_thread()))

    await BackgroundTask(in_the_loop, "loop")()
    await BackgroundTask(in_a_thread, name="thread")()
    assert seen == [("loop", True), ("thread", False)]


async def test_tasks_run_in_their_order() -> None:
    seen: list[str] = []

    async def note(word: str) -> None:
        seen.append(word)

    tasks = BackgroundTasks([BackgroundTask(note, "first")])
    tasks.add(note, "second")
    tasks.add_task(note, "third")
    assert isinstance(tasks, StarletteTask)
    await tasks()
    assert seen == ["first", "second", "third"]


@pytest.mark.parametrize("several", [False, True])
async def test_it_runs_after_the_response(several: bool) -> None:  # noqa: FBT001
    log: list[str] = []

    async def work() -> None:
        log.append("work")

    background: BackgroundTask | BackgroundTasks = BackgroundTask(work)
    if several:
        background = BackgroundTasks()
        background.add(work)
        background.add(work)
    await sent_by(RunAfterResponse(TextResponse("done"), background), log)
    work_done = ["work", "work"] if several else ["work"]
    assert log == ["http.response.start", "http.response.body", *work_done]


async def test_the_response_is_what_the_client_gets() -> None:
    app = RunAfterResponse(TextResponse("done", status_code=202), BackgroundTask(int))
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://testserver") as client:
        response = await client.get("/")
    assert (response.status_code, response.text) == (202, "done")


def test_it_may_be_imported_with_the_responses() -> None:
    assert responses.RunAfterResponse is RunAfterResponse
