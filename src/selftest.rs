//! `mptcp-bond self-test`: whether the program works on this processor and kernel, before it is set up.

use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cli::exit;
use crate::os::{runtime, socket};
use crate::provision;
use crate::tunnel::known::known_answers;

/// How long the echo may take: a processor may be slow.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// Bytes that are echoed.
const ECHO_BYTES: usize = 256 << 10;

/// Tests and shows what was found: exit code 0 when all is well, 1 otherwise.
pub fn run() -> ExitCode {
    let mut report = Report::new();
    for answer in known_answers() {
        let got = answer.computed.unwrap_or_else(|| "an error".into());
        let wrong = || format!("this processor computes {got}; please report it");
        report.line(answer.subject, if answer.right { Ok(()) } else { Err(wrong()) });
    }
    let echo = runtime::run(async { timeout(TIME_LIMIT, echo()).await });
    let echo = match echo {
        Ok(Ok(result)) => result.map_err(|error| error.to_string()),
        Ok(Err(_)) => Err(format!("no echo within {} s", TIME_LIMIT.as_secs())),
        Err(error) => Err(error.to_string()),
    };
    report.line("MPTCP echo", echo);
    let code = if report.well { exit::OK } else { exit::NOT_WELL };
    match provision::print(Ok(report.text)) {
        ExitCode::SUCCESS => ExitCode::from(code),
        failed => failed,
    }
}

/// The text so far.
struct Report {
    text: String,
    well: bool,
}

impl Report {
    fn new() -> Report {
        let text = format!(
            "mptcp-bond {} for {}, {} bits, {} endian\n",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::ARCH,
            usize::BITS,
            if cfg!(target_endian = "big") { "big" } else { "little" },
        );
        Report { text, well: true }
    }

    fn line(&mut self, subject: &str, result: Result<(), String>) {
        self.well &= result.is_ok();
        let found = result.map_or_else(|error| format!("FAILED  {error}"), |()| "ok".into());
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{subject:26}{found}");
    }
}

/// Sends bytes over an MPTCP connection within this machine, and reads them back.
async fn echo() -> io::Result<()> {
    let listener = socket::mptcp_listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 1)?;
    let address = listener.local_addr()?;
    let (client, server) =
        tokio::join!(socket::mptcp_connect(address, None, None), listener.accept());
    let (client, (server, _)) = (client?, server?);
    for end in [&client, &server] {
        if !socket::is_mptcp(end)? {
            return Err(io::Error::other("fell back to TCP: a firewall removes MPTCP's options"));
        }
    }
    let sent: Vec<u8> = (0..ECHO_BYTES).map(|index| (index % 251) as u8).collect();
    let (received, echoed) = tokio::join!(exchange(client, &sent), send_back(server));
    echoed?;
    match received? == sent {
        true => Ok(()),
        false => Err(io::Error::other("other bytes came back than were sent")),
    }
}

async fn exchange(stream: TcpStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let (mut reads, mut writes) = stream.into_split();
    let mut received = vec![0; bytes.len()];
    let (sent, read) = tokio::join!(writes.write_all(bytes), reads.read_exact(&mut received));
    sent?;
    read?;
    Ok(received)
}

async fn send_back(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 14];
    loop {
        let length = stream.read(&mut buffer).await?;
        let Some(read) = buffer.get(..length).filter(|read| !read.is_empty()) else {
            return Ok(());
        };
        stream.write_all(read).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_said_and_makes_it_fail() {
        let mut report = Report::new();
        report.line("one", Ok(()));
        assert!(report.well && report.text.ends_with("\none                       ok\n"));
        report.line("two", Err("why".into()));
        report.line("three", Ok(()));
        assert!(!report.well && report.text.contains("\ntwo                       FAILED  why\n"));
    }

    #[test]
    fn bytes_come_back() {
        runtime::run(async { echo().await.unwrap() }).unwrap();
    }
}
