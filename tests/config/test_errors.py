"""What wrong input is told in: one line, whatever the file or the value holds."""

from hypothesis import example, given
from hypothesis import strategies as st

from pndm.config.errors import InputError, first_line


@given(st.text())
@example("two\nlines\r\nand\x1b[31m\u2028 more")
def test_a_message_is_one_printable_line_with_its_words(message):
    said = str(InputError(message))
    assert said.isprintable() and said == said.strip()
    words = "".join(c if c.isprintable() else " " for c in message).split()
    assert said.split(" ") == (words or [""])


def test_the_first_line_of_an_error_is_short_and_never_empty():
    assert first_line(OSError("no space\nleft")) == "no space"
    assert first_line(MemoryError()) == "MemoryError"
    assert len(first_line(ValueError("x" * 500))) == 200
