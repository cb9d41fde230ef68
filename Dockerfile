# The image of every host of a cluster, with or without GPU: `docker build --tag kdcl_dist:0.2.0 .`
#
# The base is a plain Python: PyTorch's wheels bring CUDA themselves, and the host's driver is let in by the NVIDIA
# container toolkit, so that a CUDA base would hold all libraries twice. Another base needs python3 with venv,
# of the version that constraints.txt was made with.
ARG BASE=docker.io/library/python:3.11.13-slim-bookworm

FROM ${BASE} AS build
# What `ray up` needs on the head: [aws] or [gcp].
ARG EXTRAS=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/kdcl
WORKDIR /src
COPY setup.cfg pyproject.toml constraints.txt LICENSE ./
COPY release release
# The dependencies, gigabytes, in a layer of their own: it is made anew only when the files above change.
RUN mkdir kdcl_dist && touch kdcl_dist/__init__.py && echo '__version__ = "0"' > kdcl_dist/version.py \
    && /opt/kdcl/bin/pip install --constraint constraints.txt ".${EXTRAS}"
COPY kdcl_dist kdcl_dist
RUN /opt/kdcl/bin/pip install --no-deps --force-reinstall . \
    && /opt/kdcl/bin/pip uninstall --yes pip

FROM ${BASE}
LABEL org.opencontainers.image.title="kdcl_dist" \
    org.opencontainers.image.description="Online knowledge distillation by collaborative learning on Ray" \
    org.opencontainers.image.version="0.2.0" \
    org.opencontainers.image.licenses="Apache-2.0"
# By these the head of `ray up` reaches its workers; no other cluster needs them.
ARG EXTRAS=
RUN [ -z "${EXTRAS}" ] || { apt-get update && apt-get install --yes --no-install-recommends openssh-client rsync \
    && rm -rf /var/lib/apt/lists/*; }
# Shared storage is mounted there; a new volume of docker takes over who may write.
RUN useradd --uid 1000 --user-group --create-home --shell /bin/bash kdcl \
    && install --directory --mode=1777 /mnt/shared
COPY --from=build /opt/kdcl /opt/kdcl
# Login shells, which Ray's launchers use, have no PATH but the system's.
RUN ln -s /opt/kdcl/bin/kdcl /opt/kdcl/bin/ray /usr/local/bin/
COPY cluster/healthcheck.py /opt/kdcl/healthcheck.py
ENV PATH=/opt/kdcl/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RAY_AUTH_MODE=token
USER 1000:1000
WORKDIR /home/kdcl
COPY --chown=1000:1000 examples examples
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
    CMD ["/opt/kdcl/bin/python", "/opt/kdcl/healthcheck.py"]
CMD ["kdcl", "--help"]
