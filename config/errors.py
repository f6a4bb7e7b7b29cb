"""The one exception that means "the user's input is wrong"; what other errors say, in one line."""


class InputError(ValueError):
    """Wrong input. The message is one line: what is wrong, the value, what is allowed.

    keys: what the message is about, the most important first: keys of an experiment ("Sample.nfe") or arguments of a
    runner ("image_path"). The command line puts in front of the message the flag or the file that set one of them.

        >>> from pndm import InputError, load_experiment
        >>> try:
        ...     load_experiment("digits.yml", {"Sample.sample_speed": ("--sample_speed", 0)})
        ... except InputError as error:
        ...     print(error)
        --sample_speed: Sample.sample_speed is 0; input should be greater than or equal to 1
    """

    def __init__(self, message: object, *keys: str) -> None:
        # A name from a damaged file may hold anything: line ends, terminal codes.
        printable = "".join(c if c.isprintable() else " " for c in str(message))
        super().__init__(" ".join(printable.split()))
        self.keys = keys


def first_line(error):
    """The first line of what an error says, 200 characters at most; the name of its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
