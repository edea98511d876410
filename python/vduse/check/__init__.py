"""Conformance of VDUSE daemons: named rules (rules.py), what shows them, and the report."""
