//! Where the bytes that count towards quotas are kept: in the run directory, which lasts until a
//! reboot and may be written often, and beside the router's key, on flash.

use std::path::{Path, PathBuf};

use crate::provision::files;
use crate::quota::{Save, Usage};
use crate::status::Trouble;

/// The file's name in either directory.
const FILE: &str = "usage.json";
/// Permissions of a new file.
const MODE: u32 = 0o644;

/// The two files.
pub struct UsageFiles {
    memory: PathBuf,
    flash: PathBuf,
    trouble: Trouble,
}

impl UsageFiles {
    /// Those of an agent with these directories.
    pub fn new(run_dir: &Path, key_dir: &Path) -> UsageFiles {
        let (memory, flash) = (run_dir.join(FILE), key_dir.join(FILE));
        UsageFiles { memory, flash, trouble: Trouble::default() }
    }

    /// What was written last, and what was wrong with files passed over, which are kept aside.
    pub fn load(&self) -> (Usage, Vec<String>) {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot = boot.trim();
        let mut problems = Vec::new();
        for path in [&self.memory, &self.flash] {
            match read(path, boot) {
                Ok(Some(usage)) => return (usage, problems),
                Ok(None) => {}
                Err(problem) => problems.push(problem),
            }
        }
        (Usage::new(boot), problems)
    }

    /// Writes it.
    ///
    /// # Errors
    /// What could not be written and why; the same failure again is none.
    pub fn save(&mut self, text: &str, save: Save) -> Result<(), String> {
        let paths = match save {
            Save::Memory => vec![&self.memory],
            Save::Flash => vec![&self.memory, &self.flash],
        };
        let failure = paths.into_iter().find_map(|path| {
            let error = files::replace(path, text.as_bytes(), MODE).err()?;
            Some(format!("{error}; what counts towards quotas would be lost by a restart"))
        });
        self.trouble.news(failure)
    }
}

/// Reads one of the files, if it is there.
fn read(path: &Path, boot: &str) -> Result<Option<Usage>, String> {
    let text = match files::read_if_present(path) {
        Ok(Some(text)) => text,
        Ok(None) => return Ok(None),
        Err(error) => return Err(format!("{error}; the quotas' bytes in it do not count")),
    };
    Usage::from_json(&text, boot).map(Some).map_err(|error| {
        let kept = files::set_aside(path);
        format!(
            "{}: damaged, its bytes do not count towards quotas: {error}; {kept}",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_saved_last_is_read_and_flash_alone_survives_a_reboot() {
        let (run, key) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut files = UsageFiles::new(run.path(), key.path());
        let boot = "boot 1";
        let text = |name: &str| Usage::new(name).to_json();
        assert_eq!(files.load().1, [""; 0]);
        files.save(&text(boot), Save::Flash).unwrap();
        files.save(&text("boot 2"), Save::Memory).unwrap();
        let saved = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(saved(&files.flash), text(boot));
        assert_eq!(saved(&files.memory), text("boot 2"));
        fs::remove_file(&files.memory).unwrap();
        assert_eq!(files.load().1, [""; 0]);
    }

    #[test]
    fn a_failure_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let mut files = UsageFiles::new(dir.path(), &dir.path().join("file"));
        files.save("", Save::Memory).unwrap();
        let error = files.save("", Save::Flash).unwrap_err();
        assert!(error.contains("file"), "{error}");
        assert_eq!(files.save("", Save::Flash), Ok(()));
        assert_eq!(files.save("", Save::Memory), Ok(()));
        assert_eq!(files.save("", Save::Flash), Err(error));
    }

    #[test]
    fn damaged_files_are_kept_aside_and_told_of_once() {
        let (run, key) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files = UsageFiles::new(run.path(), key.path());
        fs::write(&files.memory, "{").unwrap();
        fs::write(&files.flash, [0xff; 9]).unwrap();
        let problems = files.load().1;
        assert_eq!(problems.len(), 2);
        for (problem, dir) in problems.iter().zip([run.path(), key.path()]) {
            let aside = dir.join("usage.json.bad");
            assert!(problem.ends_with(&format!("kept as {}", aside.display())), "{problem}");
            assert!(aside.exists());
        }
        assert_eq!(files.load().1, [""; 0]);
    }
}
