"""docs/reference.md and the man pages, made from the command table: ``make man``."""
