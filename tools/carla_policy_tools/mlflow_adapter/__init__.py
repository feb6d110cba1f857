"""MLflow beside this project: artifacts from and to its model registry, and our promotions as its aliases and tags.

`connection` is the only module that imports MLflow, and only when a verb is run. `fetching` copies files of a model
version, `pulling` makes an artifact of them, `publishing` logs an artifact, `identity` says which local version is
which of MLflow's, and `pushing` tells MLflow what the registry declares.
"""
