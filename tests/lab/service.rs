//! What systemd does for a service: it waits for `READY=1`, and keeps what the service leaves to its
//! next start in a file descriptor store (sd_notify(3), sd_listen_fds(3)).

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// The service's manager.
pub struct Service {
    path: PathBuf,
    socket: UnixDatagram,
    stored: Option<(String, OwnedFd)>,
    ready: bool,
}

impl Service {
    /// A manager whose socket lies in a directory.
    pub fn new(directory: &Path) -> Service {
        let path = directory.join("notify.sock");
        let socket = UnixDatagram::bind(&path).expect("bind the manager's socket");
        Service { path, socket, stored: None, ready: false }
    }

    /// The command that runs a program, given by its words, with what it left.
    pub fn command(&mut self, words: &[String]) -> Command {
        self.listen();
        self.ready = false;
        let mut command = Command::new("bash");
        let script = match &self.stored {
            // The number is the shell's, which becomes the program.
            Some((name, fd)) => {
                fcntl_setfd(fd, FdFlags::empty()).expect("let the program inherit it");
                let fd = fd.as_raw_fd();
                format!(
                    "exec 3<&{fd} {fd}<&-; \
                     LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={name} exec \"$0\" \"$@\""
                )
            }
            None => "exec \"$0\" \"$@\"".to_owned(),
        };
        command.args(["-c", &script]).args(words);
        command.env("NOTIFY_SOCKET", &self.path);
        command
    }

    /// Whether the program has said that it is ready.
    pub fn is_ready(&mut self) -> bool {
        self.listen();
        self.ready
    }

    /// Whether something of the program is kept.
    pub fn keeps(&mut self) -> bool {
        self.listen();
        self.stored.is_some()
    }

    /// Forgets what the program left, as at a stop that is no restart.
    pub fn forget(&mut self) {
        self.listen();
        self.stored = None;
    }

    /// Takes what the program has sent.
    fn listen(&mut self) {
        loop {
            let mut text = [0; 1000];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let buffers = &mut [IoSliceMut::new(&mut text)];
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let Ok(received) = recvmsg(&self.socket, buffers, &mut ancillary, flags) else {
                return;
            };
            let text = String::from_utf8_lossy(&text[..received.bytes]).into_owned();
            let fds = ancillary.drain().flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
                _ => Vec::new(),
            });
            let fd = fds.last();
            let value = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
                line.map(str::to_owned)
            };
            self.ready |= value("READY").is_some();
            if value("FDSTOREREMOVE").is_some() {
                self.stored = None;
            }
            // Watched as systemd does, it would be dropped: its other end is closed.
            if value("FDSTORE").is_some() && value("FDPOLL").as_deref() == Some("0") {
                self.stored = value("FDNAME").zip(fd);
            }
        }
    }
}
