"""The run folder: what is in it, how it is named, and reading it; below all who write or show runs."""
