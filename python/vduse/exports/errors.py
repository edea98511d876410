"""What a person got wrong about an export."""


class ExportError(Exception):
    """One line that says what to do about it."""
