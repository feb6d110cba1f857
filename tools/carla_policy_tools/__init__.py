"""Build, check and operate served policies: the `carla-policy` command line and what stands behind it.

- `artifact`, `compilation`, `archive`, `build`: from an artifact directory to a verified archive;
- `java`, `configuration`, `torchserve`, `serving`: run TorchServe on archives and wait until it can answer;
- `client`: talk to a running server; `cli`: the verbs.
"""
