"""Errors that bytes from outside can cause."""


class CorruptStreamError(ValueError):
    """The bytes contradict docs/format.md, or a checksum does not match."""


class UnsupportedFormatError(ValueError):
    """Well-formed, but of a version, weight format or dtype this build does not know."""
