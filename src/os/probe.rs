//! The UDP sockets that probes and datagrams leave by: one for each uplink, bound to its address and
//! device.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use litemap::LiteMap;
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::controller::Outlet;
use crate::os::{runtime, socket};
use crate::tunnel::datagram::{DATAGRAM_MAX, session_of};

struct Prober {
    outlet: Outlet,
    server: SocketAddr,
    socket: Rc<UdpSocket>,
    reader: AbortHandle,
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// What takes the datagrams that arrive.
pub type Taker = Rc<dyn Fn(&mut [u8])>;

/// The sockets in use, by slot.
pub struct Probers {
    sockets: RefCell<LiteMap<u8, Prober>>,
    received: mpsc::Sender<(u8, Vec<u8>)>,
    datagrams: Taker,
}

impl Probers {
    /// No sockets yet. What they receive goes to `datagrams` at once if it looks like one; otherwise to
    /// `received` with the slot's number, and is dropped while that is full.
    pub fn new(received: mpsc::Sender<(u8, Vec<u8>)>, datagrams: Taker) -> Probers {
        Probers { sockets: RefCell::default(), received, datagrams }
    }

    /// Has sockets on these outlets, towards `server`, and on no others.
    ///
    /// Those that are right already are kept, and with them their mappings in a NAT. One that cannot
    /// be made is missing, which [`Probers::send`] then reports.
    pub fn set(&self, outlets: &[Outlet], server: SocketAddr) {
        let mut sockets = self.sockets.borrow_mut();
        sockets.retain(|_, prober| prober.server == server && outlets.contains(&prober.outlet));
        for outlet in outlets {
            if sockets.contains_key(&outlet.slot) {
                continue;
            }
            match self.open(outlet, server) {
                Ok(prober) => {
                    sockets.insert(outlet.slot, prober);
                }
                Err(error) => log::debug!("cannot probe over {}: {error}", outlet.device),
            }
        }
    }

    fn open(&self, outlet: &Outlet, server: SocketAddr) -> io::Result<Prober> {
        let socket = socket::udp_socket((outlet.source, 0).into(), Some(&outlet.device))?;
        let socket = Rc::new(socket);
        let reading = socket.clone();
        let (slot, received) = (outlet.slot, self.received.clone());
        let datagrams = self.datagrams.clone();
        let reader = runtime::spawn(async move {
            let mut buffer = vec![0; DATAGRAM_MAX];
            loop {
                match reading.recv_from(&mut buffer).await {
                    Ok((length, from)) if from == server => {
                        let data = buffer.get_mut(..length).unwrap_or_default();
                        if session_of(data).is_some() {
                            datagrams(data);
                        } else {
                            // A lost reply is a lost probe; health takes it from there.
                            let _ = received.try_send((slot, data.to_vec()));
                        }
                    }
                    Ok(_) => {}
                    // An ICMP error of an earlier probe; the next read waits again.
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        });
        Ok(Prober { outlet: outlet.clone(), server, socket, reader: reader.abort_handle() })
    }

    /// Sends a probe or a datagram over the uplink with this slot.
    ///
    /// # Errors
    /// The kernel's, or `NotConnected` where there is no socket.
    pub fn send(&self, slot: u8, probe: &[u8]) -> io::Result<()> {
        let sockets = self.sockets.borrow();
        let prober = sockets.get(&slot).ok_or(io::ErrorKind::NotConnected)?;
        // Not by the runtime, to which a new socket is not writable before its next look.
        SockRef::from(&*prober.socket).send_to(probe, &prober.server.into()).map(drop)
    }
}
