"""Operating a daemon: what scrapers, probes and people see of it while it runs."""
