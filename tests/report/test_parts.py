"""What the page leaves out where it would be too large: the largest first, no more than needed, each with a line."""

from sae_utils.report.parts import Parts


def put_together(parts: Parts, **sizes: int) -> str:
    """A page of parts of so many bytes each."""
    return "".join(parts(name, "x" * size, "-") for name, size in sizes.items())


def test_nothing_is_left_out_unless_it_has_to():
    assert put_together(Parts(), a=3, b=2) == "xxxxx"


def test_the_largest_go_first_and_no_more_than_needed():
    """The other way round, a page would lose ten small tables for one figure that nobody can read."""
    for n_bytes, expected in ((1, "xxx-xxx"), (8, "xxx-xxx"), (9, "--xxx")):
        parts, sizes = Parts(), {"a": 3, "b": 9, "c": 1, "d": 2}
        before = put_together(parts, **sizes)
        parts.leave_out(n_bytes)
        after = put_together(parts, **sizes)
        assert after == expected and len(before) - len(after) >= n_bytes


def test_a_part_is_measured_in_bytes_and_its_line_counts():
    """A page of other letters is larger than it has characters, and lines are not for nothing."""
    parts = Parts()
    parts("two bytes a letter", "é" * 10, "-" * 5)
    parts("a long line", "x" * 30, "-" * 20)
    parts("small", "x" * 12, "-")
    parts.leave_out(16)
    assert parts.left_out == {"two bytes a letter", "small"}, "which save 15 and 11 bytes, the other 10"


def test_what_would_not_make_the_page_smaller_stays():
    parts = Parts()
    put_together(parts, a=1, b=1)
    parts.leave_out(10)
    assert parts.left_out == set()
