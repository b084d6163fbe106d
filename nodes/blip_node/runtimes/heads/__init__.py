"""Models that answer with one pass: what is read for each kind, and what is made of the numbers.

:mod:`.engine` computes, the other modules know one sort of head each.
"""
