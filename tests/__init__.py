"""Tests of skylib; `tests.testbed` makes the SSH hosts that they run on."""
