"""Pictures of what training wrote: one HTML page of a run, or of several side by side."""
