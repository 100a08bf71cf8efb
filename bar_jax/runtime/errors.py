"""The errors that end in one line, which says what to mend."""


class InputError(ValueError):
    """A wrong field, file or argument, named in one line (a file's wrong tensors in one line each).

    `main` prints it and exits with status 2; nothing was compiled or written before.

    Args:
      where: the config field (`model.generator.heads`) or the file that is wrong.
      found: what is there.
      expected: what should be there, or what to do.
    """

    def __init__(self, where: object, found: str, expected: str):
        super().__init__(f"{where}: found {found}, expected {expected}")


class SaveError(RuntimeError):
    """What could not be written, as on a full disk; the message names the file or folder.

    `main` prints it and exits with status 1: once there is room the same command goes on.
    """


class NonFinite(RuntimeError):
    """A loss or gradient is no longer finite; the message says between which steps.

    `main` prints it and exits with status 1: nothing was saved after that.
    """
