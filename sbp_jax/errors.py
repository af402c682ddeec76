"""The exception for a mistake of the user's: the command prints one line and exits with 2."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line: it names the thing, says what was expected, and what to do.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message  # survives gin, which re-raises with its own text appended
