"""Training by recipe: the schema, the losses, the one loop, and the run folder."""
