# backup-manager in a container: built in one stage, run in another that contains only Debian and the program.
# Plain Dockerfile syntax: the old builder and BuildKit make the same image.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build

# The dependencies take most of the build time and change seldom: they are built with an empty program, in a layer of
# their own that is cached until these files change. (Cargo needs every target that its manifest names.)
COPY Cargo.toml Cargo.lock ./
COPY benches benches
RUN mkdir src \
    && echo 'fn main() {}' >src/main.rs \
    && : >src/lib.rs \
    && cargo build --release --locked \
    && rm -r src

COPY migrations migrations
COPY src src
# The files of a clone may be older than the empty program, and cargo compares modification times.
RUN touch src/main.rs src/lib.rs \
    && cargo build --release --locked --bin backup-manager \
    && strip target/release/backup-manager

FROM debian:bookworm-slim
RUN useradd --uid 1000 --user-group --home-dir /app --no-create-home --shell /usr/sbin/nologin backupuser \
    && mkdir -p /app/data /app/backups /app/logs /app/restore /app/db \
    && chown -R backupuser:backupuser /app \
    # A new volume inherits this mode. It allows any BACKUP_UID; the files that the program writes there are private.
    && chmod 0777 /app/db
COPY --from=build /build/target/release/backup-manager /usr/local/bin/backup-manager

WORKDIR /app
ENV BACKUP_HOME=/app BACKUP_DB=/app/db/backup.db
USER backupuser
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 CMD ["backup-manager", "status", "--service"]
ENTRYPOINT ["backup-manager"]
CMD ["serve"]
