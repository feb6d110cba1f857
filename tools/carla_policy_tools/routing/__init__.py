"""Traffic between versions of a policy: splits that keep an episode with its version, shadow versions, a guard.

- `haproxy` finds HAProxy, `routes` says what it shall do, `proxy` runs it, `traffic` reads what it has done.
- `shadow` asks a version that nobody drives with, and compares. `guard` tests a canary against its baseline.
- `following` makes a proxy do what the registry declares; `commands` are the verbs.

TorchServe needs no proxy to serve one promoted version: this package is for more than that.
"""
