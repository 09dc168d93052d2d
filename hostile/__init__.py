"""Attacks on this project: faults, hostile input, crowds. `make soak` runs all, the tests a quick part of each.

README.md says what each attack does; cases that are files lie in folders beside the modules, with a line of
explanation each.
"""
