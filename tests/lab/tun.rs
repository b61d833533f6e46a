//! TUN devices. The only unsafe of the lab: the kernel has no other way to attach to a TUN device
//! than the ioctl TUNSETIFF, and no safe crate offers just that without a dependency tree.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use super::Namespace;

/// Makes a TUN device (without packet information headers) in a namespace; it goes with the file.
///
/// One read gives one packet and one write takes one; the file is non-blocking.
pub fn create(namespace: &Namespace, name: &str) -> io::Result<File> {
    // The device is made in the network namespace of the thread that opened the file.
    namespace.enter(|| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        set_interface(&file, name)?;
        Ok(file)
    })
}

#[allow(unsafe_code, reason = "TUNSETIFF has no safe form")]
fn set_interface(file: &File, name: &str) -> io::Result<()> {
    /// `struct ifreq` of linux/if.h, as TUNSETIFF reads and writes it.
    #[repr(C)]
    struct InterfaceRequest {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        padding: [u8; 22],
    }
    const { assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>()) };

    let mut request = InterfaceRequest {
        name: [0; libc::IFNAMSIZ],
        flags: (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short,
        padding: [0; 22],
    };
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "device name too long"));
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the descriptor is open for as long as `file` is borrowed; TUNSETIFF reads and writes
    // one `struct ifreq` at the pointer, which is to a live value of that size, used nowhere else.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
