"""`carla-policy bench`: our server side by side with others, and what comes of it."""
