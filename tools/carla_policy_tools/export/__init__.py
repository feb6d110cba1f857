"""`carla-policy export`: from what a trainer leaves to a complete artifact.

A `Source` (`source.py`) is a trained policy as its own framework runs it; there is a module for each framework.
`recording.py` asks it for golden vectors, `serialization.py` writes its network in a runtime's format, `novelty.py`
learns what its observations look like, and `exporting.py` puts the artifact together, loads it again and compares.
"""
