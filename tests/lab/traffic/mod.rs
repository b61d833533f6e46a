//! Traffic with content that can be checked at any offset, and its progress over time.

mod churn;
mod dialer;
mod iperf3;
mod pattern;
mod recorder;
mod server;
mod transfer;
mod udp;

pub use churn::{ChurnReport, churn, open_idle};
pub use dialer::{Dialer, Kind};
pub use iperf3::Iperf3;
pub use pattern::Pattern;
pub use recorder::{Recorder, Report, SLOT};
pub use server::TrafficServer;
pub use transfer::Transfer;
pub use udp::{Fates, UdpEcho, UdpFlow};
