//! stub
use std::path::Path;
use crate::config::keys::PrivateKey;
pub const AGENT_KEY: &str = "agent.key";
pub fn read_key(path: &Path) -> Result<PrivateKey, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    PrivateKey::from_file(&text)
}
