# Two images: `plain` for schedulers, the client commands and workers that convert and inspect; `guests` for workers
# that also open, repair and boot guests. Both run as user 10001.
# A site without access to the official image passes a base of its own: Debian or Ubuntu with Python 3.11 or newer and
# its venv module. `guests` takes libguestfs from that base's distribution.
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

FROM ${PYTHON_IMAGE} AS plain
RUN apt-get update \
    && apt-get install --yes --no-install-recommends qemu-utils bubblewrap \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /var/lib/h2kbus --shell /usr/sbin/nologin h2kbus \
    && install --directory --owner h2kbus --group h2kbus /images
COPY --from=build /opt/h2kbus /opt/h2kbus
# A worker in a container reaches what is mounted at /images, whatever its jobs name.
ENV PATH=/opt/h2kbus/bin:$PATH PYTHONUNBUFFERED=1 H2KBUS_IMAGE_ROOTS=/images H2KBUS_OUTPUT_ROOTS=/images
USER h2kbus
WORKDIR /var/lib/h2kbus
ENTRYPOINT ["h2kbus"]

FROM plain AS guests
USER root
# The appliance boots this image's own kernel, which its user must be able to read.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        linux-image-amd64 qemu-system-x86 ovmf libguestfs-tools python3-guestfs libguestfs-xfs virt-v2v nbdkit \
    && rm -rf /var/lib/apt/lists/* \
    && chmod 0644 /boot/vmlinuz-*
USER h2kbus
