"""The one exception that means "the user's input is wrong", which main.py turns into a line and exit status 2."""


class InputError(ValueError):
    """Wrong input; the message is one line naming the value, the place and what is allowed."""

    def __init__(self, message):
        # Names from damaged files may hold anything, line ends and terminal codes too.
        printable = "".join(c if c.isprintable() else " " for c in str(message))
        super().__init__(" ".join(printable.split()))
