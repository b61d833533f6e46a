//! An agent's state in a word and in a sentence.

use super::{AgentState, ServerState, ServerStatus, UplinkState, UplinkStatus};
use crate::config::agent::OnServerLoss;

/// What an agent does, from what it has, in a word and in a sentence.
pub fn agent_state(
    enabled: bool,
    uplinks: &[UplinkStatus],
    servers: &[ServerStatus],
    on_server_loss: OnServerLoss,
) -> (AgentState, String) {
    if !enabled {
        return (AgentState::Disabled, "switched off by option enabled".to_owned());
    }
    if servers.is_empty() {
        let text = "no server is configured; 'mptcp-bond pair URI' adds one";
        return (AgentState::Unconfigured, text.to_owned());
    }
    if uplinks.is_empty() {
        return (AgentState::Unconfigured, "no uplink is configured".to_owned());
    }
    let in_use: Vec<&str> =
        uplinks.iter().filter(|uplink| uplink.in_use).map(|uplink| uplink.name.as_str()).collect();
    if in_use.is_empty() {
        return (AgentState::Offline, offline(uplinks));
    }
    let Some(server) = servers.iter().find(|server| server.state == ServerState::Connected) else {
        return unreachable(servers, on_server_loss);
    };
    let standby: Vec<&str> = uplinks
        .iter()
        .filter(|uplink| {
            !uplink.in_use && matches!(uplink.state, UplinkState::Up | UplinkState::Degraded)
        })
        .map(|uplink| uplink.name.as_str())
        .collect();
    let names = in_use.join(", ");
    let (state, mut text) = match in_use.len() {
        _ if server.mptcp == Some(false) => (
            AgentState::Fallback,
            format!("no bonding: {} is reached over plain TCP, over {names}", server.name),
        ),
        1 => (AgentState::Single, format!("using one uplink: {names}")),
        count => (AgentState::Bonding, format!("bonding {count} uplinks: {names}")),
    };
    if !standby.is_empty() {
        text.push_str(&format!("; standing by: {}", standby.join(", ")));
    }
    (state, text)
}

fn offline(uplinks: &[UplinkStatus]) -> String {
    let reasons: Vec<String> = uplinks
        .iter()
        .map(|uplink| match uplink.reason.as_str() {
            "" => uplink.name.clone(),
            reason => format!("{} ({reason})", uplink.name),
        })
        .collect();
    format!("no uplink is usable: {}", reasons.join(", "))
}

fn unreachable(servers: &[ServerStatus], on_server_loss: OnServerLoss) -> (AgentState, String) {
    let (lost_state, fate) = match on_server_loss {
        OnServerLoss::Direct => (AgentState::Direct, "LAN TCP goes out directly"),
        OnServerLoss::Block => (AgentState::Blocked, "LAN TCP is refused"),
    };
    match servers.iter().find(|server| server.state == ServerState::Lost) {
        Some(server) => (lost_state, format!("server {} is lost: {fate}", server.name)),
        None => {
            let names: Vec<&str> = servers.iter().map(|server| server.name.as_str()).collect();
            let text = format!("connecting to {}; meanwhile {fate}", names.join(", "));
            (AgentState::Connecting, text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplink(name: &str, state: UplinkState, in_use: bool) -> UplinkStatus {
        let reason = if in_use { String::new() } else { "no carrier".to_owned() };
        UplinkStatus { name: name.to_owned(), state, in_use, reason, ..Default::default() }
    }

    fn server(state: ServerState, mptcp: Option<bool>) -> ServerStatus {
        ServerStatus { name: "vps".to_owned(), state, mptcp, ..Default::default() }
    }

    #[test]
    fn every_state_has_its_sentence() {
        use AgentState::*;
        let wan = || uplink("wan", UplinkState::Up, true);
        let wanb = || uplink("wanb", UplinkState::Degraded, true);
        let lte = || uplink("lte", UplinkState::Up, false);
        let down = || uplink("dsl", UplinkState::Down, false);
        let connected = || server(ServerState::Connected, Some(true));
        let lost = || server(ServerState::Lost, None);
        let (direct, block) = (OnServerLoss::Direct, OnServerLoss::Block);
        let cases = [
            (vec![], vec![], direct, Unconfigured, "no server is configured"),
            (vec![], vec![connected()], direct, Unconfigured, "no uplink is configured"),
            (
                vec![down()],
                vec![connected()],
                direct,
                Offline,
                "no uplink is usable: dsl (no carrier)",
            ),
            (
                vec![wan(), wanb()],
                vec![connected()],
                direct,
                Bonding,
                "bonding 2 uplinks: wan, wanb",
            ),
            (
                vec![wan(), lte(), down()],
                vec![lost(), connected()],
                direct,
                Single,
                "using one uplink: wan; standing by: lte",
            ),
            (
                vec![wan(), wanb()],
                vec![server(ServerState::Connected, Some(false))],
                direct,
                Fallback,
                "no bonding: vps is reached over plain TCP, over wan, wanb",
            ),
            (
                vec![wan()],
                vec![lost()],
                direct,
                Direct,
                "server vps is lost: LAN TCP goes out directly",
            ),
            (vec![wan()], vec![lost()], block, Blocked, "server vps is lost: LAN TCP is refused"),
            (
                vec![wan()],
                vec![server(ServerState::Connecting, None)],
                block,
                Connecting,
                "connecting to vps; meanwhile LAN TCP is refused",
            ),
        ];
        for (uplinks, servers, loss, state, text) in cases {
            let (seen, sentence) = agent_state(true, &uplinks, &servers, loss);
            assert_eq!(seen, state, "{sentence}");
            assert!(sentence.starts_with(text), "{sentence}");
            assert_eq!(agent_state(false, &uplinks, &servers, loss).0, Disabled);
        }
    }
}
