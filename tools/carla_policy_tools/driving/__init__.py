"""The closed loop: a version drives a Gymnasium environment, and what happened is kept step by step."""
