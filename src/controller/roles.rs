//! Roles set at run time, which take the place of the configured ones.

use std::time::Instant;

use litemap::LiteMap;

use super::{Action, Controller};
use crate::config::agent::{Role, UplinkConfig};

/// A role set at run time.
struct Manual {
    role: Role,
    /// The role configured then: once another one is configured, that one counts.
    configured: Role,
}

/// Roles set at run time, by uplink.
#[derive(Default)]
pub(super) struct ManualRoles(LiteMap<String, Manual>);

impl ManualRoles {
    /// Sets an uplink's role, or takes it back to the configured one.
    pub(super) fn set(&mut self, uplink: &UplinkConfig, role: Option<Role>) {
        let configured = uplink.role;
        match role.filter(|role| *role != configured) {
            Some(role) => self.0.insert(uplink.name.clone(), Manual { role, configured }),
            None => self.0.remove(&uplink.name),
        };
    }

    /// Takes note of a configuration: the roles of uplinks that are gone or have another role now
    /// are forgotten, the others stay.
    pub(super) fn configure(&mut self, uplinks: &[UplinkConfig]) {
        self.0.retain(|name, manual| {
            uplinks.iter().any(|uplink| uplink.name == *name && uplink.role == manual.configured)
        });
    }

    /// The role set for an uplink.
    pub(super) fn of(&self, name: &str) -> Option<Role> {
        self.0.get(name).map(|manual| manual.role)
    }

    /// The uplinks with the roles to go by.
    pub(super) fn apply(&self, uplinks: &[UplinkConfig]) -> Vec<UplinkConfig> {
        let role = |uplink: &UplinkConfig| self.of(&uplink.name).unwrap_or(uplink.role);
        uplinks.iter().map(|uplink| UplinkConfig { role: role(uplink), ..uplink.clone() }).collect()
    }
}

impl Controller {
    /// A person wants a role for an uplink; `None` is the configured one.
    pub(super) fn on_role_wanted(
        &mut self,
        name: &str,
        role: Option<Role>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(uplink) = self.config.uplinks.iter().find(|uplink| uplink.name == name) else {
            return;
        };
        self.roles.set(uplink, role);
        let text = match self.roles.of(name) {
            Some(role) => format!("role {role}, set by hand; configured: {}", uplink.role),
            None => format!("role {}, as configured", uplink.role),
        };
        actions.push(Action::Log(log::Level::Info, format!("uplink {name}: {text}")));
        self.looks.by(now);
    }
}
