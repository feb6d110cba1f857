"""Measuring and drilling a real server: load, start-up times, faults."""
