"""The one kind of error that is the user's to mend: printed as a single line, exit code 2."""


class UserError(ValueError):
    """A mistake in the input or the settings.

    The message says what was got, what was expected and what to do. The command line prints it without a traceback and
    exits with code 2; code that uses the package as a library catches it as a `ValueError`.
    """
