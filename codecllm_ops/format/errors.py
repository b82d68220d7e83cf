"""Errors that bytes from outside can cause."""

from __future__ import annotations


class CorruptStreamError(ValueError):
    """The bytes contradict docs/format.md, or a checksum does not match."""


class UnsupportedFormatError(ValueError):
    """Well-formed, but of a version, weight format or dtype this build does not know."""


def typed(error: RuntimeError) -> Exception:
    """Compiled kernels can only raise RuntimeError: corruption and bad indices get their own types
    back.
    """
    message = str(error)
    if ": corrupt " in message:
        return CorruptStreamError(message)
    if "is out of range" in message:
        return IndexError(message)
    return error
