//! A bare client of RFC 8803: a request in the clear that shows a cookie, and plain bytes after it.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::{hang_up, open};
use crate::config::keys::TokenHash;
use crate::os::socket;
use crate::registry::gate::Pass;
use crate::registry::{Cause, Registry};
use crate::relay::{self, IdleLimits, Unsent, message};
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

/// Serves a connection whose first byte is none of this project's own protocols.
pub async fn serve(
    registry: Rc<Registry>,
    mut tcp: TcpStream,
    peer: SocketAddr,
    pass: Pass,
    first: u8,
) {
    let request = match receive(&mut tcp, first).await {
        Ok(Some(request)) => request,
        Ok(None) => return registry.refuse(Cause::NotOurs, peer.ip()),
        Err(error) => return registry.refuse_broken(&error, peer.ip()),
    };
    let served = match recognise(&registry, &request) {
        Ok((name, cookie)) => {
            pass.vouch();
            tokio::select! {
                served = convert(&registry, &name, &request, &tcp, peer) => served,
                () = registry.when(&name, || registry.bare_client(&cookie).is_none().then_some(())) => {
                    Err(io::ErrorKind::PermissionDenied.into())
                }
            }
        }
        Err(refusal) => {
            registry.refuse(Cause::UnknownKey, peer.ip());
            refuse(&registry, &tcp, &refusal).await
        }
    };
    if let Err(error) = served {
        log::debug!("bare Convert client {peer}: {error}");
        socket::abort(&tcp);
    }
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

/// Who shows this cookie, and the cookie's hash.
fn recognise(registry: &Registry, request: &[u8]) -> Result<(String, TokenHash), Message> {
    let message = Message::decode(request).map_err(|error| error.answer(request))?;
    let cookie = message.tlvs.iter().find_map(|tlv| match tlv {
        Tlv::Cookie(cookie) => Some(TokenHash::of(cookie)),
        _ => None,
    });
    let known = cookie.and_then(|cookie| Some((registry.bare_client(&cookie)?, cookie)));
    known.ok_or(Message::failed(Failure { code: ErrorCode::MissingCookie, detail: 0 }))
}

async fn convert(
    registry: &Registry,
    name: &str,
    request: &[u8],
    tcp: &TcpStream,
    peer: SocketAddr,
) -> io::Result<()> {
    let opened = match answer_at_once(request) {
        Some(answer) => Err(answer),
        None => open(registry, name, request, tcp, peer).await,
    };
    let (target, stream) = match opened {
        Ok(opened) => opened,
        Err(answer) => return refuse(registry, tcp, &answer).await,
    };
    message::send(tcp, &encode(&Message::connected())?).await?;
    let (counters, limits) = (&stream.counters, IdleLimits::default());
    if let Err(failure) = relay::plain(&target, tcp, &mut Unsent::default(), counters, limits).await
    {
        log::debug!("bare stream of {name} to {}: {failure}", stream.target);
        if let Some(cause) = failure.cause() {
            registry.fail(cause);
        }
    }
    Ok(())
}

/// The answer to a request that needs no connection, or asks for one that cannot be had.
fn answer_at_once(request: &[u8]) -> Option<Message> {
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

async fn refuse(registry: &Registry, tcp: &TcpStream, answer: &Message) -> io::Result<()> {
    if let Err(failure) = answer.outcome() {
        registry.fail(failure.word());
    }
    message::send(tcp, &encode(answer)?).await?;
    hang_up(tcp).await
}

fn encode(message: &Message) -> io::Result<Vec<u8>> {
    message.encode().map_err(io::Error::other)
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
