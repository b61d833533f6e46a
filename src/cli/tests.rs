use super::*;
use crate::config::keys::{PublicKey, Token};

fn command(words: &[&str]) -> Command {
    parse(words.iter().map(OsString::from)).unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

fn error(words: &[&str]) -> String {
    let error = parse(words.iter().map(OsString::from)).expect_err(&words.join(" "));
    let text = error.to_string();
    text.strip_suffix("; try 'mptcp-bond help'").unwrap().to_owned()
}

fn uri() -> PairingUri {
    PairingUri {
        server: "vps.example.net:443".parse().unwrap(),
        key: PublicKey([7; 32]),
        token: Token::from_bytes([8; 32]),
    }
}

#[test]
fn agent_and_server() {
    assert_eq!(
        command(&["agent"]),
        Command::Agent(AgentOptions {
            config: "/etc/config/mptcpd".into(),
            run_dir: "/var/run/mptcp-bond".into(),
            key_dir: "/etc/mptcp-bond".into(),
            ubus_socket: "/var/run/ubus/ubus.sock".into(),
            stderr: false,
        })
    );
    assert_eq!(
        command(&[
            "agent",
            "--config=a",
            "--run-dir",
            "b",
            "--stderr",
            "--key-dir",
            "c",
            "--ubus-socket",
            "d"
        ]),
        Command::Agent(AgentOptions {
            config: "a".into(),
            run_dir: "b".into(),
            key_dir: "c".into(),
            ubus_socket: "d".into(),
            stderr: true,
        })
    );
    assert_eq!(
        command(&["server", "--run-dir", "b"]),
        Command::Server(ServerOptions {
            config: "/etc/mptcp-bond/server.toml".into(),
            run_dir: "b".into(),
            stderr: false,
        })
    );
}

#[test]
fn server_subcommands() {
    let init = |listen: &[&str]| {
        Command::ServerInit(InitOptions {
            config: "x.toml".into(),
            listen: listen.iter().map(|text| text.parse().unwrap()).collect(),
            public: Some("vps.example.net:8443".parse().unwrap()),
        })
    };
    assert_eq!(
        command(&["server", "init"]),
        Command::ServerInit(InitOptions {
            config: SERVER_CONFIG.into(),
            listen: Vec::new(),
            public: None
        })
    );
    let public = ["--public", "vps.example.net:8443", "--config", "x.toml"];
    assert_eq!(command(&[&["server", "init"], &public[..]].concat()), init(&[]));
    let listen = ["--listen", "192.0.2.1:443", "--listen=[::1]:443"];
    assert_eq!(
        command(&[&["server", "init"], &public[..], &listen[..]].concat()),
        init(&["192.0.2.1:443", "[::1]:443"])
    );
    let home = ClientOptions { config: SERVER_CONFIG.into(), name: "home".into() };
    assert_eq!(command(&["server", "invite", "home"]), Command::ServerInvite(home.clone()));
    let revoke = RevokeOptions { client: home, run_dir: RUN_DIR.into() };
    assert_eq!(command(&["server", "revoke", "home"]), Command::ServerRevoke(revoke));
    assert_eq!(
        command(&["server", "clients", "--config", "x", "--json"]),
        Command::ServerClients(ClientsOptions {
            config: "x".into(),
            run_dir: RUN_DIR.into(),
            json: true
        })
    );
}

#[test]
fn pair() {
    let text = uri().to_uri();
    assert_eq!(
        command(&["pair", &text]),
        Command::Pair {
            options: PairOptions {
                uri: uri(),
                config: AGENT_CONFIG.into(),
                key_dir: KEY_DIR.into(),
                name: "vps".into(),
            },
            run_dir: RUN_DIR.into(),
        }
    );
    assert!(error(&["pair"]).contains("needs a URI"));
    assert!(error(&["pair", "http://x"]).contains("not a pairing URI"));
    assert!(error(&["pair", &text, "--name", "a-b"]).contains("--name"));
}

#[test]
fn status() {
    let status = |format| Command::Status(StatusOptions { run_dir: RUN_DIR.into(), format });
    assert_eq!(command(&["status"]), status(StatusFormat::Table));
    assert_eq!(command(&["status", "--json"]), status(StatusFormat::Json));
    assert_eq!(command(&["status", "--watch"]), status(StatusFormat::Watch));
    assert_eq!(error(&["status", "--json", "--watch"]), "--json and --watch exclude each other");
}

#[test]
fn uplink() {
    let role =
        |role| Command::Uplink(UplinkOptions { run_dir: RUN_DIR.into(), name: "lte".into(), role });
    assert_eq!(command(&["uplink", "lte", "off"]), role(Some(Role::Off)));
    assert_eq!(command(&["uplink", "lte", "default"]), role(None));
}

#[test]
fn help_and_version() {
    for words in
        [&["help"][..], &["--help"], &["-h"], &["agent", "-h"], &["server", "init", "--help"]]
    {
        assert_eq!(command(words), Command::Help);
    }
    for word in ["version", "--version", "-V"] {
        assert_eq!(command(&[word]), Command::Version);
    }
    assert_eq!(command(&["self-test"]), Command::SelfTest);
}

#[test]
fn mistakes_are_named() {
    for (words, message) in [
        (&[][..], "no command"),
        (&["agnet"], "unknown command 'agnet'"),
        (&["server", "start"], "unknown command 'server start'"),
        (&["agent", "--confg", "x"], "'agent' has no option --confg"),
        (&["agent", "--config"], "missing argument for option '--config'"),
        (&["agent", "--config", "a", "--config", "b"], "--config is given twice"),
        (&["agent", "--stderr=1"], "unexpected argument for option '--stderr': \"1\""),
        (&["agent", "x"], "unexpected argument \"x\""),
        (&["agent", "-x"], "invalid option '-x'"),
        (&["server", "invite"], "'server invite' needs a NAME"),
        (
            &["server", "invite", "my home"],
            "NAME must be a name of 1 to 64 letters, digits, '-', '_' and '.', such as home",
        ),
        (&["uplink"], "'uplink' needs a NAME"),
        (&["uplink", "lte"], "'uplink' needs a ROLE"),
        (&["uplink", "lte", "off", "now"], "unexpected argument \"now\""),
        (&["uplink", "lte", "on"], "ROLE must be bond, backup, overflow, off or default"),
        (
            &["server", "init", "--public", "vps"],
            "--public must be HOST:PORT such as vps.example.net:443 or [2001:db8::1]:443",
        ),
        (
            &["server", "init", "--public", "a:1", "--listen", "443"],
            "--listen must be ADDRESS:PORT such as 127.0.0.1:8484 or [::1]:8484, with a port from 1 \
             to 65535",
        ),
    ] {
        assert_eq!(error(words), message, "{words:?}");
    }
}

#[test]
fn check_has_a_configuration_for_when_no_agent_runs() {
    let options = CheckOptions { config: "c".into(), run_dir: RUN_DIR.into(), json: true };
    assert_eq!(command(&["check", "--json", "--config", "c"]), Command::Check(options));
    let options = MonitorOptions { run_dir: "r".into(), json: false };
    assert_eq!(command(&["monitor", "--run-dir", "r"]), Command::Monitor(options));
}

#[test]
fn the_usage_tells_of_every_option() {
    for option in
        ["config", "run-dir", "key-dir", "stderr", "name", "listen", "public", "json", "watch"]
    {
        assert!(USAGE.contains(&format!("\n  --{option} ")), "{option}");
    }
    for default in [AGENT_CONFIG, SERVER_CONFIG, KEY_DIR, RUN_DIR, SERVER_SECTION] {
        assert!(USAGE.contains(default));
    }
    assert!(USAGE.lines().all(|line| line.len() <= 100));
}
