//! Reading JSON.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads JSON text.
///
/// Always as bytes: serde_json's code for texts would be a second copy of all of it in the program.
///
/// # Errors
/// What is wrong with the text, and where.
pub fn from_str<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_slice(text.as_bytes())
}

/// Reads the parameters of a request; `None` where it has none.
///
/// # Errors
/// What is wrong with them, in words.
pub fn params<T: DeserializeOwned>(params: Value) -> Result<Option<T>, String> {
    serde_json::from_value(params).map_err(|error| format!("wrong parameters: {error}"))
}
