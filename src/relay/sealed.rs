//! The relay through AEAD records: plaintext on the LAN side, records on the tunnel.

use std::array;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::pin::pin;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{
    Counters, End, Failure, IdleLimits, Progress, Side, Turn, message, pool, run, unless_blocked,
};
use crate::os::socket;
use crate::tunnel::record::{HEADER_LEN, Kind, OVERHEAD, Opened, Opener, Sealer, TAG_LEN};

/// The size of a full record in bytes. A receiver waits for a record to be complete: on a thin
/// uplink one of the largest size would hold back its first byte for long, and costs hardly less.
const RECORD: usize = 16 * 1024;
/// Records read, sealed and written at a time.
const RECORDS: usize = 16;
/// Records opened and written at a time.
const BATCH: usize = 16;

/// How long what is to be sent ahead of the payload waits for the first of it, to be one with it. The
/// kernel's scheduler prefers subflows on which nothing is under way: what follows on its heels goes over
/// another uplink, which may be three times as far.
const PATIENCE: Duration = Duration::from_millis(50);

/// The tunnel's records, and what of them was read or made before the relay begins.
pub struct Records {
    /// Makes those to be sent.
    pub sealer: Sealer,
    /// Reads those received.
    pub opener: Opener,
    /// What was read from the tunnel already and is not opened yet.
    pub carried: Vec<u8>,
    /// What is sealed and has to be sent ahead of the payload.
    pub unsent: Vec<u8>,
}

/// Relays until both directions have ended.
///
/// # Errors
/// Why it ended early. The streams have then been reset, the tunnel by a record where only the LAN
/// side broke.
pub async fn sealed(
    lan: &TcpStream,
    tunnel: &TcpStream,
    Records { sealer, opener, carried, unsent }: Records,
    counters: &Counters,
    limits: IdleLimits,
) -> Result<(), Failure> {
    let progress = Progress::new(counters, tunnel);
    let lan_end = End { side: Side::Lan, stream: lan };
    let tunnel_end = End { side: Side::Tunnel, stream: tunnel };
    let mut outbound = Outbound { tunnel: tunnel_end, sealer, unsent, torn: false };
    let to_tunnel = seal(lan_end, &mut outbound, &progress);
    let mut inbound = Inbound { tunnel: tunnel_end, opener, carried };
    let to_lan = open(&mut inbound, lan_end, &progress);
    let result = run(lan, tunnel, pin!(to_tunnel), pin!(to_lan), &progress, limits).await;
    if let Err(failure) = &result {
        socket::abort(lan);
        let tunnel_broke = matches!(failure, Failure::Broken { side: Side::Tunnel, .. });
        if tunnel_broke || !outbound.reset() {
            socket::abort(tunnel);
        }
    }
    result
}

/// The sealing half of the tunnel.
struct Outbound<'a> {
    tunnel: End<'a>,
    sealer: Sealer,
    /// Goes ahead of what is written next.
    unsent: Vec<u8>,
    /// A sealed record is not yet written to its end: nothing but its rest may follow.
    torn: bool,
}

impl Outbound<'_> {
    /// Seals the record that begins the buffer; returns its length.
    fn seal(&mut self, kind: Kind, record: &mut [u8], plaintext: usize) -> Result<usize, Failure> {
        let sealed = self.sealer.seal(kind, record, plaintext);
        sealed.map_err(|error| self.tunnel.broken(message::invalid(error)))
    }

    async fn write_all(&mut self, data: &[u8]) -> Result<(), Failure> {
        self.torn = true;
        if self.unsent.is_empty() {
            self.write_bytes(data).await?;
        } else {
            let joined = [&std::mem::take(&mut self.unsent), data].concat();
            self.write_bytes(&joined).await?;
        }
        self.torn = false;
        Ok(())
    }

    async fn write_bytes(&self, mut data: &[u8]) -> Result<(), Failure> {
        while !data.is_empty() {
            let written = self.tunnel.write(|stream| stream.try_write(data)).await?;
            data = data.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Ends this direction.
    async fn end(&mut self) -> Result<(), Failure> {
        let mut record = [0; OVERHEAD];
        let length = self.seal(Kind::End, &mut record, 0)?;
        self.write_all(record.get(..length).unwrap_or_default()).await?;
        self.tunnel.shutdown_write()
    }

    /// Tells the other end that the connection is reset; false when it cannot be told.
    fn reset(&mut self) -> bool {
        let mut record = [0; OVERHEAD];
        if self.torn || self.seal(Kind::Reset, &mut record, 0).is_err() {
            return false;
        }
        let last = [&self.unsent[..], &record].concat();
        let written = self.tunnel.stream.try_write(&last);
        written.is_ok_and(|written| written == last.len()) && self.tunnel.shutdown_write().is_ok()
    }
}

/// Copies from the LAN side into the tunnel, to its end.
async fn seal(
    lan: End<'_>,
    outbound: &mut Outbound<'_>,
    progress: &Progress<'_>,
) -> Result<(), Failure> {
    let mut turn = Turn::default();
    loop {
        if outbound.unsent.is_empty() {
            lan.readable().await?;
        } else if let Ok(readable) = timeout(PATIENCE, lan.readable()).await {
            readable?;
        } else {
            outbound.write_all(&[]).await?;
        }
        let mut buffer = pool::buffer();
        loop {
            let read = lan.stream.try_read_vectored(&mut plaintext_slots(&mut buffer));
            let moved = match unless_blocked(read).map_err(|error| lan.broken(error))? {
                None => break,
                Some(0) => {
                    drop(buffer);
                    progress.check_end(Side::Lan)?;
                    return outbound.end().await;
                }
                Some(moved) => moved,
            };
            let length = seal_slots(outbound, &mut buffer, moved)?;
            outbound.write_all(buffer.get(..length).unwrap_or_default()).await?;
            progress.moved(Side::Tunnel, moved);
            turn.spend(moved).await;
        }
    }
}

/// Where plaintext goes in a buffer that becomes a sequence of full records.
fn plaintext_slots(buffer: &mut [u8]) -> [IoSliceMut<'_>; RECORDS] {
    let mut records = buffer.chunks_exact_mut(RECORD);
    array::from_fn(|_| {
        let slot = records.next().and_then(|record| record.get_mut(HEADER_LEN..RECORD - TAG_LEN));
        IoSliceMut::new(slot.unwrap_or_default())
    })
}

/// Seals `plaintext` bytes, which are in the slots; returns the length of all records.
fn seal_slots(
    outbound: &mut Outbound<'_>,
    buffer: &mut [u8],
    plaintext: usize,
) -> Result<usize, Failure> {
    let mut left = plaintext;
    let mut length = 0_usize;
    for record in buffer.chunks_exact_mut(RECORD) {
        if left == 0 {
            break;
        }
        let here = left.min(RECORD - OVERHEAD);
        length = length.saturating_add(outbound.seal(Kind::Data, record, here)?);
        left = left.saturating_sub(here);
    }
    Ok(length)
}

/// The opening half of the tunnel.
struct Inbound<'a> {
    tunnel: End<'a>,
    opener: Opener,
    /// Bytes that were read before the relay began.
    carried: Vec<u8>,
}

/// What comes after a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Records that are there already.
    Records,
    /// Bytes yet to come.
    Bytes,
    /// Nothing: the stream has ended.
    End,
    /// Nothing: the other side was reset.
    Reset,
}

/// Records opened together.
struct Batch {
    /// Where their plaintext is; the unused ones are empty.
    plaintext: [Range<usize>; BATCH],
    /// The length of the records.
    consumed: usize,
    next: Next,
}

impl Inbound<'_> {
    fn broken(&self, kind: io::ErrorKind, what: String) -> Failure {
        self.tunnel.broken(io::Error::new(kind, what))
    }

    /// Waits until there is something to read.
    async fn readable(&self) -> Result<(), Failure> {
        if self.carried.is_empty() { self.tunnel.readable().await } else { Ok(()) }
    }

    /// Reads what there is, as much as fits; `None` when there is nothing.
    fn read(&mut self, room: &mut [u8]) -> Result<Option<usize>, Failure> {
        if self.carried.is_empty() {
            let read = unless_blocked(self.tunnel.stream.try_read(room));
            return read.map_err(|error| self.tunnel.broken(error));
        }
        let count = self.carried.len().min(room.len());
        for (to, from) in room.iter_mut().zip(self.carried.drain(..count)) {
            *to = from;
        }
        Ok(Some(count))
    }

    /// Opens the records that begin `received`, in place.
    fn open(&mut self, received: &mut [u8]) -> Result<Batch, Failure> {
        let mut batch =
            Batch { plaintext: array::from_fn(|_| 0..0), consumed: 0, next: Next::Records };
        for slot in &mut batch.plaintext {
            let start = batch.consumed;
            let opened = self.opener.next(received.get_mut(start..).unwrap_or_default());
            let opened = opened.map_err(|error| self.tunnel.broken(message::invalid(error)))?;
            let Opened::Record { kind, payload, consumed } = opened else {
                batch.next = Next::Bytes;
                break;
            };
            batch.consumed = start.saturating_add(consumed);
            match kind {
                Kind::Data => {
                    *slot = start.saturating_add(payload.start)..start.saturating_add(payload.end);
                }
                Kind::End => batch.next = Next::End,
                Kind::Reset => batch.next = Next::Reset,
                _ => {
                    let what = format!("a {kind:?} record in the middle of a stream");
                    return Err(self.broken(io::ErrorKind::InvalidData, what));
                }
            }
            if batch.next != Next::Records {
                break;
            }
        }
        Ok(batch)
    }
}

/// Copies from the tunnel to the LAN side, to its end.
async fn open(
    inbound: &mut Inbound<'_>,
    lan: End<'_>,
    progress: &Progress<'_>,
) -> Result<(), Failure> {
    let mut turn = Turn::default();
    loop {
        inbound.readable().await?;
        let mut buffer = pool::buffer();
        // Bytes at the start of the buffer: an incomplete record.
        let mut filled = 0_usize;
        loop {
            let moved = match inbound.read(buffer.get_mut(filled..).unwrap_or_default())? {
                None if filled == 0 => break,
                None => {
                    inbound.tunnel.readable().await?;
                    continue;
                }
                Some(0) => {
                    let what = "it was cut off in the middle of the stream".to_owned();
                    return Err(inbound.broken(io::ErrorKind::UnexpectedEof, what));
                }
                Some(moved) => moved,
            };
            filled = filled.saturating_add(moved);
            let mut start = 0_usize;
            loop {
                let received = buffer.get_mut(start..filled).unwrap_or_default();
                let batch = inbound.open(received)?;
                write_batch(lan, received, &batch, progress).await?;
                start = start.saturating_add(batch.consumed);
                match batch.next {
                    Next::Records => {}
                    Next::Bytes => break,
                    Next::End => return lan.shutdown_write(),
                    Next::Reset => {
                        let what = "the connection behind it was reset".to_owned();
                        return Err(inbound.broken(io::ErrorKind::ConnectionReset, what));
                    }
                }
            }
            buffer.copy_within(start..filled, 0);
            filled = filled.saturating_sub(start);
            turn.spend(moved).await;
        }
    }
}

async fn write_batch(
    lan: End<'_>,
    received: &[u8],
    batch: &Batch,
    progress: &Progress<'_>,
) -> Result<(), Failure> {
    let mut plaintext = batch.plaintext.iter().filter(|range| !range.is_empty());
    let mut slices: [IoSlice<'_>; BATCH] = array::from_fn(|_| {
        let slice = plaintext.next().and_then(|range| received.get(range.clone()));
        IoSlice::new(slice.unwrap_or_default())
    });
    let used = slices.iter().take_while(|slice| !slice.is_empty()).count();
    let mut left = slices.get_mut(..used).unwrap_or_default();
    while !left.is_empty() {
        let written = lan.write(|stream| stream.try_write_vectored(left)).await?;
        progress.moved(lan.side, written);
        IoSlice::advance_slices(&mut left, written);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::relay::tests::keys;

    #[test]
    fn no_reset_record_follows_a_torn_record() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let tunnel = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut peer, _) = listener.accept().await.unwrap();
            let [(sealer, _), _] = keys();
            let tunnel = End { side: Side::Tunnel, stream: &tunnel };
            let mut outbound = Outbound { tunnel, sealer, unsent: Vec::new(), torn: false };
            let much = vec![0; 64 << 20];
            let write = outbound.write_all(&much);
            assert!(timeout(Duration::from_millis(300), write).await.is_err());
            assert!(outbound.torn);
            // Nor one of which nothing was written: its number is used up.
            outbound.torn = false;
            let write = outbound.write_all(&[0]);
            assert!(timeout(Duration::from_millis(100), write).await.is_err());
            peer.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
            tunnel.stream.writable().await.unwrap();
            assert!(!outbound.reset());
            outbound.torn = false;
            assert!(outbound.reset());
        });
    }
}
