//! A stub resolver that asks over an uplink of choice (RFC 1035): `getaddrinfo(3)` asks over
//! whichever uplink the router's own routing chooses, and that one may be dead.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

use crate::controller::Outlet;
use crate::os::{random, socket};

/// Where the addresses of DNS servers are: the system's, and those that OpenWrt's uplinks brought,
/// which its own DNS server asks.
const SERVER_FILES: [&str; 2] = ["/etc/resolv.conf", "/tmp/resolv.conf.d/resolv.conf.auto"];
/// DNS servers asked at most.
const SERVERS: usize = 6;
/// A question is asked again after this time, and so often.
const RETRY: Duration = Duration::from_millis(700);
const TRIES: u32 = 4;
/// The longest answer; more than a server sends to who does not say that it takes more.
const LONGEST: usize = 1500;
/// Addresses taken from one answer.
const ADDRESSES: usize = 16;

/// The kinds of records asked for (RFC 1035, RFC 3596).
const A: u16 = 1;
const AAAA: u16 = 28;
/// The class of the Internet.
const IN: u16 = 1;
/// The server failed, or does not answer us: another one may.
const SERVFAIL: u8 = 2;
const REFUSED: u8 = 5;

/// The DNS servers that can be asked over an uplink: the router's own cannot.
pub fn servers() -> Vec<IpAddr> {
    let texts = SERVER_FILES.iter().filter_map(|file| fs::read_to_string(file).ok());
    named_servers(&texts.collect::<String>())
}

/// The addresses of the lines `nameserver ADDRESS` (`resolv.conf(5)`).
fn named_servers(text: &str) -> Vec<IpAddr> {
    let mut servers: Vec<IpAddr> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let address = (words.next() == Some("nameserver")).then(|| words.next()).flatten();
        let address: Option<IpAddr> = address.and_then(|text| text.parse().ok());
        let outside = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified();
        if let Some(address) = address.filter(outside)
            && !servers.contains(&address)
            && servers.len() < SERVERS
        {
            servers.push(address);
        }
    }
    servers
}

/// Asks all these servers for a host's addresses, from the outlet's address and through its device.
///
/// # Errors
/// `NotFound` when no server of the outlet's family is given or the host has no address, `TimedOut`
/// when none answers, or the socket's.
pub async fn lookup(host: &str, servers: &[IpAddr], outlet: &Outlet) -> io::Result<Vec<IpAddr>> {
    let same_family = |server: &&IpAddr| server.is_ipv4() == outlet.source.is_ipv4();
    let mut asked: FuturesUnordered<_> =
        servers.iter().filter(same_family).map(|server| ask(host, *server, outlet)).collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no DNS server is known");
    while let Some(answer) = asked.next().await {
        match answer {
            Ok(addresses) => return Ok(addresses),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Asks one server for both kinds of addresses.
async fn ask(host: &str, server: IpAddr, outlet: &Outlet) -> io::Result<Vec<IpAddr>> {
    let socket = socket::udp_socket((outlet.source, 0).into(), Some(&outlet.device))?;
    // The kernel drops what others send here.
    socket.connect(SocketAddr::new(server, 53)).await?;
    let id = u16::from_ne_bytes(random::bytes()?);
    let [v4, v6] = [(A, id), (AAAA, id.wrapping_add(1))]
        .map(|(kind, id)| Question::new(host, kind, id).ok_or(io::ErrorKind::InvalidInput));
    let mut open = vec![v4?, v6?];
    let mut found = Vec::new();
    for _ in 0..TRIES {
        for question in &open {
            socket.send(&question.packet).await?;
        }
        // What arrives within the time of one try.
        let _ = timeout(RETRY, collect(&socket, &mut open, &mut found)).await;
        if open.is_empty() {
            break;
        }
    }
    match (found.is_empty(), open.is_empty()) {
        (false, _) => Ok(found),
        (true, true) => Err(io::Error::new(io::ErrorKind::NotFound, "it has no address")),
        (true, false) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer from DNS")),
    }
}

/// Takes answers until every question has one.
async fn collect(socket: &UdpSocket, open: &mut Vec<Question>, found: &mut Vec<IpAddr>) {
    let mut buffer = [0; LONGEST];
    while !open.is_empty() {
        // An ICMP error, say; the question is asked again.
        let Ok(length) = socket.recv(&mut buffer).await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let packet = buffer.get(..length).unwrap_or_default();
        open.retain(|question| match question.answer(packet) {
            Some(addresses) => {
                found.extend(addresses);
                false
            }
            None => true,
        });
    }
}

/// A question, as it is sent.
struct Question {
    kind: u16,
    packet: Vec<u8>,
}

impl Question {
    /// `None` for a host that DNS cannot name.
    fn new(host: &str, kind: u16, id: u16) -> Option<Question> {
        // Recursion is desired; one question.
        const FLAGS_AND_COUNTS: [u8; 10] = [1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let mut packet = id.to_be_bytes().to_vec();
        packet.extend(FLAGS_AND_COUNTS);
        for label in host.trim_end_matches('.').split('.') {
            let length =
                u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
            packet.push(length);
            packet.extend(label.bytes());
        }
        packet.push(0);
        packet.extend(kind.to_be_bytes());
        packet.extend(IN.to_be_bytes());
        Some(Question { kind, packet })
    }

    /// The addresses in an answer to this question; `None` for other packets, and for a server
    /// that could not find out.
    fn answer(&self, packet: &[u8]) -> Option<Vec<IpAddr>> {
        let mut reader = Reader(packet);
        let id = reader.take::<2>()?;
        let [flags, code] = reader.take::<2>()?;
        let questions = u16::from_be_bytes(reader.take()?);
        let answers = u16::from_be_bytes(reader.take()?);
        reader.take::<4>()?;
        let (header, question) = self.packet.split_at_checked(12)?;
        let is_response = flags & 0x80 != 0;
        let asked = reader.0.get(..question.len())?;
        let same = header.starts_with(&id) && asked.eq_ignore_ascii_case(question);
        let failed = matches!(code & 0xf, SERVFAIL | REFUSED);
        if !is_response || questions != 1 || !same || failed {
            return None;
        }
        reader.0 = reader.0.get(question.len()..)?;
        let mut addresses = Vec::new();
        for _ in 0..answers {
            // An answer that was cut short still has its beginning.
            let Some((kind, data)) = reader.record() else { break };
            let address: Option<IpAddr> = match kind {
                _ if kind != self.kind => None,
                A => <[u8; 4]>::try_from(data).ok().map(|bytes| Ipv4Addr::from(bytes).into()),
                _ => <[u8; 16]>::try_from(data).ok().map(|bytes| Ipv6Addr::from(bytes).into()),
            };
            // Records of aliases come along, and name hosts whose addresses follow.
            addresses.extend(address.filter(|_| addresses.len() < ADDRESSES));
        }
        Some(addresses)
    }
}

/// What is left of a packet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn skip(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// Passes over a name, which ends with a pointer to the rest of it or an empty label.
    fn name(&mut self) -> Option<()> {
        loop {
            let [length] = self.take::<1>()?;
            match length {
                0 => return Some(()),
                0xc0.. => return self.take::<1>().map(drop),
                1..64 => drop(self.skip(length.into())?),
                _ => return None,
            }
        }
    }

    /// The kind and the data of the next record.
    fn record(&mut self) -> Option<(u16, &'a [u8])> {
        self.name()?;
        let kind = u16::from_be_bytes(self.take()?);
        let class = u16::from_be_bytes(self.take()?);
        let _ttl = self.take::<4>()?;
        let length = u16::from_be_bytes(self.take()?);
        let data = self.skip(length.into())?;
        // Of another class it is of no kind that is asked for.
        Some((if class == IN { kind } else { 0 }, data))
    }
}

/// Reads anything as an answer.
#[cfg(any(test, fuzzing))]
pub fn read_anything(bytes: &[u8]) {
    let question = [A, AAAA].map(|kind| Question::new("vps.example.org", kind, 7));
    question.iter().flatten().for_each(|question| drop(question.answer(bytes)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A response to a question, with these records behind it.
    fn response(question: &Question, code: u8, records: &[(u16, &[u8])]) -> Vec<u8> {
        let mut packet = question.packet.clone();
        (packet[2], packet[3]) = (0x81, 0x80 | code);
        packet[7] = records.len() as u8;
        for (kind, data) in records {
            packet.extend([0xc0, 12]);
            packet.extend(kind.to_be_bytes());
            packet.extend([0, 1, 0, 0, 0, 60]);
            packet.extend((data.len() as u16).to_be_bytes());
            packet.extend(*data);
        }
        packet
    }

    fn question(kind: u16) -> Question {
        Question::new("vps.example.net", kind, 0x1234).unwrap()
    }

    #[test]
    fn a_question_is_as_in_the_rfc() {
        let expected = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03vps\x07example\x03net\0\0\x1c\0\x01";
        assert_eq!(question(AAAA).packet, expected);
        for host in ["", "a..b", &"a".repeat(64)] {
            assert!(Question::new(host, A, 0).is_none(), "{host}");
        }
    }

    #[test]
    fn addresses_are_found_behind_aliases() {
        let alias: (u16, &[u8]) = (5, b"\x05other\xc0\x0c");
        let records = [alias, (A, &[192, 0, 2, 1][..]), (A, &[192, 0, 2, 2][..])];
        let answer = question(A).answer(&response(&question(A), 0, &records)).unwrap();
        assert_eq!(answer, [IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2])]);
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        let records: [(u16, &[u8]); 1] = [(AAAA, &v6.octets())];
        let answer = question(AAAA).answer(&response(&question(AAAA), 0, &records));
        assert_eq!(answer, Some(vec![v6.into()]));
        let none = question(A).answer(&response(&question(A), 3, &[]));
        assert_eq!(none, Some(vec![]), "there is no such host");
    }

    #[test]
    fn what_is_no_answer_is_passed_over() {
        let records: [(u16, &[u8]); 1] = [(A, &[192, 0, 2, 1])];
        let good = response(&question(A), 0, &records);
        assert!(question(A).answer(&good).is_some());
        assert!(question(AAAA).answer(&good).is_none(), "to another question");
        let other = Question::new("vps.example.net", A, 0x1235).unwrap();
        assert!(other.answer(&good).is_none(), "another number");
        let other = Question::new("vps.example.org", A, 0x1234).unwrap();
        assert!(other.answer(&good).is_none(), "another name");
        assert!(question(A).answer(&question(A).packet).is_none(), "no response");
        for code in [SERVFAIL, REFUSED] {
            assert!(question(A).answer(&response(&question(A), code, &[])).is_none());
        }
        let cut = question(A).answer(&good[..good.len() - 1]);
        assert_eq!(cut, Some(vec![]));
    }

    #[test]
    fn servers_are_those_that_an_uplink_leads_to() {
        let text = "search lan\nnameserver 127.0.0.1\nnameserver ::1\n# Interface wan\n\
                    nameserver 192.0.2.53\nnameserver 192.0.2.53\n nameserver 2001:db8::53 # x\n\
                    nameserver\nnameserver x\noptions edns0\n";
        let addresses: Vec<IpAddr> =
            ["192.0.2.53", "2001:db8::53"].map(|text| text.parse().unwrap()).to_vec();
        assert_eq!(named_servers(text), addresses);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100_000))]

        #[test]
        fn no_answer_makes_the_reader_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..80),
            at in 0_usize..60,
            value in any::<u8>(),
        ) {
            let records: [(u16, &[u8]); 2] = [(5, b"\x05other\xc0\x0c"), (A, &[192, 0, 2, 1])];
            let mut packet = response(&question(A), 0, &records);
            packet.extend(&bytes);
            packet[7] = 200;
            if let Some(byte) = packet.get_mut(at) {
                *byte = value;
            }
            let addresses = question(A).answer(&packet).unwrap_or_default();
            prop_assert!(addresses.len() <= ADDRESSES);
            prop_assert!(question(A).answer(&bytes).is_none_or(|found| found.is_empty()));
        }
    }
}
