"""Recordings: the options that make one, and the commands that read them."""
