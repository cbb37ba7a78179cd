"""Adapters to the ecosystem's libraries by name: attacks, data (``readers``), models (``sources``).

Nothing heavy is imported here; each adapter imports its library inside the functions that need it.
"""
