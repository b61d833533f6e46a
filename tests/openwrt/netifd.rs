//! A double of netifd as ubus shows it: interfaces that go up and down.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use mptcp_bond::ubus::{NETIFD, Table};
use serde_json::{Value, json};

use super::UbusClient;
use crate::lab::Uplink;

/// How long a call is waited for before what to announce is looked at.
const TURN: Duration = Duration::from_millis(2);
/// Pause before a connection is made again.
const RECONNECT: Duration = Duration::from_millis(100);

/// The status of the interface `name` while it is up on an uplink's device. With `defaultroute 0`
/// its default routes are left out of the kernel.
pub fn interface_up(name: &str, uplink: &Uplink, defaultroute: bool) -> Value {
    let route = |target: &str, gateway: String| {
        json!({ "target": target, "mask": 0, "nexthop": gateway, "source": "0.0.0.0/0",
            "metric": uplink.metric() })
    };
    let v4 = uplink.gateway_v4().map(|gateway| route("0.0.0.0", gateway.to_string()));
    let v6 = uplink.gateway_v6().map(|gateway| route("::", gateway.to_string()));
    let routes: Vec<Value> = v4.into_iter().chain(v6).collect();
    let (active, inactive) = if defaultroute { (routes, vec![]) } else { (vec![], routes) };
    json!({
        "interface": name, "up": true, "pending": false, "available": true, "autostart": true,
        "dynamic": false, "uptime": 1, "l3_device": uplink.device(), "device": uplink.device(),
        "proto": "dhcp", "metric": uplink.metric(), "route": active,
        "ipv4-address": [{ "address": uplink.address_v4().to_string(), "mask": 24 }],
        "inactive": { "route": inactive }, "data": {},
    })
}

/// The status of the interface `name` while it is down.
pub fn interface_down(name: &str) -> Value {
    json!({ "interface": name, "up": false, "pending": false, "available": true, "data": {} })
}

/// A running double; it ends when this is dropped.
pub struct Netifd(Sender<Value>);

impl Netifd {
    /// Publishes these interfaces on the bus behind `socket`.
    pub fn start(socket: &Path, interfaces: Vec<Value>) -> Netifd {
        let (sender, changes) = channel();
        let socket = socket.to_owned();
        thread::spawn(move || run(socket, interfaces, &changes));
        Netifd(sender)
    }

    /// An interface's status is another, of which subscribers are notified.
    pub fn set(&self, status: Value) {
        self.0.send(status).expect("the double of netifd runs");
    }
}

fn run(socket: PathBuf, mut interfaces: Vec<Value>, changes: &Receiver<Value>) {
    loop {
        match UbusClient::connect(&socket) {
            Ok(client) => {
                if let Ok(()) = serve(client, &mut interfaces, changes) {
                    return;
                }
            }
            Err(_) if changes.try_recv() == Err(TryRecvError::Disconnected) => return,
            Err(_) => {}
        }
        thread::sleep(RECONNECT);
    }
}

/// Serves until nobody wants the double any more; an error when ubusd has gone.
fn serve(
    mut client: UbusClient,
    interfaces: &mut Vec<Value>,
    changes: &Receiver<Value>,
) -> io::Result<()> {
    let object = client.publish(Some(NETIFD), json!({ "dump": {} }));
    loop {
        if let Some(call) = client.next(TURN)? {
            let dump = json!({ "interface": interfaces });
            client.answer(&call, dump.as_object().cloned())?;
        }
        match changes.try_recv() {
            Ok(status) => {
                interfaces.retain(|interface| interface["interface"] != status["interface"]);
                let event = match status["up"] == true {
                    true => "interface.update",
                    false => "interface.down",
                };
                let table: Table = status.as_object().cloned().unwrap_or_default();
                interfaces.push(status);
                client.notify(object, event, table)?;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
    }
}
