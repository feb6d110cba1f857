"""Which packages there are: setup.cfg knows one place to look for them, and these are three."""

from setuptools import find_packages, setup

setup(packages=[*find_packages("handler"), *find_packages("tools"), *find_packages(include=["benchmarks*"])])
