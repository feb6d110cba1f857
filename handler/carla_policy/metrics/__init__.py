"""What a worker counts of its driving, and how it gets to whoever scrapes the server.

`recorder.Recorder` takes down each batch in a few microseconds; `reporter.Reporter` hands on, once a second, what has
changed. `catalog` lists every metric. Everything is a counter or a gauge: TorchServe 0.12's own histograms begin at
5 ms and cost a line for each observation, so histograms are counters with a label `le`, which Prometheus reads alike.
"""
