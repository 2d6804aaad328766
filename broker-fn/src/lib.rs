//! The broker: collects the addresses of Redis servers and Sentinels that want to form one system.
//!
//! It is a Spin component (WebAssembly). It answers HTTP and keeps registrations in Spin's key-value store, and it
//! never talks to Redis: that is the runner's part, which reads the roster from here.
//!
//! | request | does | answers |
//! | --- | --- | --- |
//! | `POST /redis`, `POST /sentinel` | registers the caller | `201` with `Location`, `200` after |
//! | `GET /redis`, `GET /sentinel` | lists registrations, first registered first | `200` |
//! | `GET /redis/{host}:{port}`, `GET /sentinel/{host}:{port}` | shows one registration | `200`, `404` |
//! | `DELETE /redis/{host}:{port}`, `DELETE /sentinel/{host}:{port}` | forgets one registration | `204` |
//! | `GET /` | the whole roster of the group; to a client that prefers `text/html`, a page that shows it | `200`, `304` |
//! | `GET /?wait=20s` | the same, once it changes or that time has passed | `200`, `304` |
//! | `DELETE /` | forgets the group | `204` |
//! | `PUT /outcome` | stores what came of a run | `204` |
//! | `GET /groups` | every group with its counts | `200` |
//! | `GET /config` | the settings in force that are no secret | `200` |
//! | `GET /metrics` | registrations by group and kind, as Prometheus reads them | `200` |
//! | `GET /openapi.json` | all of this, machine-readable | `200` |
//! | `GET /healthcheck` | whether the store can be reached | `200`, `503` |
//!
//! What acts on a group acts on the default group, and on another one under `/groups/{group}`. Errors are RFC 9457
//! problem details; a client that reads and prefers `text/html` is told them as pages. Where tokens are asked for,
//! [`access`] says what each may do.
//!
//! # Layout
//!
//! - [`api`]: the wire contract, all that a client needs; the only module without the `service` feature.
//! - [`settings`]: Spin variables → what the component needs.
//! - [`registry`]: keys, encoding and order of what is stored, over any [`registry::Store`].
//! - [`routes`]: HTTP → registry → HTTP. It runs natively, too, as do those that it uses:
//!   [`access`] (who may do what), [`outcome`] (what is believed of a run), [`problem`] (errors → HTTP), [`page`] (what a browser is shown), [`metrics`] and
//!   [`openapi`].
//! - [`turns`]: one store for all requests that an instance serves at once.
//! - `component` (WebAssembly only): the entry point, and Spin's store and variables behind the above: by WASI 0.3 or, with the feature
//!   `wasi-0-2`, by WASI 0.2.

// By this name the SDK's macro finds it.
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
