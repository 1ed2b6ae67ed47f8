# One image for every role: `h2kbus scheduler`, `h2kbus worker`, and the client commands.
# A site without access to the official image passes a base of its own: Debian or Ubuntu with Python 3.11 or newer and its venv module.
ARG PYTHON_IMAGE=python:3.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
RUN python3 -m venv /opt/h2kbus
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY requirements/build.lock requirements/runtime.lock requirements/
# Build tools first, and no build isolation: a build would otherwise fetch its tools without hashes.
RUN /opt/h2kbus/bin/pip install --require-hashes --requirement requirements/build.lock \
    && /opt/h2kbus/bin/pip install --require-hashes --no-build-isolation --requirement requirements/runtime.lock
COPY . .
RUN /opt/h2kbus/bin/pip install --no-deps --no-build-isolation .

FROM ${PYTHON_IMAGE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends qemu-utils \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /var/lib/h2kbus --shell /usr/sbin/nologin h2kbus \
    && install --directory --owner h2kbus --group h2kbus /images
COPY --from=build /opt/h2kbus /opt/h2kbus
ENV PATH=/opt/h2kbus/bin:$PATH PYTHONUNBUFFERED=1
USER h2kbus
WORKDIR /var/lib/h2kbus
ENTRYPOINT ["h2kbus"]
