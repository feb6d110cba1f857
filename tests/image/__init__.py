"""What stands in for a container engine: the Dockerfile's own steps, run in namespaces on this machine.

`dockerfile` reads the file, `engine` carries its instructions out, `inside` is the program that each step and the
container begin with. What differs from an engine: the base image is this machine's system below the interpreter that
runs the tests, and a stage's steps share one layer.
"""
