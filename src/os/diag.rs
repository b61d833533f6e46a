//! Whether MPTCP sockets can be listed (`sock_diag(7)`, `linux/inet_diag.h`), as `ss -M` does.

use std::io;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::netlink::{Refusal, Request, Requester};

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// Bytes of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// `AF_INET`.
const INET: u8 = 2;
/// `INET_DIAG_REQ_PROTOCOL`, for numbers beyond the header's byte.
const PROTOCOL: u16 = 3;
/// `IPPROTO_MPTCP`.
const MPTCP: u32 = 262;

/// Whether the kernel lists MPTCP sockets. None is asked for: the states are left empty.
///
/// # Errors
/// `ENOENT` where a part of the kernel is missing (`CONFIG_INET_MPTCP_DIAG`), or a socket's.
pub async fn lists_mptcp() -> io::Result<()> {
    let mut header = [0; REQUEST];
    if let Some(family) = header.first_mut() {
        *family = INET;
    }
    let request = Request::dump(BY_FAMILY, &header).u32(PROTOCOL, MPTCP);
    let mut requester = Requester::open(NETLINK_SOCK_DIAG)?;
    requester.request(&request).await.map(drop).map_err(|refusal: Refusal| refusal.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_a_plain_yes_or_no() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        match runtime.block_on(lists_mptcp()) {
            Ok(()) => {}
            // The refusal of a kernel without it, and none of our making.
            Err(error) => assert!(error.to_string().contains("ENOENT"), "{error}"),
        }
    }
}
