//! `GET /openapi.json`: the contract, machine-readable.

/// The document, as OpenAPI 3.1. A test generates it from the types of [`crate::api`], and fails where this differs.
pub const DOCUMENT: &str = include_str!("../openapi.json");

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod document;
#[cfg(test)]
pub(crate) use conformance::{assert_allowed, requests};
