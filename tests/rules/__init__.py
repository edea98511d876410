"""The repository's rules: each check is a function from a tree to the list of what breaks it, so
that every rule is also shown to fail on a bad tree."""
