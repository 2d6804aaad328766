//! `GET /openapi.json`: the contract for machines.

/// The OpenAPI 3.1 document. A test generates it from the types of [`crate::api`], and fails if this text
/// differs.
pub const DOCUMENT: &str = include_str!("../openapi.json");

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod document;
#[cfg(test)]
pub(crate) use conformance::{assert_allowed, requests};
