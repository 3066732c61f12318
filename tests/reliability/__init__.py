"""Tests of what is left after crashes, on full disks, in damaged files and with many users: docs/reliability.md."""
