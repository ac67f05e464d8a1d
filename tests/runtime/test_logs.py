import logging
import re
import warnings

import pytest
from lightning.pytorch.utilities import rank_zero_info

from ldd.errors import UserError
from ldd.runtime.logs import log_file, logged

LINE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ rank 3 of 8 \S+:\d+ (INFO|WARNING|ERROR): "


def lines(folder):
    found = log_file(folder, 3).read_text().splitlines()
    assert all(re.match(LINE, line) for line in found), found
    return [re.sub(LINE, r"\1 ", line) for line in found]


def test_what_is_logged_and_warned_of_is_written_with_who_said_it(tmp_path, recwarn):
    logging.getLogger("elsewhere").warning("before")
    with logged(tmp_path / "logs", 3, 8):
        logging.getLogger("elsewhere").warning("from %s", "a library")
        rank_zero_info("from Lightning")
        warnings.warn("beware", stacklevel=1)
    logging.getLogger("elsewhere").warning("after")
    warnings.warn("later", stacklevel=1)
    assert lines(tmp_path / "logs") == [
        *("INFO starts", "WARNING from a library", "INFO from Lightning", "WARNING UserWarning: beware"),
        "INFO has ended",
    ]
    assert [str(each.message) for each in recwarn] == ["beware", "later"]  # shown as ever


def test_a_later_start_adds_to_the_file(tmp_path):
    for _ in range(2):
        with logged(tmp_path, 3, 8):
            pass
    assert lines(tmp_path) == ["INFO starts", "INFO has ended"] * 2


@pytest.mark.parametrize(
    "error", [UserError("lr (-1) must be above 0"), KeyboardInterrupt(), SystemExit(143)]
)
def test_an_error_that_was_foreseen_is_one_line(error, tmp_path):
    with pytest.raises(type(error)), logged(tmp_path, 3, 8):
        raise error
    assert lines(tmp_path)[-1] == f"ERROR {type(error).__name__}: {error}"


def test_a_defect_has_its_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError), logged(tmp_path, 3, 8):
        _ = 1 / 0
    text = log_file(tmp_path, 3).read_text()
    assert "ERROR: Traceback" in text
    assert "ZeroDivisionError: division by zero" in text


def test_a_run_that_begins_anew_replaces_the_file_and_those_of_ranks_that_are_gone(tmp_path):
    for rank in (3, 7, 8, 12):
        with logged(tmp_path, rank, 13):
            pass
    with logged(tmp_path, 3, 8, anew=True):
        pass
    assert lines(tmp_path) == ["INFO starts", "INFO has ended"]
    with logged(tmp_path, 0, 8, anew=True):
        pass
    assert sorted(path.name[5:9] for path in tmp_path.iterdir()) == ["0000", "0003", "0007"]


def test_a_folder_that_is_gone_disturbs_nothing(tmp_path):
    with logged(tmp_path / "ranks", 3, 8):
        log_file(tmp_path / "ranks", 3).unlink()
        (tmp_path / "ranks").rmdir()
        logging.getLogger("elsewhere").warning("unheard")
    assert not (tmp_path / "ranks").exists()
