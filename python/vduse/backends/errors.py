"""What a person got wrong about a backend."""


class BackendError(Exception):
    """One line that says what to do about it."""
