"""Versions and what becomes of them: registered, promoted, rolled back, retired, and recorded."""
