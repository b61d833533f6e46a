//! The kernel's errors, with its own explanation where it gives one.

use std::{fmt, io};

use rustix::io::Errno;

use super::{Message, attributes, read};

/// `NLM_F_CAPPED`: an error does not repeat the request's payload.
pub(super) const CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: an error carries attributes.
pub(super) const ACK_ATTRIBUTES: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`.
pub(super) const ERROR_TEXT: u16 = 1;

/// Why the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error number.
    pub errno: i32,
    /// The kernel's own explanation (extended acknowledgement), or empty.
    pub explanation: String,
}

impl Refusal {
    /// Whether the error number is one of these.
    pub fn is_one_of(&self, errors: &[Errno]) -> bool {
        errors.iter().any(|error| error.raw_os_error() == self.errno)
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        match error.raw_os_error() {
            Some(errno) => Refusal { errno, explanation: String::new() },
            None => Refusal { errno: Errno::IO.raw_os_error(), explanation: error.to_string() },
        }
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> io::Error {
        io::Error::new(io::Error::from_raw_os_error(refusal.errno).kind(), refusal.to_string())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&errno_text(self.errno))?;
        if self.explanation.is_empty() { Ok(()) } else { write!(f, ": {}", self.explanation) }
    }
}

impl std::error::Error for Refusal {}

/// An error number as `EEXIST (File exists)`.
pub fn errno_text(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    let text = text.rsplit_once(" (os error").map_or(text.as_str(), |(text, _)| text);
    match NAMES.iter().find(|(known, _)| known.raw_os_error() == errno) {
        Some((_, name)) => format!("{name} ({text})"),
        None => format!("errno {errno} ({text})"),
    }
}

/// The names of the errors that network configuration meets.
const NAMES: &[(Errno, &str)] = &[
    (Errno::PERM, "EPERM"),
    (Errno::NOENT, "ENOENT"),
    (Errno::SRCH, "ESRCH"),
    (Errno::INTR, "EINTR"),
    (Errno::IO, "EIO"),
    (Errno::NXIO, "ENXIO"),
    (Errno::AGAIN, "EAGAIN"),
    (Errno::NOMEM, "ENOMEM"),
    (Errno::ACCESS, "EACCES"),
    (Errno::BUSY, "EBUSY"),
    (Errno::EXIST, "EEXIST"),
    (Errno::NODEV, "ENODEV"),
    (Errno::INVAL, "EINVAL"),
    (Errno::MFILE, "EMFILE"),
    (Errno::NFILE, "ENFILE"),
    (Errno::NOSPC, "ENOSPC"),
    (Errno::ROFS, "EROFS"),
    (Errno::RANGE, "ERANGE"),
    (Errno::NOSYS, "ENOSYS"),
    (Errno::OPNOTSUPP, "EOPNOTSUPP"),
    (Errno::PROTONOSUPPORT, "EPROTONOSUPPORT"),
    (Errno::AFNOSUPPORT, "EAFNOSUPPORT"),
    (Errno::ADDRINUSE, "EADDRINUSE"),
    (Errno::ADDRNOTAVAIL, "EADDRNOTAVAIL"),
    (Errno::NETDOWN, "ENETDOWN"),
    (Errno::NETUNREACH, "ENETUNREACH"),
    (Errno::NOBUFS, "ENOBUFS"),
    (Errno::TIMEDOUT, "ETIMEDOUT"),
    (Errno::HOSTUNREACH, "EHOSTUNREACH"),
    (Errno::MSGSIZE, "EMSGSIZE"),
];

/// The meaning of an `NLMSG_ERROR`.
pub(super) fn acknowledgement(message: &Message<'_>) -> Result<(), Refusal> {
    let errno = read(message.payload, 0).map_or(0, i32::from_ne_bytes).saturating_neg();
    if errno == 0 {
        return Ok(());
    }
    // The request's header follows the number, and unless capped, its payload.
    let request = match message.flags & CAPPED {
        0 => read(message.payload, 4).map_or(0, u32::from_ne_bytes),
        _ => 16,
    };
    let start = usize::try_from(request).ok().and_then(|length| length.checked_add(4));
    let explanation = match start.and_then(|start| message.payload.get(start..)) {
        Some(rest) if message.flags & ACK_ATTRIBUTES != 0 => attributes(rest)
            .find(|attribute| attribute.kind == ERROR_TEXT)
            .and_then(|attribute| attribute.text().map(str::to_owned))
            .unwrap_or_default(),
        _ => String::new(),
    };
    Err(Refusal { errno, explanation })
}

/// The meaning of an `NLMSG_DONE`: a dump may fail half-way.
pub(super) fn dump_end(message: &Message<'_>) -> Result<(), Refusal> {
    match read(message.payload, 0).map_or(0, i32::from_ne_bytes) {
        errno if errno < 0 => {
            Err(Refusal { errno: errno.saturating_neg(), explanation: String::new() })
        }
        _ => Ok(()),
    }
}
