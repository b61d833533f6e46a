//! MPTCP endpoints and limits.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use mptcp_bond::net::{Endpoint, EndpointId, Limits};
use mptcp_bond::os::kernel::KernelHandle;
use mptcp_bond::reconcile::Operation;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{apply, apply_twice, device, dump, in_namespace, sh, uplinks};

fn endpoint(id: u8, address: &str) -> Endpoint {
    Endpoint {
        id: EndpointId(id),
        address: address.parse().unwrap(),
        device: None,
        backup: false,
        other_flags: 0,
    }
}

/// A socket of the kernel's MPTCP.
fn mptcp_socket() -> Socket {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(262))).unwrap()
}

/// An MPTCP connection between two sockets of this namespace, used both ways: client and server.
pub fn connection(server: &str) -> (TcpStream, TcpStream) {
    let listener = mptcp_socket();
    let address: SocketAddr = server.parse().unwrap();
    listener.bind(&address.into()).unwrap();
    listener.listen(1).unwrap();
    let client = mptcp_socket();
    client.connect(&listener.local_addr().unwrap()).unwrap();
    let (mut client, mut accepted): (TcpStream, TcpStream) =
        (client.into(), listener.accept().unwrap().0.into());
    let mut byte = [0];
    for _ in 0..3 {
        client.write_all(b"x").unwrap();
        accepted.read_exact(&mut byte).unwrap();
        accepted.write_all(b"y").unwrap();
        client.read_exact(&mut byte).unwrap();
    }
    (client, accepted)
}

#[test]
fn endpoints_are_added_changed_and_deleted() {
    in_namespace("endpoints::endpoints_are_added_changed_and_deleted", async {
        uplinks();
        sh("ip mptcp endpoint add 198.51.100.7 id 9 signal
            ip mptcp endpoint add 198.51.100.8 id 10 subflow fullmesh backup");
        let (mut handle, _watch) = KernelHandle::open().await.unwrap();
        let kernel = dump(&mut handle).await;
        let foreign = kernel.endpoints.clone();
        assert_eq!(foreign.len(), 2);
        assert!(foreign.iter().all(|endpoint| endpoint.other_flags != 0), "{foreign:?}");
        let wan0 = Some(device(&kernel, "wan0"));
        let first = Endpoint { device: wan0, ..endpoint(200, "192.0.2.10") };
        let second = Endpoint { backup: true, ..endpoint(201, "2001:db8:1::1") };
        for wish in [&first, &second] {
            apply_twice(&mut handle, Operation::AddEndpoint(wish.clone())).await;
        }
        assert_eq!(dump(&mut handle).await.endpoints[2..], [first.clone(), second.clone()]);
        assert_eq!(
            sh("ip mptcp endpoint show id 200; ip mptcp endpoint show id 201"),
            "192.0.2.10 id 200 subflow dev wan0 \n2001:db8:1::1 id 201 subflow backup"
        );

        let first = Endpoint { backup: true, ..first };
        let second = Endpoint { backup: false, ..second };
        for wish in [&first, &second] {
            apply_twice(&mut handle, Operation::ChangeEndpoint(wish.clone())).await;
        }
        assert_eq!(dump(&mut handle).await.endpoints[2..], [first.clone(), second.clone()]);

        let error = handle.apply(&Operation::AddEndpoint(endpoint(205, "192.0.2.10"))).await;
        let error = error.unwrap_err();
        assert!(error.reason.starts_with("EEXIST (File exists)"), "{error}");
        let error = handle.apply(&Operation::AddEndpoint(endpoint(200, "192.0.2.11"))).await;
        assert!(error.unwrap_err().reason.starts_with("EBUSY"));
        let error = handle.apply(&Operation::ChangeEndpoint(endpoint(222, "192.0.2.11"))).await;
        let error = error.unwrap_err();
        assert_eq!(error.reason, "EINVAL (Invalid argument): address not found");

        for found in [first, second] {
            apply_twice(&mut handle, Operation::DeleteEndpoint(found)).await;
        }
        assert_eq!(dump(&mut handle).await.endpoints, foreign);
    });
}

/// A connection whose second subflow starts at an address without endpoint: the kernel makes an
/// implicit one, numbered after the last one there is.
async fn connection_with_implicit_endpoint() -> (TcpStream, TcpStream) {
    sh("ip addr add 10.9.0.1/32 dev lo; ip addr add 10.9.0.2/32 dev lo
        ip route replace local 10.9.0.2 dev lo table local src 10.9.0.1
        ip mptcp limits set subflows 4 add_addr_accepted 4
        ip mptcp endpoint add 10.9.0.2 id 204 signal");
    let connection = connection("127.0.0.1:0");
    let start = Instant::now();
    while !sh("ip mptcp endpoint show").contains("10.9.0.1 id 205") {
        assert!(start.elapsed() < Duration::from_secs(10), "{}", sh("ip mptcp endpoint show"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    connection
}

#[test]
fn an_implicit_endpoint_is_hidden_and_gives_up_its_address() {
    in_namespace("endpoints::an_implicit_endpoint_is_hidden_and_gives_up_its_address", async {
        let (mut handle, _watch) = KernelHandle::open().await.unwrap();
        let _connection = connection_with_implicit_endpoint().await;
        let found = dump(&mut handle).await.endpoints;
        assert_eq!(found.iter().map(|e| e.id.0).collect::<Vec<_>>(), [204]);
        apply_twice(&mut handle, Operation::AddEndpoint(endpoint(200, "10.9.0.1"))).await;
        assert_eq!(sh("ip mptcp endpoint show id 200"), "10.9.0.1 id 200 subflow");
        assert_eq!(dump(&mut handle).await.endpoints.len(), 2);
    });
}

#[test]
fn an_implicit_endpoint_gives_up_its_id() {
    in_namespace("endpoints::an_implicit_endpoint_gives_up_its_id", async {
        let (mut handle, _watch) = KernelHandle::open().await.unwrap();
        let _connection = connection_with_implicit_endpoint().await;
        apply(&mut handle, Operation::AddEndpoint(endpoint(205, "192.0.2.9"))).await;
        assert_eq!(sh("ip mptcp endpoint show id 205"), "192.0.2.9 id 205 subflow");
    });
}

#[test]
fn limits_are_set() {
    in_namespace("endpoints::limits_are_set", async {
        let (mut handle, _watch) = KernelHandle::open().await.unwrap();
        let initial = Limits { subflows: 2, add_addr_accepted: 0 };
        assert_eq!(dump(&mut handle).await.limits, Some(initial));
        let wish = Limits { subflows: 5, add_addr_accepted: 3 };
        apply_twice(&mut handle, Operation::SetLimits(wish)).await;
        assert_eq!(dump(&mut handle).await.limits, Some(wish));
        assert_eq!(sh("ip mptcp limits show"), "add_addr_accepted 3 subflows 5");
    });
}
