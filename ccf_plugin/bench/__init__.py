"""How fast a recipe trains here, beside a plain loop."""
