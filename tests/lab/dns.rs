//! A DNS server that knows one host.

use std::fs;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::{Lab, Namespace, TARGET_V4};

/// A running DNS server on the web server's host, which is everybody's (`/etc/resolv.conf`) until it
/// is dropped.
pub struct DnsServer {
    address: Arc<Mutex<Option<IpAddr>>>,
}

impl DnsServer {
    /// Every name stands for this address.
    pub fn start(lab: &Lab, address: impl Into<IpAddr>) -> DnsServer {
        let file = lab.work().join("resolv.conf");
        fs::write(&file, format!("nameserver {TARGET_V4}\n")).expect("write resolv.conf");
        let mount = Command::new("mount").arg("--bind").arg(&file).arg("/etc/resolv.conf").status();
        assert!(mount.expect("run mount").success(), "mount resolv.conf");
        let address = Arc::new(Mutex::new(Some(address.into())));
        let socket = bind(&lab.target).expect("listen on port 53");
        let known = Arc::clone(&address);
        thread::spawn(move || serve(&socket, &known));
        DnsServer { address }
    }

    /// What every name stands for from now on; `None`: no name exists.
    pub fn set(&self, address: Option<IpAddr>) {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        // Nothing can be mounted over a file that went with its lab.
        let _ = Command::new("umount").arg("/etc/resolv.conf").status();
    }
}

fn bind(namespace: &Namespace) -> io::Result<UdpSocket> {
    namespace.enter(|| UdpSocket::bind((TARGET_V4, 53)))
}

fn serve(socket: &UdpSocket, known: &Mutex<Option<IpAddr>>) {
    let mut packet = [0; 512];
    while let Ok((length, client)) = socket.recv_from(&mut packet) {
        let address = *known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = answer(&packet[..length], address) {
            // A client that is gone asks again.
            let _ = socket.send_to(&answer, client);
        }
    }
}

/// RFC 1035 and 3596: the question, and where it asks for an address of that family, one record.
fn answer(packet: &[u8], address: Option<IpAddr>) -> Option<Vec<u8>> {
    let name = packet.get(12..)?.iter().position(|byte| *byte == 0)?;
    let question = packet.get(12..12 + name + 5)?;
    let code = if address.is_some() { 0 } else { 3 };
    let (kind, data) = match address {
        Some(IpAddr::V4(address)) => (1, address.octets().to_vec()),
        Some(IpAddr::V6(address)) => (28, address.octets().to_vec()),
        None => (0, Vec::new()),
    };
    let record = question.ends_with(&[0, kind, 0, 1]);
    let mut answer = packet[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(record), 0, 0, 0, 0]);
    answer.extend(question);
    if record {
        let length = u8::try_from(data.len()).ok()?;
        answer.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0, length]);
        answer.extend(data);
    }
    Some(answer)
}
