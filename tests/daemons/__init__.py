"""VDUSE daemons that were written for the tests, on Linux's headers alone."""
