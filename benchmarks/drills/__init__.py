"""Fault drills: a real server under load, things go wrong, and what became of every request is counted.

Each drill starts its own server on free ports with a store and a registry in a temporary directory, and ends with a
`report.Report`: what was lost, what was wrong, how latencies changed, and whether it passed.
"""
