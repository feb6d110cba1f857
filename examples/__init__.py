"""How the shipped policies were trained, exported and evaluated."""
