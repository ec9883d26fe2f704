"""How a command ends."""

from __future__ import annotations

import pytest
import typer

from pipeline.commands.answer import answering
from pipeline.errors import LockedError, MemoryLimitError


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (MemoryError(), 2, "there is no memory left; run again with fewer --threads, or a smaller --memory"),
        (MemoryLimitError("needs 3 GB"), 2, "needs 3 GB"),
        (LockedError("in use"), 4, "in use"),
        (
            PermissionError(13, "Permission denied", "a/zarr.json"),
            2,
            "a/zarr.json: Permission denied; check that it is there, its owner and its mode",
        ),
    ],
    ids=["no memory", "too little memory", "locked", "refused"],
)
def test_error_is_one_message_and_a_code(
    raised: Exception, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, answering():
        raise raised
    assert (ended.value.exit_code, capsys.readouterr()) == (code, ("", f"error: {message}\n"))


def test_what_names_no_file_is_a_bug() -> None:
    with pytest.raises(OSError, match="strange"), answering():
        raise OSError("strange")
