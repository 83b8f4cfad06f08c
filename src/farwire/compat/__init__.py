"""The drop-in for execnet."""
