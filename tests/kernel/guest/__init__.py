"""Tests that run on each of the kernels, in a guest, as root."""
