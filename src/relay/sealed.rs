//! The relay through AEAD records: plaintext on the LAN side, records on the tunnel.

use std::array;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::pin::pin;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Counters, End, Failure, IdleLimits, Progress, Side, Turn, message, nudge, pool, run,
    unless_blocked,
};
use crate::os::socket;
use crate::token_bucket::LEAST_TURN;
use crate::tunnel::record::{HEADER_LEN, Kind, OVERHEAD, Opened, Opener, Sealer, TAG_LEN};

/// The size of a full record in bytes. A receiver waits for a record to be complete: on a thin
/// uplink one of the largest size would hold back its first byte for long, and costs hardly less.
pub(super) const RECORD: usize = 16 * 1024;
const _: () = assert!(RECORD <= LEAST_TURN);
/// Records read, sealed and written at a time.
const RECORDS: usize = 16;
/// Records opened and written at a time.
const BATCH: usize = 16;

/// How long what is to be sent ahead of the payload waits for the first of it, to be one with it. The
/// kernel's scheduler prefers subflows on which nothing is under way: what follows on its heels goes over
/// another uplink, which may be three times as far.
const PATIENCE: Duration = Duration::from_millis(50);

/// How soon, after both directions have ended, it is looked whether everything was delivered, and how long is
/// waited between later looks.
const FIRST_LOOK: Duration = Duration::from_millis(100);
const LAST_LOOK: Duration = Duration::from_secs(1);

/// The tunnel's records, and what of them is under way.
pub struct Records {
    /// Makes those to be sent.
    pub sealer: Sealer,
    /// Reads those received.
    pub opener: Opener,
    /// What was read from the tunnel already and is not opened yet.
    pub carried: Vec<u8>,
    /// What is sealed and has to be sent ahead of the payload.
    pub unsent: Vec<u8>,
    /// Payload that is opened and not yet written to the LAN side.
    pub undelivered: Vec<u8>,
}

impl Records {
    /// Those of a stream on which request and answer were exchanged, and what was read beyond.
    pub fn new(sealer: Sealer, opener: Opener, carried: Vec<u8>) -> Records {
        Records { sealer, opener, carried, unsent: Vec::new(), undelivered: Vec::new() }
    }
}

/// Relays until both directions have ended.
///
/// # Errors
/// Why it ended early. The streams have then been reset, the tunnel by a record where only the LAN
/// side broke.
pub async fn sealed(
    lan: &TcpStream,
    tunnel: &TcpStream,
    Records { sealer, opener, carried, unsent, undelivered }: &mut Records,
    counters: &Counters,
    limits: IdleLimits,
) -> Result<(), Failure> {
    let progress = Progress::new(counters, tunnel);
    let lan_end = End { side: Side::Lan, stream: lan };
    let tunnel_end = End { side: Side::Tunnel, stream: tunnel };
    // The tunnel's own end is a record.
    lan_end.reset_unless_ended();
    let mut outbound = Outbound { tunnel: tunnel_end, sealer, unsent };
    let to_tunnel = seal(lan_end, &mut outbound, &progress);
    let mut inbound = Inbound { tunnel: tunnel_end, opener, carried, undelivered };
    let to_lan = open(&mut inbound, lan_end, &progress);
    let result = run(lan, tunnel, pin!(to_tunnel), pin!(to_lan), &progress, limits).await;
    match &result {
        Ok(()) => delivered(tunnel, &progress, limits).await,
        Err(failure) => {
            socket::abort(lan);
            let tunnel_broke = matches!(failure, Failure::Broken { side: Side::Tunnel, .. });
            if tunnel_broke || !outbound.reset() {
                socket::abort(tunnel);
            }
        }
    }
    result
}

/// Waits until the other end has got everything. Linux lets no subflow join a connection from its first
/// DATA_FIN on (`mptcp_finish_join`), and with the last subflow forgets what is under way: therefore neither
/// End has one with it, and the connection is closed when nothing depends on it any more.
async fn delivered(tunnel: &TcpStream, progress: &Progress<'_>, limits: IdleLimits) {
    let all_is = async {
        let mut look = FIRST_LOOK;
        while !socket::is_delivered(tunnel).unwrap_or(true) {
            sleep(look).await;
            look = look.saturating_mul(2).min(LAST_LOOK);
        }
    };
    // Once the other end knows, it closes, or breaks.
    let closed = async {
        while tunnel.readable().await.is_ok()
            && matches!(unless_blocked(tunnel.try_read(&mut [0])), Ok(None))
        {}
    };
    tokio::select! {
        biased;
        () = all_is => {}
        () = closed => {}
        never = nudge(tunnel, progress) => match never {},
        () = sleep(limits.half_closed) => {}
    }
}

/// The sealing half of the tunnel.
struct Outbound<'a> {
    tunnel: End<'a>,
    sealer: &'a mut Sealer,
    /// Goes ahead of what is written next.
    unsent: &'a mut Vec<u8>,
}

impl Outbound<'_> {
    /// Seals the record that begins the buffer; returns its length.
    fn seal(&mut self, kind: Kind, record: &mut [u8], plaintext: usize) -> Result<usize, Failure> {
        let sealed = self.sealer.seal(kind, record, plaintext);
        sealed.map_err(|error| self.tunnel.broken(message::invalid(error)))
    }

    async fn write_all(&mut self, data: &[u8]) -> Result<(), Failure> {
        if self.unsent.is_empty() {
            return self.tunnel.write_all(data, self.unsent, drop).await;
        }
        let joined = [&std::mem::take(self.unsent), data].concat();
        self.tunnel.write_all(&joined, self.unsent, drop).await
    }

    /// Ends this direction.
    async fn end(&mut self) -> Result<(), Failure> {
        let mut record = [0; OVERHEAD];
        let length = self.seal(Kind::End, &mut record, 0)?;
        self.write_all(record.get(..length).unwrap_or_default()).await
    }

    /// Tells the other end that the connection is reset; false when it cannot be told.
    fn reset(&mut self) -> bool {
        let mut record = [0; OVERHEAD];
        if self.seal(Kind::Reset, &mut record, 0).is_err() {
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
    if outbound.sealer.has_ended() {
        return outbound.write_all(&[]).await;
    }
    let mut turn = Turn::new(Side::Tunnel, progress);
    loop {
        turn.wait().await;
        // What an interruption left waits for nothing.
        let patience = if progress.counters.to_tunnel() == 0 { PATIENCE } else { Duration::ZERO };
        if outbound.unsent.is_empty() {
            lan.readable().await?;
        } else if let Ok(readable) = timeout(patience, lan.readable()).await {
            readable?;
        } else {
            outbound.write_all(&[]).await?;
        }
        outbound.tunnel.unstuck().await?;
        let mut buffer = pool::buffer();
        loop {
            let room = buffer.len().min(turn.room());
            let slots = buffer.get_mut(..room).unwrap_or_default();
            let read = lan.stream.try_read_vectored(&mut plaintext_slots(slots));
            let moved = match unless_blocked(read).map_err(|error| lan.broken(error))? {
                None => break,
                Some(0) => {
                    drop(buffer);
                    progress.check_end(Side::Lan)?;
                    outbound.end().await?;
                    progress.moves.notify_waiters();
                    return Ok(());
                }
                Some(moved) => moved,
            };
            let length = seal_slots(outbound, &mut buffer, moved)?;
            // First: what an interruption leaves to be written is no longer known as payload.
            progress.counters.add(Side::Tunnel, moved);
            outbound.write_all(buffer.get(..length).unwrap_or_default()).await?;
            progress.stir(Instant::now());
            if turn.spend(moved).await || outbound.tunnel.is_stuck()? {
                break;
            }
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
    opener: &'a mut Opener,
    /// Bytes that were read already and are not opened yet.
    carried: &'a mut Vec<u8>,
    /// Payload that is opened and not yet written.
    undelivered: &'a mut Vec<u8>,
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
        if self.carried.is_empty() {
            // Its memory, too.
            *self.carried = Vec::new();
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

/// Bytes received from the tunnel; those not opened when it is dropped are carried.
struct Received<'a, 'b> {
    inbound: &'a mut Inbound<'b>,
    buffer: pool::LentBuffer,
    /// Where the next record begins.
    start: usize,
    /// Where what was received ends.
    end: usize,
}

impl Received<'_, '_> {
    /// Reads more, behind what there is, `most` bytes.
    fn read(&mut self, most: usize) -> Result<Option<usize>, Failure> {
        if self.end == self.buffer.len() {
            self.buffer.grow();
        }
        let end = self.buffer.len().min(self.end.saturating_add(most));
        let read = self.inbound.read(self.buffer.get_mut(self.end..end).unwrap_or_default())?;
        self.end = self.end.saturating_add(read.unwrap_or_default());
        Ok(read)
    }

    /// Opens what is complete of the next records, and writes their payload.
    async fn deliver(&mut self, lan: End<'_>, progress: &Progress<'_>) -> Result<Next, Failure> {
        let records = self.buffer.get_mut(self.start..self.end).unwrap_or_default();
        let batch = self.inbound.open(records)?;
        self.start = self.start.saturating_add(batch.consumed);
        write_batch(lan, records, &batch, self.inbound.undelivered, progress).await?;
        Ok(batch.next)
    }

    /// Makes room behind an incomplete record; returns how many bytes have been opened before it.
    fn compact(&mut self) -> usize {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end = self.end.saturating_sub(self.start);
        std::mem::take(&mut self.start)
    }
}

impl Drop for Received<'_, '_> {
    fn drop(&mut self) {
        let unopened = self.buffer.get(self.start..self.end).unwrap_or_default();
        self.inbound.carried.splice(..0, unopened.iter().copied());
    }
}

/// Copies from the tunnel to the LAN side, to its end.
async fn open(
    inbound: &mut Inbound<'_>,
    lan: End<'_>,
    progress: &Progress<'_>,
) -> Result<(), Failure> {
    let first = std::mem::take(inbound.undelivered);
    let written = |written| progress.moved(Side::Lan, written);
    lan.write_all(&first, inbound.undelivered, written).await?;
    drop(first);
    if inbound.opener.has_ended() {
        return lan.shutdown_write();
    }
    let mut turn = Turn::new(Side::Lan, progress);
    loop {
        turn.wait().await;
        inbound.readable().await?;
        lan.unstuck().await?;
        let mut received =
            Received { inbound: &mut *inbound, buffer: pool::buffer(), start: 0, end: 0 };
        loop {
            match received.read(turn.room())? {
                None if received.end == 0 => break,
                None => {
                    received.inbound.tunnel.readable().await?;
                    continue;
                }
                Some(0) => {
                    let what = "it was cut off in the middle of the stream".to_owned();
                    return Err(received.inbound.broken(io::ErrorKind::UnexpectedEof, what));
                }
                Some(_) => {}
            }
            loop {
                // Apart: its frame is large, and there only while data moves.
                match Box::pin(received.deliver(lan, progress)).await? {
                    Next::Records => {}
                    Next::Bytes => break,
                    Next::End => return lan.shutdown_write(),
                    Next::Reset => {
                        let what = "the connection behind it was reset".to_owned();
                        return Err(received.inbound.broken(io::ErrorKind::ConnectionReset, what));
                    }
                }
            }
            let opened = received.compact();
            if opened > 0 && turn.spend(opened).await || received.end == 0 && lan.is_stuck()? {
                break;
            }
        }
    }
}

/// Payload being written; what is left of it when it is dropped is `undelivered`.
struct Payload<'a, 'b> {
    slices: &'a mut [IoSlice<'b>],
    undelivered: &'a mut Vec<u8>,
}

impl Drop for Payload<'_, '_> {
    fn drop(&mut self) {
        self.slices.iter().for_each(|slice| self.undelivered.extend_from_slice(slice));
    }
}

async fn write_batch(
    lan: End<'_>,
    received: &[u8],
    batch: &Batch,
    undelivered: &mut Vec<u8>,
    progress: &Progress<'_>,
) -> Result<(), Failure> {
    let mut plaintext = batch.plaintext.iter().filter(|range| !range.is_empty());
    let mut slices: [IoSlice<'_>; BATCH] = array::from_fn(|_| {
        let slice = plaintext.next().and_then(|range| received.get(range.clone()));
        IoSlice::new(slice.unwrap_or_default())
    });
    let used = slices.iter().take_while(|slice| !slice.is_empty()).count();
    let slices = slices.get_mut(..used).unwrap_or_default();
    let mut payload = Payload { slices, undelivered };
    while !payload.slices.is_empty() {
        let written = lan.write(|stream| stream.try_write_vectored(payload.slices)).await?;
        progress.moved(lan.side, written);
        IoSlice::advance_slices(&mut payload.slices, written);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
