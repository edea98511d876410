"""The `vduse` command: one table of commands, and what they do."""
