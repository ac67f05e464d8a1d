"""The ways a run may end that are not a defect of the program."""


class UserError(ValueError):
    """A setting, file or data set that cannot be used as given.

    The message names the argument, its value and the cure; the command line prints it without a traceback
    and exits with code 2.
    """


class NonFiniteError(UserError):
    """A loss or a gradient became NaN or infinite; the last good codes have been kept."""


class LostRankError(RuntimeError):
    """Another process of a distributed run has ended, so that this one cannot go on."""
