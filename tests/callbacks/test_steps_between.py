"""Numbers of steps between two writings."""

import pytest

from ldd.callbacks import Export, LastCheckpoints, Preview
from ldd.errors import UserError


@pytest.mark.parametrize(
    ("callback", "section", "least"),
    [(Export, "export", 0), (Preview, "preview", 0), (LastCheckpoints, "checkpoint", 1)],
)
def test_a_number_of_steps_below_the_least_is_refused(callback, section, least):
    with pytest.raises(
        UserError, match=rf"^{section}\.every_n_steps \({least - 1}\) must be at least {least}$"
    ):
        callback(every_n_steps=least - 1)
    assert callback(every_n_steps=least).every_n_steps == least
