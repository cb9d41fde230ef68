"""Membership: which processes take part in a run, and which have failed."""
