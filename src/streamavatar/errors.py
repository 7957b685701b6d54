"""The one error that users see: what is wrong and what to do about it, in one line."""


class UserError(Exception):
    """Bad input from outside: a file, an option, a checkpoint.

    The message says what is wrong *and what to do*. The command line prints it on one line and exits
    with status 2; library callers catch it as an ordinary exception.
    """
