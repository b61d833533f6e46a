//! Reading JSON.

use serde::de::DeserializeOwned;

/// Reads JSON text.
///
/// Always as bytes: serde_json's code for texts would be a second copy of all of it in the program.
///
/// # Errors
/// What is wrong with the text, and where.
pub fn from_str<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_slice(text.as_bytes())
}
