"""Workers that begin as forks of one process which has torch imported: they start at once, and share its memory.

TorchServe starts a worker by a command, `<python> model_service_worker.py ...`. Here the command is `launcher.py`: it
hands its arguments, environment and standard streams to `fork_server.py`; that forks a worker, which then runs
TorchServe's script as if it had been started with it. `preloading.ForkServer` is what `serve` starts both with. Where
anything of this is not there, the launcher becomes the worker itself, as slow as it was.
"""
