"""Programs that misuse /dev/vduse; see test_run_hostile.py."""
