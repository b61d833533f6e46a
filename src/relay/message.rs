//! Single records ahead of the payload: the request and its answer.

use std::io;

use tokio::net::TcpStream;

use crate::tunnel::record::{Kind, Opened, Opener, RecordError};

/// The longest record taken here, in bytes: an RFC 8803 message has at most 1,020.
const LONGEST: usize = 2048;
/// Bytes read at a time.
const CHUNK: usize = 4096;

/// A broken record as an error of its stream.
pub fn invalid(error: RecordError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Writes all of `data`.
///
/// # Errors
/// The stream's.
pub async fn send(stream: &TcpStream, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match stream.try_write(data) {
            Ok(written) => data = data.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads a record; what was read beyond it stays in `carried`. `None` when the stream ends before
/// one begins. A stream on which nothing arrives holds no buffer.
///
/// # Errors
/// The stream's, `InvalidData` for a record that is not authentic or too long, `UnexpectedEof`.
pub async fn receive(
    stream: &TcpStream,
    opener: &mut Opener,
    carried: &mut Vec<u8>,
) -> io::Result<Option<(Kind, Vec<u8>)>> {
    loop {
        match opener.next(carried).map_err(invalid)? {
            Opened::Record { kind, payload, consumed } => {
                let message = carried.get(payload).unwrap_or_default().to_vec();
                carried.drain(..consumed);
                return Ok(Some((kind, message)));
            }
            Opened::Need(length) if length > LONGEST => {
                return Err(invalid(RecordError::BadLength(length)));
            }
            Opened::Need(_) => {}
        }
        stream.readable().await?;
        let mut chunk = [0; CHUNK];
        match stream.try_read(&mut chunk) {
            Ok(0) if carried.is_empty() => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => carried.extend(chunk.iter().take(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
