"""Errors a user can mend."""


class UserError(Exception):
    """Bad input from the user (config, path, checkpoint): the command line prints it as one line, no traceback."""

    status = 2  # what the command line exits with


class BusyError(UserError):
    """Another process is at it; nothing is wrong, and later it can be done."""

    status = 75  # EX_TEMPFAIL of sysexits.h
