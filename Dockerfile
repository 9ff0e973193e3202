# docker build --target server .       PostgreSQL's image with session_limit preloaded
# docker build --target extension .    an extension image for CloudNativePG; docs/packaging.md has its layout
ARG PG_MAJOR=18

FROM postgres:${PG_MAJOR}-bookworm AS build
ARG PG_MAJOR
# Debian 12 has this Rust for its browsers.
RUN apt-get update && apt-get install -y --no-install-recommends \
    ca-certificates cargo-web rustfmt-web gcc libc6-dev libclang-dev make postgresql-server-dev-${PG_MAJOR}
WORKDIR /session_limit
COPY . .
RUN make all install DESTDIR=/files PG_CONFIG=/usr/lib/postgresql/${PG_MAJOR}/bin/pg_config \
    && strip /files/usr/lib/postgresql/${PG_MAJOR}/lib/session_limit*.so \
    && mkdir -p /files/usr/share/doc/session_limit && cp LICENSE debian/copyright /files/usr/share/doc/session_limit/

FROM postgres:${PG_MAJOR}-bookworm AS server
COPY --from=build /files/ /
CMD ["postgres", "-c", "shared_preload_libraries=session_limit"]

FROM scratch AS extension
ARG PG_MAJOR
COPY --from=build /files/usr/lib/postgresql/${PG_MAJOR}/lib/ /lib/
COPY --from=build /files/usr/share/postgresql/${PG_MAJOR}/extension/ /share/extension/
COPY --from=build /files/usr/share/doc/session_limit/ /licenses/session_limit/
