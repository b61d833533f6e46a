//! A bare client of RFC 8803: a request in the clear that shows a cookie, and plain bytes after it.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::{Recognised, Speech, refuse};
use crate::config::keys::{Credential, TokenHash};
use crate::os::socket;
use crate::registry::{Cause, Registry};
use crate::tunnel::convert::{
    ConvertError, ErrorCode, Failure, HEADER_LEN, MAGIC, Message, Tlv, message_length,
};

/// TCP options that the kernel sends to targets by itself: no-operation and end of the list, maximum
/// segment size, window scale, SACK permitted, timestamps.
const OPTIONS_SENT: [u8; 6] = [0, 1, 2, 3, 4, 8];
/// Kinds of TCP options that clients may use here, but for those that all do (RFC 8803, 4.2.4):
/// window scale, SACK permitted, timestamps, MPTCP.
const EXTENSIONS: [u8; 4] = [3, 4, 8, 30];
/// Kinds of TCP options that have no length.
const END_OF_LIST: u8 = 0;
const NO_OPERATION: u8 = 1;

/// Reads the request of a connection whose first byte is none of this project's own protocols; `None`
/// when it was refused.
pub(super) async fn recognise(
    registry: &Registry,
    tcp: &mut TcpStream,
    peer: SocketAddr,
    first: u8,
) -> Option<Recognised> {
    if !registry.config.borrow().allow_plain_convert {
        registry.refuse(Cause::NotOurs, peer.ip());
        return None;
    }
    let request = match receive(tcp, first).await {
        Ok(Some(request)) => request,
        Ok(None) => {
            registry.refuse(Cause::NotOurs, peer.ip());
            return None;
        }
        Err(error) => {
            registry.refuse_broken(&error, peer.ip());
            return None;
        }
    };
    let refusal = match identify(registry, &request) {
        Ok((client, credential)) => {
            let state = registry.client(&client);
            state.address.set(Some(peer));
            state.since.set(Some(Instant::now()));
            return Some(Recognised { client, credential, speech: Speech::Clear(request) });
        }
        Err(refusal) => refusal,
    };
    registry.refuse(Cause::UnknownKey, peer.ip());
    if let Err(error) = refuse(registry, tcp, &mut Speech::Clear(Vec::new()), &refusal).await {
        log::debug!("bare Convert client {peer}: {error}");
        socket::abort(&*tcp);
    }
    None
}

/// Reads a message, if that is what the connection begins with; a header that cannot be read is all
/// there is of it.
async fn receive(tcp: &mut TcpStream, first: u8) -> io::Result<Option<Vec<u8>>> {
    let mut header = [first; HEADER_LEN];
    if let Some((_, rest)) = header.split_first_mut() {
        tcp.read_exact(rest).await?;
    }
    if !is_convert(&header) {
        return Ok(None);
    }
    let mut message = header.to_vec();
    if let Ok(length) = message_length(&header) {
        message.resize(length, 0);
        tcp.read_exact(message.get_mut(HEADER_LEN..).unwrap_or_default()).await?;
    }
    Ok(Some(message))
}

/// Whether the magic number is right, whatever the version.
fn is_convert(header: &[u8; HEADER_LEN]) -> bool {
    let [_, _, magic @ ..] = *header;
    magic == MAGIC.to_be_bytes()
}

/// Who shows the cookie of this request.
fn identify(registry: &Registry, request: &[u8]) -> Result<(String, Credential), Message> {
    let message = Message::decode(request).map_err(|error| error.answer(request))?;
    let known = message.tlvs.iter().find_map(|tlv| {
        let Tlv::Cookie(cookie) = tlv else { return None };
        let cookie = TokenHash::of(cookie);
        Some((registry.bare_client(&cookie)?, Credential::Cookie(cookie)))
    });
    known.ok_or(Message::failed(Failure { code: ErrorCode::MissingCookie, detail: 0 }))
}

/// The answer to a request that needs no connection, or asks for one that cannot be had.
pub(super) fn answer_at_once(request: &[u8]) -> Option<Message> {
    let message = Message::decode(request).ok()?;
    let only = |tlv| Message { tlvs: vec![tlv], unknown: Vec::new() };
    match message.target() {
        Err(ConvertError::NoConnect) if message.tlvs.contains(&Tlv::Info) => {
            Some(only(Tlv::SupportedTcpExtensions(EXTENSIONS.to_vec())))
        }
        Ok((_, options)) => {
            let Some(mut kinds) = option_kinds(options) else {
                return Some(ConvertError::BadOptions.answer(request));
            };
            kinds.retain(|kind| !OPTIONS_SENT.contains(kind));
            let code = ErrorCode::UnsupportedTcpOption;
            (!kinds.is_empty()).then(|| only(Tlv::Error { code, value: kinds }))
        }
        Err(_) => None,
    }
}

/// The kinds of TCP options in a list (RFC 9293, 3.1); `None` where their lengths do not add up.
fn option_kinds(mut options: &[u8]) -> Option<Vec<u8>> {
    let mut kinds = Vec::new();
    while let Some((&kind, rest)) = options.split_first() {
        options = match kind {
            END_OF_LIST => break,
            NO_OPERATION => rest,
            _ => {
                kinds.push(kind);
                let length = usize::from(*rest.first()?).checked_sub(1)?;
                rest.get(length.max(1)..)?
            }
        };
    }
    Some(kinds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_the_kernel_does_not_send_are_named() {
        assert_eq!(option_kinds(&[2, 4, 5, 0xb4, 1, 3, 3, 7, 30, 4, 0, 0]), Some(vec![2, 3, 30]));
        assert_eq!(option_kinds(&[0, 9, 9]), Some(vec![]));
        for truncated in [&[2][..], &[2, 4, 5], &[30, 0]] {
            assert_eq!(option_kinds(truncated), None, "{truncated:?}");
        }
    }

    #[test]
    fn a_header_of_another_version_is_convert_all_the_same() {
        assert!(is_convert(&[2, 9, 0x22, 0x63]) && is_convert(&[1, 0, 0x22, 0x63]));
        assert!(!is_convert(&[1, 9, 0x22, 0x64]) && !is_convert(b"GET "));
    }
}
