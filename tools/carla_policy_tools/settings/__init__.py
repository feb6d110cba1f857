"""How a server runs as a whole: its settings, and where each of them comes from.

`model` says what settings there are, `sources` what flags, variables and deployment files may say, `resolving` which
of them wins. How single versions are served is said by profiles, see `configuration.Profile`.
"""
