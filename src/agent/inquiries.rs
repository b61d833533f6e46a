//! Whether the Internet answers over uplinks: each question a task of its own.

use tokio::sync::mpsc;

use crate::config::value::HttpUrl;
use crate::controller::{Opinion, Outlet};
use crate::os::{internet, runtime};

/// Asks; the answer comes with the uplink's slot.
pub struct Inquiries(mpsc::UnboundedSender<(u8, Opinion)>);

impl Inquiries {
    /// None under way.
    pub fn new() -> (Inquiries, mpsc::UnboundedReceiver<(u8, Opinion)>) {
        let (found, opinions) = mpsc::unbounded_channel();
        (Inquiries(found), opinions)
    }

    /// Begins one.
    pub fn start(&self, outlet: Outlet, url: HttpUrl) {
        let found = self.0.clone();
        runtime::spawn(async move {
            let opinion = internet::check(&url, &outlet).await;
            // Nobody waits for it when the agent is stopping.
            let _ = found.send((outlet.slot, opinion));
        });
    }
}
