//! From a server's first command to a router that is connected, and to its end.

mod lab;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use std::time::Duration;

use lab::traffic::{Kind, TrafficServer, Transfer};
use lab::{AgentProgram, Lab, Namespace, SERVER_V4, ServerProgram, TARGET_V4, binary, until};
use serde_json::Value;

/// How long anything may take that should happen soon.
const LIMIT: Duration = Duration::from_secs(10);

/// The user that the server runs as.
const USER: u32 = 4711;

/// Runs a command of the program's: exit code, standard output, standard error.
fn run(namespace: &Namespace, words: &[&str]) -> (Option<i32>, String, String) {
    let output = namespace.try_run(binary().to_str().unwrap(), words).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_server_finds_out_where_routers_reach_it() {
    let lab = Lab::two_uplinks("init");
    let init = |namespace: &Namespace, name: &str| {
        let config = lab.work().join(name);
        run(namespace, &["server", "init", "--config", config.to_str().unwrap()])
    };
    let (code, report, _) = init(&lab.server, "first/server.toml");
    assert_eq!(code, Some(0));
    assert!(report.contains(&format!("\nRouters reach it at {SERVER_V4}:443\n")), "{report}");
    assert!(report.contains(&format!("mptcp-bond pair 'mptcp-bond://{SERVER_V4}:443/?key=")));

    let _server = ServerProgram::start(&lab);
    let (_, report, _) = init(&lab.server, "second/server.toml");
    assert!(report.contains(&format!("\nRouters reach it at {SERVER_V4}:8443\n")), "{report}");

    let (code, _, error) = init(&lab.lan, "third/server.toml");
    assert_eq!(code, Some(65));
    assert!(error.contains("is not a public one: say with --public HOST:PORT"), "{error}");
    assert!(!lab.work().join("third").exists(), "nothing is written");
}

/// As the unit runs it, on a host where `server init` has set the sysctls.
#[test]
fn a_server_with_a_user_of_its_own_enrols_and_serves() {
    let lab = Lab::two_uplinks("own-user");
    let mut server = ServerProgram::start(&lab);
    server.stop();
    let give = |path: &Path| chown(path, Some(USER), Some(USER)).unwrap();
    let folder = server.config().parent().unwrap().to_owned();
    for file in fs::read_dir(&folder).unwrap() {
        give(&file.unwrap().path());
    }
    give(&folder);
    fs::set_permissions(lab.work(), Permissions::from_mode(0o711)).unwrap();
    let capabilities = "net_admin,net_bind_service";
    let script = format!(
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && \
         exec setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs \
         --inh-caps=-all,+{0} --ambient-caps=-all,+{0} --bounding-set=-all,+{0} \"$@\"",
        capabilities.replace(',', ",+")
    );
    server.program().wrap(&["unshare", "--mount", "sh", "-c", &script, "-"]);
    server.restart();

    let agent = AgentProgram::start(&lab, &server);
    let text = fs::read_to_string(server.config()).unwrap();
    assert!(text.contains("name = \"router\""), "the server has written it down:\n{text}");
    let status = server.status().unwrap();
    assert_eq!(status["kernel"]["limits"]["subflows"], 8, "{}", status["kernel"]);
    drop(agent);
}

/// The words of `pair` for a router with a configuration of its own.
fn pair<'a>(uri: &'a str, config: &'a str, keys: &'a str, run_dir: &'a str) -> [&'a str; 8] {
    ["pair", uri, "--config", config, "--key-dir", keys, "--run-dir", run_dir]
}

/// Another character in the last place but one of a parameter: the last holds bits that do not count.
fn mistyped(uri: &str, parameter: &str) -> String {
    let at = uri.find(parameter).unwrap() + parameter.len() + 41;
    let other = if &uri[at..=at] == "A" { "B" } else { "A" };
    format!("{}{other}{}", &uri[..at], &uri[at + 1..])
}

#[test]
fn an_invitation_that_does_not_hold_is_refused_in_words() {
    let lab = Lab::two_uplinks("uris");
    let server = ServerProgram::start(&lab);
    let directory = lab.work().join("refused");
    let [config, keys, run_dir] =
        ["mptcpd", "keys", "run"].map(|name| directory.join(name).to_str().unwrap().to_owned());
    let refused = |uri: &str| {
        let (code, _, error) = run(&lab.router, &pair(uri, &config, &keys, &run_dir));
        assert_ne!(code, Some(0));
        assert!(!Path::new(&config).exists(), "nothing is written");
        (code, error)
    };
    let uri = server.invite("home");
    let invitation =
        "did not enrol this router: the invitation is wrong, used or expired: make a new one";
    let (code, error) = refused(&mistyped(&uri, "token="));
    assert!(code == Some(69) && error.contains(invitation), "{error}");
    let (code, error) = refused(&mistyped(&uri, "key="));
    assert!(code == Some(69) && error.contains("its public key is another one"), "{error}");
    let (code, error) = refused(&uri.replace(":443/", ":444/"));
    assert!(code == Some(69) && error.contains("Connection refused"), "{error}");
    let (code, error) = refused(&uri.replace("&token=", "&tokn="));
    assert!(code == Some(64) && error.contains("not a pairing URI"), "{error}");
    let (code, error) = refused(uri.split('&').next().unwrap());
    assert!(code == Some(64) && error.contains("in quotes"), "{error}");

    // A day later.
    let invites = server.config().with_file_name("invites.toml");
    let text = fs::read_to_string(&invites).unwrap();
    let line = text.lines().rfind(|line| line.starts_with("expires")).unwrap();
    fs::write(&invites, text.replace(line, "expires = \"1000000000\"")).unwrap();
    let (code, error) = refused(&uri);
    assert!(code == Some(69) && error.contains(invitation), "{error}");

    // Another router has used it.
    let uri = server.invite("home");
    let other = lab.work().join("other");
    let [theirs, key] =
        ["mptcpd", "keys"].map(|name| other.join(name).to_str().unwrap().to_owned());
    assert_eq!(run(&lab.router, &pair(&uri, &theirs, &key, &run_dir)).0, Some(0));
    let (code, error) = refused(&uri);
    assert!(code == Some(69) && error.contains(invitation), "{error}");
}

#[test]
fn a_router_is_paired_checked_accounted_for_and_revoked() {
    let lab = Lab::two_uplinks("paired");
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let mut server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::unpaired(&lab);
    agent.launch();
    agent.wait_status("waits for a server", |status| status["servers"] == Value::Array(vec![]));
    let uri = server.invite("router");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (config, keys) = (text(agent.config()), text(agent.key_dir()));
    let agent_runs = text(agent.run_dir());
    let (code, report, _) = run(&lab.router, &pair(&uri, &config, &keys, &agent_runs));
    assert_eq!(code, Some(0), "{report}");
    for found in ["\nPaired with", "everything is well\n", "uplink wan ", "uplink wanb "] {
        assert!(format!("\n{report}").contains(found), "no {found:?} in:\n{report}");
    }
    agent.wait_ready();

    const BYTES: u64 = 3_000_000;
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    Transfer::download(&dialer, BYTES).unwrap().finish(LIMIT).unwrap();
    let server_runs = text(server.run_dir());
    let server_config = text(server.config());
    let of_server = |words: &[&str]| {
        let place = ["--config", &server_config, "--run-dir", &server_runs];
        run(&lab.server, &[&["server"], words, &place].concat())
    };
    let listed =
        || -> Value { serde_json::from_str(&of_server(&["clients", "--json"]).1).unwrap() };
    let downloaded = |listed: &Value| {
        let days = listed["clients"][0]["days"].as_array().unwrap().clone();
        days.iter().map(|day| day["down_bytes"].as_u64().unwrap()).sum::<u64>()
    };
    until("the download is accounted for", LIMIT, || {
        (downloaded(&listed()) >= BYTES).then_some(())
    });
    let table = of_server(&["clients"]).1;
    assert!(table.contains("connected"), "{table}");

    // Over a restart, and as long as no server runs.
    let before = downloaded(&listed());
    server.stop();
    let stopped = listed();
    assert_eq!((downloaded(&stopped), &stopped["clients"][0]["connected"]), (before, &Value::Null));
    server.restart();
    agent.wait_ready();
    assert_eq!(downloaded(&listed()), before);

    let endless = Transfer::download(&dialer, Transfer::ENDLESS).unwrap();
    endless.wait_bytes(BYTES, LIMIT);
    let (code, report, _) = of_server(&["revoke", "router"]);
    assert!(code == Some(0) && report.contains("have ended"), "{report}");
    until("the connection is reset", LIMIT, || {
        let streams = server.status()?["streams"]["open"].clone();
        (streams == 0 && endless.is_finished()).then_some(())
    });
    agent.wait_status("the agent knows", |status| {
        status["servers"][0]["state"] != "connected"
            && status["servers"][0]["reason"]
                .as_str()
                .is_some_and(|why| why.contains("router's key"))
    });
}
