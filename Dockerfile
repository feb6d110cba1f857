# The server as an image. `docker build -t carla-policy-serving .` in the checkout; config/kubernetes/README.md and
# README.md say how it is run.
#
# Build arguments:
#   PYTHON_IMAGE, PYTHON_DIGEST  what both stages begin with. A tag can move: a release pins what it was tested with,
#                                `--build-arg PYTHON_DIGEST=@sha256:...`, as `docker buildx imagetools inspect` shows it.
#   PIP_INDEX_URL, PIP_EXTRA_INDEX_URL
#                                where pip looks; empty: its own default. With PyTorch's index of CPU builds as the
#                                extra one, the image is several gigabytes smaller and has no CUDA in it.
#   AOT_CACHE                    0 leaves out Java's ahead-of-time cache, which takes half a minute to record.
#   VERSION, GIT_SHA             for the labels.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG PYTHON_DIGEST=

FROM ${PYTHON_IMAGE}${PYTHON_DIGEST} AS build
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=
ARG AOT_CACHE=1
SHELL ["/bin/sh", "-eu", "-c"]
WORKDIR /opt/carla-policy
# What it depends on comes first: it changes least, and takes longest.
COPY requirements/serve.txt requirements/serve.txt
COPY setup.cfg ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/venv; \
    /opt/venv/bin/pip install --disable-pip-version-check -r requirements/serve.txt \
        "$(sed -n 's/^ *torch ==/torch==/p' setup.cfg)"
COPY setup.py pyproject.toml README.md config.properties ./
COPY handler handler
COPY tools tools
COPY config config
# In place, as in a checkout: the command finds its configuration beside itself. Nothing can be compiled later.
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/venv/bin/pip install --disable-pip-version-check --no-deps -e .; \
    /opt/venv/bin/python -m compileall -q handler tools
# Every artifact becomes an archive, verified in a process of its own. Without artifacts the image serves those of a
# volume only.
COPY artifacts artifacts
RUN mkdir -p model_store; \
    for artifact in artifacts/v*/; do \
        test ! -d "$artifact" || /opt/venv/bin/carla-policy build "$artifact" --store model_store; \
    done; \
    rm -rf artifacts
# A server starts without this cache too, only later.
RUN if [ "$AOT_CACHE" = 1 ] && ls model_store/*.mar; then \
        /opt/venv/bin/python -m carla_policy_tools.aot_recording || echo "no ahead-of-time cache"; \
    fi

FROM ${PYTHON_IMAGE}${PYTHON_DIGEST}
ARG VERSION=0.1.0
ARG GIT_SHA=unknown
LABEL org.opencontainers.image.title="carla-policy-serving" \
      org.opencontainers.image.description="Serves reinforcement-learning driving policies with TorchServe" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${GIT_SHA}"
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/carla-policy /opt/carla-policy
# Two places to write to, for any user: the registry, which outlives a container, and temporary files and logs, from
# where libraries are loaded: a tmpfs there has to be mounted `exec`. With both as volumes the root may be read-only.
RUN mkdir -m 1777 /var/lib/carla-policy /run/carla-policy
VOLUME ["/var/lib/carla-policy", "/run/carla-policy"]
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/run/carla-policy \
    TMPDIR=/run/carla-policy \
    CARLA_POLICY_STORE=/opt/carla-policy/model_store \
    CARLA_POLICY_REGISTRY=/var/lib/carla-policy/registry.json \
    CARLA_POLICY_RUN_DIR=/run/carla-policy/server \
    CARLA_POLICY_DEPLOYMENT=production \
    CARLA_POLICY_LOG_CONSOLE=true \
    CARLA_POLICY_HOST=0.0.0.0
WORKDIR /run/carla-policy
USER 10001:10001
# Predictions, metrics, and the probes /livez, /readyz and /startupz. Management stays on the container's loopback.
EXPOSE 8080 8082 8083
STOPSIGNAL SIGTERM
# Green only while every declared version has its workers and the promoted one answers a golden observation.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["carla-policy", "health"]
ENTRYPOINT ["carla-policy"]
CMD ["serve"]
