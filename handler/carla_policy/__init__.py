"""The serving core: from the files of one policy version to drivable actions. Knows nothing of any server.

A guided tour, in the order in which a policy comes to life and a request passes through:

- `loading.load_policy(model_dir)` is the one place where a `Policy` is put together:
  `integrity` (nothing has changed) -> `card` (what the version says of itself) -> `preprocessing` -> `runtime`
  -> `heads` -> `actions` -> `safety` -> `selftest` (it reproduces its training outputs, or it does not load);
- `policy.Policy` turns observations into controls;
- `wire` holds the request and answer types and translates between bytes and arrays, `errors` what can be wrong
  with them, and `service.PolicyService` answers a batch of requests, each by itself.
"""
