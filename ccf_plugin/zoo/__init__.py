<<<<<<< HEAD
"""One adapter per library of the ecosystem: attacks, data sets and models, by name.
=======
"""Adapters to the ecosystem's libraries by name: threat models, attacks, data (``readers``), models (``sources``).
>>>>>>> zoo

Nothing heavy is imported here; each adapter imports its library inside the functions that need it.
"""
