"""One adapter per library of the ecosystem: attacks, data sets and models, by name.

Nothing heavy is imported here; each adapter imports its library inside the functions that need it.
"""
