"""Who asks in a load test with Locust, what they send, what they make of the answers, and what the test must reach."""
