//! From a server's first command to a router that is connected, and to its end.

mod lab;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use lab::{AgentProgram, Lab, Namespace, SERVER_V4, ServerProgram, binary};

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
