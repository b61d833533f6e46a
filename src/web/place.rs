//! Where HTTP is served.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Access, Token};
use crate::config::agent::HttpListen;
use crate::net::IfIndex;

/// An address to listen on, on one device alone where it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The address.
    pub address: SocketAddr,
    /// The device's name; its index, since one made anew has to be listened on anew.
    pub device: Option<(String, IfIndex)>,
}

impl Place {
    /// An address, on whatever device it is reached.
    pub fn of(address: SocketAddr) -> Place {
        Place { address, device: None }
    }

    /// Who may ask there: what strangers reach takes a token.
    ///
    /// # Errors
    /// Why there is no token.
    pub fn access<E>(&self, token: impl FnOnce() -> Result<Token, E>) -> Result<Access, E> {
        match &self.device {
            Some(_) => Ok(Access::Lan),
            None if self.address.ip().is_loopback() => Ok(Access::Loopback),
            None => token().map(Access::Token),
        }
    }
}

/// The places that an `option http_listen` means, with these devices of the LAN.
pub fn places(listen: HttpListen, lan: &[(String, IfIndex)]) -> Vec<Place> {
    match listen {
        HttpListen::Address(address) => vec![Place::of(address)],
        HttpListen::Lan(port) => {
            let any = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
            let places = lan.iter().flat_map(|device| {
                any.map(|ip| Place {
                    address: SocketAddr::new(ip, port),
                    device: Some(device.clone()),
                })
            });
            places.collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_strangers_reach_takes_a_token() {
        let lan = [("br-lan".to_owned(), IfIndex(7))];
        let access = |listen| -> Vec<Result<Access, ()>> {
            places(listen, &lan).iter().map(|place| place.access(|| Err(()))).collect()
        };
        let address = |text: &str| HttpListen::Address(text.parse().unwrap());
        assert_eq!(access(address("127.0.0.1:8484")), [Ok(Access::Loopback)]);
        assert_eq!(access(address("[::1]:8484")), [Ok(Access::Loopback)]);
        assert_eq!(access(address("192.168.1.1:8484")), [Err(())]);
        assert_eq!(access(address("0.0.0.0:8484")), [Err(())]);
        assert_eq!(access(HttpListen::Lan(8484)), [Ok(Access::Lan), Ok(Access::Lan)]);
        assert_eq!(places(HttpListen::Lan(8484), &[]), []);
    }
}
