"""The exception for a mistake of the user's: the command prints one line and exits with 2."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line: it names the thing, says what was expected, and what to do.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message  # survives gin, which re-raises with its own text appended


class Stopped(Exception):
    """A run cannot, or must not, go on, and no setting was wrong.

    Attributes:
      message: one line that says why, and what to do.
      exit_code: of the command.
    """

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
