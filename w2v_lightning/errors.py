"""The one exception that means: the input is wrong, the program is not."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message names the file or option, what was found there, and the remedy. The command line prints it without a
    traceback; in a script it is an ordinary ValueError.
    """
