# One image for the service, its workers, the gateway and the migrations. docs/operations.md says how to
# build it for several architectures, and how to pin its base.
ARG PYTHON_IMAGE=python:3.14-slim

# The base without what installs software or changes users and mounts. Taking it away in a layer on top would
# make the image no smaller, so what is left is copied as a layer. Its Python is compiled here, because
# nothing can be written where it runs.
FROM ${PYTHON_IMAGE} AS base
RUN useradd --system --no-create-home --uid 10001 appointments \
	# Scripts of packages that need each other.
	&& rm -f /var/lib/dpkg/info/*.prerm /var/lib/dpkg/info/*.postrm \
	&& dpkg-query --show --showformat '${Package}\n' adduser apt debconf diffutils e2fsprogs gpgv \
		'libapt-pkg*' libext2fs2* 'libgcrypt*' 'libgnutls*' 'libhogweed*' 'libnettle*' 'libp11-kit*' \
		'libpam*' 'libunistring*' login login.defs mount passwd perl-base sqv tar util-linux \
		2>/dev/null | xargs dpkg --purge --force-depends --force-remove-essential \
		--force-remove-protected 2>/dev/null \
	&& find /usr -xdev -depth -type d \( -name pip -o -name 'pip-*' -o -name 'python-wheels' \
		-o -name setuptools -o -name 'setuptools-*' -o -name ensurepip -o -name idlelib -o -name lib2to3 \
		-o -name tkinter -o -name turtledemo -o -path '/usr/local/include/*' \) -exec rm -rf {} + \
	&& python3 -m compileall -q "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
	&& rm -rf /usr/bin/pip* /usr/local/bin/pip* /tmp/* /var/cache/* /var/lib/apt /var/log/*

# Only other requirements build this layer again.
FROM ${PYTHON_IMAGE} AS dependencies
RUN apt-get update -q && apt-get install -yq --no-install-recommends binutils
RUN python3 -m venv --without-pip /app/.venv
COPY requirements.txt .
RUN python3 -m pip --python /app/.venv/bin/python install --no-cache-dir \
		--disable-pip-version-check --require-hashes --only-binary :all: -r requirements.txt \
	&& find /app/.venv -type d -name tests -prune -exec rm -rf {} + \
	&& find /app/.venv -name "*.so" -exec strip --strip-unneeded {} +

# The code is used as it is, without a build backend.
FROM ${PYTHON_IMAGE} AS code
WORKDIR /app
COPY protos/appointments appointments
COPY service service
COPY gateway gateway
COPY runtime runtime
COPY public_json public_json
RUN python3 -m compileall -q .
COPY migrations migrations

FROM scratch
COPY --from=base / /
WORKDIR /app
COPY --from=dependencies /app/.venv .venv
COPY --from=code /app .
ENV PATH=/app/migrations:/app/.venv/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 \
	PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
EXPOSE 50051 3000 9464 9465 9466
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 \
	CMD ["python", "-m", "runtime.health_check"]
# Other commands: `python -m service worker`, `python -m gateway`, `migrate`.
CMD ["python", "-m", "service"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="appointments" \
	org.opencontainers.image.description="Appointment service that never double-books" \
	org.opencontainers.image.version="${VERSION}" \
	org.opencontainers.image.revision="${REVISION}"
