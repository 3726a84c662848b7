"""What the documents say is what happens."""

from pathlib import Path

import pytest

from documents import Reading, pages


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
async def test_every_page_can_be_followed(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Reading(page, tmp_path, monkeypatch).follow()
