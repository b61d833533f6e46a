//! The method `uplink`: another role for an uplink at run time.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Agent;
use crate::config::agent::Role;
use crate::controller::Event;
use crate::os::control::{Cause, Refusal};

/// What the method takes.
#[derive(Deserialize)]
struct Params {
    /// The uplink's name.
    name: String,
    /// A role, or `default`.
    role: String,
}

impl Agent {
    /// Sets an uplink's role; the answer is what holds now, as JSON.
    ///
    /// # Errors
    /// When a parameter is wrong, or there is no such uplink.
    pub(super) async fn set_role(&mut self, params: Value) -> Result<String, Refusal> {
        let Params { name, role } = serde_json::from_value(params).map_err(|error| {
            Refusal::parameters(format!("'uplink' takes a name and a role: {error}"))
        })?;
        let role = Role::wanted(&role).map_err(|right| {
            Refusal::parameters(format!("there is no role '{role}'; it must be {right}"))
        })?;
        let uplinks = &self.controller.config().uplinks;
        let Some(uplink) = uplinks.iter().find(|uplink| uplink.name == name) else {
            let names: Vec<&str> = uplinks.iter().map(|uplink| uplink.name.as_str()).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let text = format!("there is no uplink '{name}'; configured: {names}");
            return Err(Refusal::new(Cause::NotFound, text));
        };
        let configured = uplink.role;
        self.handle(Event::RoleWanted { uplink: name.clone(), role }).await;
        let role = self.controller.manual_role(&name).unwrap_or(configured);
        let cap = self.controller.cap(&name).map(|cap| cap.to_string());
        let outcome = json!({ "name": name, "role": role, "configured": configured, "cap": cap });
        Ok(outcome.to_string())
    }
}
