//! Files that must be whole and private: written beside their place, synced, then renamed.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, RenameFlags};
use zeroize::Zeroizing;

use super::ProvisionError;
use crate::config::keys::PrivateKey;
use crate::os::random;

/// Nothing read here is larger.
const MAX_BYTES: u64 = 16 << 20;
/// Permissions of files with secrets.
const SECRET_MODE: u32 = 0o600;

fn io_error<'a>(
    doing: &'static str,
    path: &'a Path,
) -> impl Fn(io::Error) -> ProvisionError + use<'a> {
    move |error| ProvisionError::Io { doing, path: path.to_owned(), error }
}

/// Reads a file that must be there.
pub fn read(path: &Path) -> Result<Vec<u8>, ProvisionError> {
    let failed = io_error("cannot read", path);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(&failed)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(&failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_BYTES) {
        let what = format!("larger than {} MiB", MAX_BYTES >> 20);
        return Err(ProvisionError::Content { path: path.to_owned(), what });
    }
    Ok(bytes)
}

/// Reads a file that may be missing.
pub fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>, ProvisionError> {
    match read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(ProvisionError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Reads a text that must be there.
pub fn read_text(path: &Path) -> Result<String, ProvisionError> {
    text(path, read(path)?)
}

/// Reads a text that may be missing.
pub fn read_text_if_present(path: &Path) -> Result<Option<String>, ProvisionError> {
    read_if_present(path)?.map(|bytes| text(path, bytes)).transpose()
}

fn text(path: &Path, bytes: Vec<u8>) -> Result<String, ProvisionError> {
    String::from_utf8(bytes).map_err(|_| ProvisionError::Content {
        path: path.to_owned(),
        what: "not UTF-8; save it in that encoding".into(),
    })
}

/// Renames a file that is damaged, so that it is neither read again nor lost; says what became of it.
pub fn set_aside(path: &Path) -> String {
    let aside = path.with_extension("json.bad");
    match fs::rename(path, &aside) {
        Ok(()) => format!("kept as {}", aside.display()),
        Err(error) => format!("it cannot be renamed: {error}"),
    }
}

/// Reads a private key. A file that others may read is refused: whoever read it has the key.
pub fn read_private_key(path: &Path) -> Result<PrivateKey, ProvisionError> {
    let text = read_secret(path, "key")?;
    std::str::from_utf8(&text)
        .map_err(|_| "a private key in base64".to_owned())
        .and_then(PrivateKey::from_file)
        .map_err(|right| ProvisionError::Content {
            path: path.to_owned(),
            what: format!("damaged; it must hold {right}"),
        })
}

/// Reads a file that nobody but its owner may read; `what` it holds.
pub fn read_secret(path: &Path, what: &str) -> Result<Zeroizing<Vec<u8>>, ProvisionError> {
    let text = Zeroizing::new(read(path)?);
    let mode = fs::metadata(path).map_err(io_error("cannot read", path))?.permissions().mode();
    if mode & 0o077 != 0 {
        let mode = mode & 0o777;
        let what = format!(
            "has mode {mode:o}, so others may have read the {what}; run 'chmod 600' on it, or delete \
             it for a new one"
        );
        return Err(ProvisionError::Content { path: path.to_owned(), what });
    }
    Ok(text)
}

/// Reads a private key, or makes one where there is none; says whether it is new.
pub fn private_key(path: &Path) -> Result<(PrivateKey, bool), ProvisionError> {
    match read_private_key(path) {
        Err(ProvisionError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other.map(|key| (key, false)),
    }
    let bytes = Zeroizing::new(random::<32>()?);
    let key = PrivateKey::from_bytes(*bytes);
    create_secret(path, key.to_file().as_bytes())?;
    Ok((key, true))
}

/// Random bytes from the kernel.
pub fn random<const N: usize>() -> Result<[u8; N], ProvisionError> {
    random::bytes().map_err(|error| ProvisionError::Io {
        doing: "cannot read",
        path: "the kernel's random numbers".into(),
        error,
    })
}

/// Writes a file that only its owner may read (0600, its folder 0700); it must not be there yet.
pub fn create_secret(path: &Path, contents: &[u8]) -> Result<(), ProvisionError> {
    write(path, contents, SECRET_MODE, RenameFlags::NOREPLACE)
}

/// Writes or replaces a file that only its owner may read.
pub fn replace_secret(path: &Path, contents: &[u8]) -> Result<(), ProvisionError> {
    write(path, contents, SECRET_MODE, RenameFlags::empty())
}

/// Puts a file in another's place.
pub fn rename(from: &Path, to: &Path) -> Result<(), ProvisionError> {
    let renamed = fs::rename(from, to).and_then(|()| File::open(folder(to))?.sync_all());
    renamed.map_err(io_error("cannot replace", to))
}

/// Removes a file, if it is there; whether it was.
pub fn remove(path: &Path) -> Result<bool, ProvisionError> {
    match fs::remove_file(path).and_then(|()| File::open(folder(path))?.sync_all()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error("cannot remove", path)(error)),
    }
}

/// Writes or replaces a file; permissions stay as they are, or begin as `mode`. Where the path is a
/// symbolic link, the file it leads to is replaced.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> Result<(), ProvisionError> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mode = fs::metadata(&path).map_or(mode, |metadata| metadata.permissions().mode() & 0o7777);
    write(&path, contents, mode, RenameFlags::empty())
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// The folder is made if need be, for its owner alone.
pub fn make_folder(path: &Path) -> Result<(), ProvisionError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(io_error("cannot make the folder", path))
}

fn write(
    path: &Path,
    contents: &[u8],
    mode: u32,
    flags: RenameFlags,
) -> Result<(), ProvisionError> {
    let folder = folder(path);
    make_folder(folder)?;
    let failed = io_error("cannot write", path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let suffix = u64::from_ne_bytes(random::<8>()?);
    let temporary = folder.join(format!(".{name}.{suffix:016x}"));
    let written = write_new(&temporary, contents, mode, folder)
        .and_then(|()| Ok(rustix::fs::renameat_with(CWD, &temporary, CWD, path, flags)?));
    if let Err(error) = written {
        // The error is what matters; a file that was never made cannot be removed either.
        let _ = fs::remove_file(&temporary);
        return Err(failed(error));
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

fn write_new(path: &Path, contents: &[u8], mode: u32, folder: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(SECRET_MODE).open(path)?;
    file.write_all(contents)?;
    hand_over(&file, folder)?;
    // Set, rather than asked for at the opening, where the umask takes away from it.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Gives a file to whom its folder belongs: what root writes for a server that runs as a user of its
/// own, that server has to read.
fn hand_over(file: &File, folder: &Path) -> io::Result<()> {
    let (file_is, folder_is) = (file.metadata()?, fs::metadata(folder)?);
    let (uid, gid) = (folder_is.uid(), folder_is.gid());
    if (file_is.uid(), file_is.gid()) == (uid, gid) {
        return Ok(());
    }
    fchown(file, Some(uid), Some(gid))
}

/// Holds other processes off the server's files until dropped.
#[derive(Debug)]
pub struct Lock {
    _folder: File,
}

impl Lock {
    /// Waits for the lock of the folder that a configuration file is in.
    pub fn beside(config: &Path) -> Result<Lock, ProvisionError> {
        let path = folder(config);
        let failed = io_error("cannot lock", path);
        let folder = File::open(path).map_err(&failed)?;
        rustix::fs::flock(&folder, FlockOperation::LockExclusive)
            .map_err(|error| failed(error.into()))?;
        Ok(Lock { _folder: folder })
    }
}
