"""The daemon's TOML file: the command line's options said declaratively, in any order."""
