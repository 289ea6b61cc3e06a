"""Errors a user can mend."""


class UserError(Exception):
    """Bad input from the user (config, path, checkpoint): the command line prints it as one line, no traceback."""
