//! Where the agent serves its status over HTTP: what the configuration and the LAN's devices make of it.

use std::path::PathBuf;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::Agent;
use crate::net::IfIndex;
use crate::os::control::Request;
use crate::os::{http, runtime, socket};
use crate::provision::{HTTP_TOKEN, http_token};
use crate::status::Trouble;
use crate::web::{Place, Site, places};

/// The listeners that are open.
pub struct Listeners {
    token_file: PathBuf,
    owner: mpsc::Sender<Request>,
    open: Vec<(Place, AbortHandle)>,
    trouble: Trouble,
}

impl Listeners {
    /// None yet; a token lies in `key_dir`.
    pub fn new(key_dir: &std::path::Path, owner: mpsc::Sender<Request>) -> Listeners {
        let token_file = key_dir.join(HTTP_TOKEN);
        Listeners { token_file, owner, open: Vec::new(), trouble: Trouble::default() }
    }

    /// Opens and closes listeners so that these places are served.
    ///
    /// # Errors
    /// What stands in the way, the first time; it is tried again at each call.
    pub fn keep(&mut self, wanted: &[Place]) -> Result<(), String> {
        self.open.retain(|(place, task)| {
            let keep = wanted.contains(place);
            if !keep {
                task.abort();
            }
            keep
        });
        let mut trouble = None;
        for place in wanted {
            if !self.open.iter().any(|(open, _)| open == place)
                && let Err(error) = self.open(place)
            {
                trouble = Some(error);
            }
        }
        self.trouble.news(trouble)
    }

    fn open(&mut self, place: &Place) -> Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| {
            format!("the status is not served over HTTP: {error}; see option 'http_listen'")
        };
        let access = place.access(|| http_token(&self.token_file));
        let access = access.map_err(|error| failed(&error))?;
        let device = place.device.as_ref().map(|(name, _)| name.as_str());
        let listener = socket::tcp_listen(place.address, device).map_err(|error| failed(&error))?;
        let serving = http::serve(listener, Site::Agent, access, self.owner.clone());
        self.open.push((place.clone(), runtime::spawn(serving).abort_handle()));
        Ok(())
    }
}

impl Agent {
    /// Serves HTTP where the configuration says so.
    pub(super) fn keep_http(&mut self) {
        let wanted = match self.controller.config().http_listen {
            Some(listen) => places(listen, &self.lan_devices()),
            None => Vec::new(),
        };
        if let Err(error) = self.http.keep(&wanted) {
            self.tell(log::Level::Error, error);
        }
    }

    fn lan_devices(&self) -> Vec<(String, IfIndex)> {
        let kernel = self.controller.kernel();
        let index = |name: String| kernel.link(&name).map(|link| link.index).map(|it| (name, it));
        self.controller.lan_devices().into_iter().filter_map(index).collect()
    }
}
