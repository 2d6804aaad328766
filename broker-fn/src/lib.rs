//! The broker: collects the addresses of Redis servers and Sentinels that want to form one system.
//!
//! It is a Spin component (WebAssembly). It answers HTTP and keeps registrations in Spin's key-value store.
//! It never connects to Redis: the runner does that, with the roster that it reads from the broker.
//!
//! | request | does | answers |
//! | --- | --- | --- |
//! | `POST /redis`, `POST /sentinel` | registers the caller | `201` with `Location`, `200` after |
//! | `GET /redis`, `GET /sentinel` | lists registrations, first registered first | `200` |
//! | `GET /redis/{host}:{port}`, `GET /sentinel/{host}:{port}` | shows one registration | `200`, `404` |
//! | `DELETE /redis/{host}:{port}`, `DELETE /sentinel/{host}:{port}` | deletes one registration | `204` |
//! | `GET /` | the group's roster; as a page for a client that prefers `text/html` | `200`, `304` |
//! | `GET /?wait=20s` | the same, once it changes or that time has passed | `200`, `304` |
//! | `DELETE /` | deletes the group | `204` |
//! | `PUT /outcome` | stores the outcome of a run | `204` |
//! | `GET /groups` | every group with its counts | `200` |
//! | `GET /config` | the settings in force, without the secrets | `200` |
//! | `GET /metrics` | registrations by group and kind, as Prometheus reads them | `200` |
//! | `GET /openapi.json` | this contract for machines | `200` |
//! | `GET /healthcheck` | whether the store answers | `200`, `503` |
//!
//! The paths that act on a group act on the default group. Below `/groups/{group}` they act on that group.
//! Errors are RFC 9457 problem details. A client that reads and prefers `text/html` gets them as pages. If
//! tokens are set, [`access`] defines what each token may do.
//!
//! # Layout
//!
//! - [`api`]: the wire contract, which is all that a client needs. It is the only module without the
//!   `service` feature.
//! - [`settings`]: Spin variables → what the component needs.
//! - [`registry`]: keys, encoding and order of what is stored, over any [`registry::Store`].
//! - [`routes`]: HTTP → registry → HTTP. It also runs natively, as do the modules that it uses: [`access`]
//!   (which token may do what), [`outcome`] (which outcomes the broker accepts), [`problem`] (errors → HTTP),
//!   [`page`] (pages for browsers), [`metrics`] and [`openapi`].
//! - [`turns`]: one store for all requests that an instance serves at once.
//! - `component` (WebAssembly only): the entry point, and Spin's store and variables for the modules above.
//!   It uses WASI 0.3, or with the feature `wasi-0-2`, WASI 0.2.

// The SDK's macro expects the SDK under this name.
#[cfg(all(feature = "wasi-0-2", target_family = "wasm"))]
extern crate spin_sdk_5 as spin_sdk;

#[cfg(feature = "service")]
pub mod access;
pub mod api;
#[cfg(all(any(feature = "wasi-0-2", feature = "wasi-0-3"), target_family = "wasm"))]
mod component;
#[cfg(feature = "service")]
pub mod metrics;
#[cfg(feature = "service")]
pub mod openapi;
#[cfg(feature = "service")]
pub mod outcome;
#[cfg(feature = "service")]
pub mod page;
#[cfg(feature = "service")]
pub mod problem;
#[cfg(feature = "service")]
pub mod registry;
#[cfg(feature = "service")]
pub mod routes;
#[cfg(feature = "service")]
pub mod settings;
#[cfg(feature = "service")]
pub mod turns;
