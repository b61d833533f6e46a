//! The token for whom HTTP is served beyond this host.

use std::fmt::Write;
use std::io;
use std::path::Path;

use super::{ProvisionError, files};
use crate::web::Token;

/// The file's name, beside the keys.
pub const HTTP_TOKEN: &str = "http.token";

/// Reads the token in a file, which is made where it is missing (128 random bits).
///
/// # Errors
/// When the file can be neither read nor made, holds no token, or others may read it.
pub fn http_token(path: &Path) -> Result<Token, ProvisionError> {
    let text = match files::read_secret(path, "token") {
        Err(ProvisionError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            let text = random()?;
            files::create_secret(path, text.as_bytes())?;
            text.into_bytes()
        }
        other => other?.to_vec(),
    };
    let text = std::str::from_utf8(&text).map_err(|_| "letters and digits alone".to_owned());
    text.and_then(Token::from_text).map_err(|right| ProvisionError::Content {
        path: path.to_owned(),
        what: format!("must hold {right}; delete it for a new one"),
    })
}

fn random() -> Result<String, ProvisionError> {
    let mut text = String::new();
    for byte in files::random::<16>()? {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text + "\n")
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_made_once_and_kept_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(HTTP_TOKEN);
        let made = http_token(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap().trim_end().len(), 32);
        assert_eq!(http_token(&path).unwrap(), made);
        fs::write(&path, "short").unwrap();
        let error = http_token(&path).unwrap_err().to_string();
        assert!(error.contains("http.token") && error.contains("16 letters"), "{error}");
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let error = http_token(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }
}
