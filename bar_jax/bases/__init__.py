"""Tokens <-> the sequence that is predicted."""
