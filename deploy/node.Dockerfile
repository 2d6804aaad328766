# A Redis server or a Sentinel behind `sentinel-runner join`:
#
#     docker build -f deploy/node.Dockerfile -t <registry>/sentinel-broker-node:0.1.0 .
#
# The program is built on the Debian release of the Redis image, so that it finds the same C library there.
FROM rust:1.95-slim-bookworm AS build
COPY . /src
WORKDIR /src
RUN cargo build --locked --release -p runner

FROM redis:7.2-bookworm
COPY --from=build /src/target/release/sentinel-runner /usr/local/bin/
# This replaces the image's own entrypoint, which is for a server that is started as root. The user `redis`
# owns `/data`.
USER redis
WORKDIR /data
ENTRYPOINT ["sentinel-runner"]
