//! What a server answers to a command.

use std::collections::BTreeMap;

use redis::Value;

/// What a server answered to one command.
pub type Reply = Result<Value, ServerError>;

/// An error that the server sent: `code` is its first word (`ERR`, `NOAUTH`), `detail` the rest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code} {detail}")]
pub struct ServerError {
    pub code: String,
    pub detail: String,
}

impl ServerError {
    /// From the line that the server sent, without its `-`.
    pub fn parse(line: &str) -> Self {
        let (code, detail) = line.split_once(' ').unwrap_or((line, ""));
        Self { code: code.to_owned(), detail: detail.to_owned() }
    }
}

/// From the value that was received.
pub(super) fn into_reply(value: Value) -> Reply {
    match value {
        Value::ServerError(error) => Err(ServerError {
            code: error.code().to_owned(),
            detail: error.details().unwrap_or_default().to_owned(),
        }),
        value => Ok(value),
    }
}

/// A reply as text. Empty if the reply has no text.
#[must_use]
pub fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.clone(),
        Value::Okay => "OK".to_owned(),
        Value::Int(number) => number.to_string(),
        _ => String::new(),
    }
}

/// The value in the reply to `CONFIG GET name` (or `SENTINEL CONFIG GET name`), which alternates names and
/// values.
#[must_use]
pub fn config_value(value: &Value) -> Option<String> {
    match value {
        Value::Array(items) => items.get(1).map(text),
        _ => None,
    }
}

/// A reply that alternates names and values, as Sentinel sends it in RESP2.
#[must_use]
pub fn fields(value: &Value) -> BTreeMap<String, String> {
    match value {
        Value::Array(items) => items.chunks_exact(2).map(|pair| (text(&pair[0]), text(&pair[1]))).collect(),
        _ => BTreeMap::new(),
    }
}

/// A reply in a few words.
pub fn brief(value: &Value) -> String {
    match value {
        Value::Nil => "(nil)".into(),
        Value::Okay => "OK".into(),
        Value::Int(number) => number.to_string(),
        Value::SimpleString(text) => text.clone(),
        Value::BulkString(bytes) => format!("({} bytes)", bytes.len()),
        Value::Array(items) => format!("({} items)", items.len()),
        _ => "(reply)".into(),
    }
}
