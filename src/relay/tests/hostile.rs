//! Tunnels that break the rules, and the records of the sealed relay themselves.

use super::*;

/// The sealed relay, with the test as the other end of the tunnel.
struct Half {
    client: TcpStream,
    relay: Relay,
    peer: TcpStream,
    sealer: Sealer,
    opener: Opener,
}

async fn half() -> Half {
    let (client, lan) = tcp_pair().await;
    let (tunnel, peer) = mptcp_pair().await;
    let [records, (sealer, opener)] = keys();
    let relay = start_sealed(lan, tunnel, records, Vec::new(), IdleLimits::default());
    Half { client, relay, peer, sealer, opener }
}

fn record(sealer: &mut Sealer, kind: Kind, plaintext: &[u8]) -> Vec<u8> {
    sealer.seal_new(kind, plaintext).unwrap()
}

/// Opens everything in `bytes`, which must be whole records.
fn open_all(opener: &mut Opener, mut bytes: Vec<u8>) -> Vec<(Kind, Vec<u8>)> {
    let mut records = Vec::new();
    let mut start = 0;
    while start < bytes.len() {
        match opener.next(&mut bytes[start..]).unwrap() {
            Opened::Record { kind, payload, consumed } => {
                let plaintext = start + payload.start..start + payload.end;
                records.push((kind, bytes[plaintext].to_vec()));
                start += consumed;
            }
            Opened::Need(_) => panic!("cut off"),
        }
    }
    records
}

#[test]
fn a_tampered_record_resets_both_sides() {
    block_on(async {
        for position in [0, 1, HEADER_LEN, HEADER_LEN + 3, OVERHEAD + 3] {
            let mut half = half().await;
            half.peer.write_all(&record(&mut half.sealer, Kind::Data, b"good")).await.unwrap();
            let mut buffer = [0; 4];
            half.client.read_exact(&mut buffer).await.unwrap();
            assert_eq!(&buffer, b"good");
            let mut bad = record(&mut half.sealer, Kind::Data, b"evil");
            bad[position] ^= 1;
            half.peer.write_all(&bad).await.unwrap();
            assert_reset(&mut half.client, position).await;
            assert_reset(&mut half.peer, position).await;
            assert_eq!(failure(&mut half.relay).await, (Side::Tunnel, io::ErrorKind::InvalidData));
        }
    });
}

#[test]
fn a_replayed_a_swapped_and_a_misplaced_record_are_refused() {
    block_on(async {
        for case in 0..3 {
            let mut half = half().await;
            let first = record(&mut half.sealer, Kind::Data, b"one");
            let second = record(&mut half.sealer, Kind::Data, b"two");
            let bytes = match case {
                0 => [first.clone(), first].concat(),
                1 => [second, first].concat(),
                _ => [first, second, vec![Kind::Answer as u8, 0, 0, 8], vec![0; 24]].concat(),
            };
            half.peer.write_all(&bytes).await.unwrap();
            assert_reset(&mut half.client, case).await;
            assert_eq!(failure(&mut half.relay).await, (Side::Tunnel, io::ErrorKind::InvalidData));
        }
    });
}

#[test]
fn any_bytes_in_place_of_records_end_in_a_reset() {
    block_on(async {
        for seed in 1..50 {
            let mut half = half().await;
            let _ = half.peer.write_all(&block(seed, 0)).await;
            let _ = half.peer.shutdown().await;
            assert_reset(&mut half.client, seed).await;
            let (side, kind) = failure(&mut half.relay).await;
            assert_eq!(side, Side::Tunnel);
            let kinds = [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof];
            assert!(kinds.contains(&kind), "{kind:?}");
        }
    });
}

#[test]
fn a_tunnel_cut_off_is_no_end_of_stream() {
    block_on(async {
        for cut in [0, 1, 10] {
            let mut half = half().await;
            let data = record(&mut half.sealer, Kind::Data, b"data");
            half.peer.write_all(&data[..data.len() - cut]).await.unwrap();
            half.peer.shutdown().await.unwrap();
            assert_reset(&mut half.client, cut).await;
            assert_eq!(
                failure(&mut half.relay).await,
                (Side::Tunnel, io::ErrorKind::UnexpectedEof)
            );
        }
    });
}

#[test]
fn records_may_come_byte_by_byte_or_many_at_once() {
    block_on(async {
        let mut half = half().await;
        let sent = b"byte by byte";
        for byte in record(&mut half.sealer, Kind::Data, sent) {
            half.peer.write_u8(byte).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut received = [0; 12];
        half.client.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, sent);
        // More than one batch, and one of the largest size.
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for index in 0..1000 {
            let plaintext = &sent[..index % 5 + 1];
            bytes.extend(record(&mut half.sealer, Kind::Data, plaintext));
            expected.extend_from_slice(plaintext);
        }
        let largest = &block(5, 0)[..PLAINTEXT_MAX];
        bytes.extend(record(&mut half.sealer, Kind::Data, largest));
        expected.extend_from_slice(largest);
        bytes.extend(record(&mut half.sealer, Kind::End, b""));
        let (written, received) = tokio::join!(half.peer.write_all(&bytes), rest(&mut half.client));
        written.unwrap();
        assert!(received.1.is_ok() && received.0 == expected);
    });
}

#[test]
fn what_was_read_before_the_relay_began_comes_first() {
    block_on(async {
        for cut in [1, 30, 40, 300_000] {
            let (mut client, lan) = tcp_pair().await;
            let (tunnel, mut peer) = mptcp_pair().await;
            let [records, (mut sealer, _)] = keys();
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for index in 0..10 {
                let plaintext = block(6, index)[..(index + 1) * 6000].to_vec();
                bytes.extend(record(&mut sealer, Kind::Data, &plaintext));
                expected.extend(plaintext);
            }
            bytes.extend(record(&mut sealer, Kind::End, b""));
            let carried = bytes[..cut].to_vec();
            let _relay = start_sealed(lan, tunnel, records, carried, IdleLimits::default());
            let (written, received) =
                tokio::join!(peer.write_all(&bytes[cut..]), rest(&mut client));
            written.unwrap();
            assert!(received.1.is_ok() && received.0 == expected, "{cut}");
        }
    });
}

#[test]
fn the_end_and_a_reset_are_records() {
    block_on(async {
        let mut ended = half().await;
        ended.client.write_all(b"data").await.unwrap();
        ended.client.shutdown().await.unwrap();
        let mut bytes = vec![0; 2 * OVERHEAD + 4];
        ended.peer.read_exact(&mut bytes).await.unwrap();
        let records = open_all(&mut ended.opener, bytes);
        assert_eq!(records, [(Kind::Data, b"data".to_vec()), (Kind::End, Vec::new())]);
        // Subflows can join as long as there is no DATA_FIN.
        assert!(timeout(Duration::from_millis(300), ended.peer.read_u8()).await.is_err());
        ended.peer.write_all(&record(&mut ended.sealer, Kind::End, b"")).await.unwrap();
        let (bytes, end) = rest(&mut ended.peer).await;
        assert!(end.is_ok() && bytes.is_empty());
        let (bytes, end) = rest(&mut ended.client).await;
        assert!(end.is_ok() && bytes.is_empty());

        let mut broken = half().await;
        broken.client.write_all(b"data").await.unwrap();
        sleep(Duration::from_millis(50)).await;
        socket::abort(&broken.client);
        let (bytes, end) = rest(&mut broken.peer).await;
        assert!(end.is_ok());
        let records = open_all(&mut broken.opener, bytes);
        assert_eq!(records, [(Kind::Data, b"data".to_vec()), (Kind::Reset, Vec::new())]);
        assert_eq!(failure(&mut broken.relay).await, (Side::Lan, io::ErrorKind::ConnectionReset));

        let mut told = half().await;
        let reset = record(&mut told.sealer, Kind::Reset, b"");
        told.peer.write_all(&reset).await.unwrap();
        assert_reset(&mut told.client, ()).await;
        assert_eq!(failure(&mut told.relay).await, (Side::Tunnel, io::ErrorKind::ConnectionReset));
    });
}

#[test]
fn a_reset_in_the_middle_of_a_record_resets_the_tunnel() {
    block_on(async {
        let mut half = half().await;
        // Nobody reads the tunnel: a record gets stuck half-way.
        fill(&half.client).await;
        socket::abort(&half.client);
        let (side, _) = failure(&mut half.relay).await;
        assert_eq!(side, Side::Lan);
        assert_reset(&mut half.peer, ()).await;
    });
}

#[test]
fn a_tunnel_that_breaks_while_the_client_does_not_read_is_noticed() {
    block_on(async {
        for mode in MODES {
            let Half { mut client, mut relay, peer, .. } = match mode {
                Mode::Sealed => {
                    let mut half = half().await;
                    for _ in 0..200 {
                        let data = record(&mut half.sealer, Kind::Data, &[0; 60_000]);
                        let write = half.peer.write_all(&data);
                        if timeout(Duration::from_millis(300), write).await.is_err() {
                            break;
                        }
                    }
                    half
                }
                Mode::Plain => {
                    let (client, lan) = tcp_pair().await;
                    let (tunnel, peer) = mptcp_pair().await;
                    let relay = start_plain(lan, tunnel, IdleLimits::default());
                    fill(&peer).await;
                    let [(sealer, opener), _] = keys();
                    Half { client, relay, peer, sealer, opener }
                }
            };
            socket::abort(&peer);
            let expected = (Side::Tunnel, io::ErrorKind::ConnectionReset);
            assert_eq!(failure(&mut relay).await, expected, "{mode:?}");
            assert_reset(&mut client, mode).await;
        }
    });
}
