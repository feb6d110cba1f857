"""The parity gate: a version is promoted if it drives as it was trained to, and not worse than the promoted one.

`parity` compares two drives bit by bit, `statistics` two versions' returns, `gate` puts both together.
"""
