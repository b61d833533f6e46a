//! Where the clients' bytes a day are kept: beside the configuration.

use std::path::{Path, PathBuf};

use crate::accounts::Accounts;
use crate::provision::{TRAFFIC, files};
use crate::status::Trouble;

/// The file.
pub struct AccountsFile {
    path: PathBuf,
    trouble: Trouble,
}

impl AccountsFile {
    /// That of a server with this configuration file.
    pub fn new(config: &Path) -> AccountsFile {
        AccountsFile { path: config.with_file_name(TRAFFIC), trouble: Trouble::default() }
    }

    /// What was saved, and what is wrong with it, which begins a new count.
    pub fn load(&self) -> (Accounts, Option<String>) {
        match crate::provision::read_accounts(&self.path) {
            Ok(accounts) => (accounts, None),
            Err(error) => {
                let kept = files::set_aside(&self.path);
                let text = format!("{error}; the clients' bytes a day begin anew, {kept}");
                (Accounts::default(), Some(text))
            }
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// Why not, in words; the same failure again is none.
    pub fn save(&mut self, text: &str) -> Result<(), String> {
        let failure = files::replace_secret(&self.path, text.as_bytes()).err();
        let failure = failure.map(|e| format!("{e}; a restart would forget the clients' bytes"));
        self.trouble.news(failure)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_damaged_file_is_kept_aside_and_told_of_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = AccountsFile::new(&folder.path().join("server.toml"));
        assert_eq!(file.load().1, None, "none yet");
        fs::write(&file.path, "{").unwrap();
        let problem = file.load().1.unwrap();
        let aside = folder.path().join("traffic.json.bad");
        assert!(problem.ends_with(&format!("kept as {}", aside.display())), "{problem}");
        assert!(aside.exists());
        assert_eq!(file.load().1, None);
    }

    #[test]
    fn a_failure_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let mut file = AccountsFile::new(&folder.path().join("file/server.toml"));
        assert!(file.save("").unwrap_err().contains("file"));
        assert_eq!(file.save(""), Ok(()));
    }
}
