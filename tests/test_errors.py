"""What messages quote of the errors of libraries."""

import errno
import os

import pytest

from ptmrec_dist.errors import fault_of, first_line, in_brief, on_one_line


def test_the_first_line_leaves_a_stack_trace_out() -> None:
    assert first_line(RuntimeError("\nconnection closed\n  at socket.cpp:3\n")) == "connection closed"


def test_a_sentence_that_a_library_divides_is_joined() -> None:
    assert on_one_line(ValueError("expected one of\n  a,\n  b")) == "expected one of a, b"


def test_a_missing_key_is_said_to_be_missing() -> None:
    assert on_one_line(KeyError("version")) == "no 'version'"


def test_a_message_that_is_pages_long_is_cut() -> None:
    assert in_brief(ValueError("size mismatch\n" * 90)) == ("size mismatch " * 90)[:300]
    assert in_brief(ValueError("one\n  two")) == "one two"


def test_an_error_without_a_message_is_named_by_its_type() -> None:
    assert first_line(ConnectionResetError()) == on_one_line(ConnectionResetError("  ")) == "ConnectionResetError"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
        (errno.EACCES, "allow access to it"),
        (errno.EROFS, "allow access to it"),
        (errno.EIO, "check the disk"),
        (errno.ENOENT, "remove the cause"),
    ],
)
def test_an_error_of_the_system_says_what_failed_why_and_what_helps(number: int, remedy: str) -> None:
    reason = os.strerror(number)
    named = str(fault_of(OSError(number, reason, "/data/items.csv")))
    assert named == f"[Errno {number}] {reason}: '/data/items.csv'; {remedy} and run the same command again"
    nameless = str(fault_of(OSError(number, reason), "packing into out"))
    assert nameless == f"packing into out: [Errno {number}] {reason}; {remedy} and run the same command again"


def test_an_error_without_a_number_is_quoted() -> None:
    assert str(fault_of(OSError("cut off"))) == "cut off; remove the cause and run the same command again"
