"""What is measured: our server and others of the same policy, each in processes of its own."""
